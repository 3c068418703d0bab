"""Drive: a folder of this machine, in a rehearsal the one that CXR_TEST_DRIVE names."""

import os
from pathlib import Path

calls = []  # mountpoints, in order


def mount(mountpoint):
    """As Colab's own, whose Drive always holds MyDrive."""
    calls.append(mountpoint)
    my_drive = Path(mountpoint) / "MyDrive"
    if (files := os.environ.get("CXR_TEST_DRIVE")) and not my_drive.exists():
        my_drive.parent.mkdir(exist_ok=True)
        my_drive.symlink_to(files)
    my_drive.mkdir(parents=True, exist_ok=True)
    print(f"Mounted at {mountpoint}")
