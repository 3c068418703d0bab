"""The plumbing behind the notebooks; CONTRIBUTING.md says which module stands on which."""

import contextlib
import os

VERSION = "6"  # of what notebooks and project expect of each other; the set-up cells compare it


@contextlib.contextmanager
def quiet_stderr():
    """TensorFlow's start-up lines go to file descriptor 2, past every Python setting."""
    saved = os.dup(2)
    with open(os.devnull, "w") as null:
        os.dup2(null.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)


os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
with quiet_stderr():
    import tensorflow  # noqa: F401
