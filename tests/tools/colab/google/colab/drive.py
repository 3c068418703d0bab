"""Drive: a folder of this machine.

Only Colab has a folder /content. In a rehearsal, CXR_TEST_CONTENT names the folder that stands for
it and CXR_TEST_DRIVE the person's files on Drive, which outlive it; mounting moves the two paths
that `utils` knows.
"""

import os
import sys
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
    if " " in mountpoint:
        raise ValueError("Mountpoint must not contain a space.")
    if content := os.environ.get("CXR_TEST_CONTENT"):
        if not mountpoint.startswith("/content/"):
            raise ValueError(f"not where Colab's notebooks mount Drive: {mountpoint}")
        utils = sys.modules["utils"]
        utils.DRIVE, utils.LOCAL = Path(content) / "drive", Path(content) / "cxr_local"
        utils.DRIVE.mkdir(exist_ok=True)
        if not (utils.DRIVE / "MyDrive").exists():
            (utils.DRIVE / "MyDrive").symlink_to(os.environ["CXR_TEST_DRIVE"])
    else:
        (Path(mountpoint) / "MyDrive").mkdir(parents=True, exist_ok=True)
    print(f"Mounted at {mountpoint}")


def flush_and_unmount(timeout_ms=24 * 60 * 60 * 1000):
    print("Drive not mounted, so nothing to flush and unmount.")
