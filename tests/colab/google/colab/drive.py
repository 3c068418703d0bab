"""Drive: a folder of this machine.

In a rehearsal CXR_TEST_DRIVE names the person's files on Drive, which outlive the machine.
"""

import os
from pathlib import Path

calls = []  # mountpoints, in order


def mount(mountpoint, force_remount=False, timeout_ms=120000, readonly=False):
    """As Colab's own, whose Drive always holds MyDrive.

    Raises:
        ValueError: a mountpoint that is a link, holds files, or has a space; a failed mount.
        MessageError: the person did not allow it.
        NotImplementedError: this kind of session has no Drive.
    """
    calls.append(mountpoint)
    my_drive = Path(mountpoint) / "MyDrive"
    if (files := os.environ.get("CXR_TEST_DRIVE")) and not my_drive.exists():
        my_drive.parent.mkdir(exist_ok=True)
        my_drive.symlink_to(files)
    my_drive.mkdir(parents=True, exist_ok=True)
    print(f"Mounted at {mountpoint}")
