from google.colab import errors


class MessageError(errors.Error):
    """What the browser answered with an error; a refused permission is one."""
