"""The plumbing behind the notebooks; CONTRIBUTING.md says which module stands on which."""

import contextlib
import ctypes
import os

VERSION = "3"  # of what notebooks and project expect of each other; the set-up cells compare it


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


def keep_freed_memory():
    """glibc gives large blocks back to the kernel, which has to clear them before TensorFlow gets
    them again at its next step. Kept, CNN_1 trains a fifth faster on a CPU. See `man mallopt`."""
    with contextlib.suppress(AttributeError, TypeError):  # another C library, Windows
        mallopt = ctypes.CDLL(None).mallopt
        for option, value in ((-8, 1), (-4, 0), (-1, 2**31 - 1)):
            mallopt(option, value)  # M_ARENA_MAX, M_MMAP_MAX, M_TRIM_THRESHOLD


keep_freed_memory()
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
with quiet_stderr():
    import tensorflow  # noqa: F401
