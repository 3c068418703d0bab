class Error(Exception):
    """Base of Colab's own errors."""


class AuthorizationError(Error):
    pass
