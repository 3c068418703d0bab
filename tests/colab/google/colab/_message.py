class MessageError(Exception):
    """What the browser answered with an error; a refused permission is one."""
