"""The plumbing behind the notebooks: nobody has to open it to follow them. Each module stands on
those below it:

    config                 settings and set-up: the door, which knows paths, Drive and TensorFlow
    training, reference    the checkpoint callback; the published runs
    explain, figures       one image and its explanation; the figures that notebooks share
    runs, features         a finished run on disk; what a frozen network computes, once
    pipeline, cache        batches for `model.fit`; all images decoded once
    source, index          finding the images; what their names say
    drive, files           copies on Google Drive; whole files or none
"""

import contextlib
import os

VERSION = "2"  # of what notebooks and project expect of each other; the set-up cells compare it


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
