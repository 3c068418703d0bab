"""Copies on Google Drive of the folders a session wants to keep. Knows paths and bytes only.

Work goes on in local files alone. A folder is complete when its marker (a JSON file whose `files`
maps names to SHA-256) is there, so the marker is copied last, in both directions. Nothing that
fails on Drive stops a notebook: it is said once and offered again with the next folder.
"""

import contextlib
import errno
import filecmp
import shutil
import sys
import time
from pathlib import Path

from cxr.files import UserError, atomic_write, checksum, read_json

DRIVE = Path("/content/drive")
STATE_INTERVAL = 600  # seconds between two copies of a running training's state


def in_colab():
    """Whether this is a Colab session: it has imported google.colab before the first cell."""
    return "google.colab" in sys.modules


def mount():
    """Mounts Drive; False, and a line that says so, where that cannot be done."""
    from google.colab import drive

    try:
        drive.mount(str(DRIVE))
        return True
    except Exception as error:  # ValueError, MessageError, NotImplementedError, by version
        print(
            f"Drive was not mounted ({type(error).__name__}: {error}): what this session makes "
            "stays on Colab's disk and is lost with it. Run this cell again to retry."
        )
        return False


class DriveSync:
    """Keeps folders on Drive like those on the session's own disk.

    Attributes:
        local, remote: the two folders whose contents correspond.
        pending: dict from a local folder that Drive has not taken yet to (marker, replace).
        last_error: why, in words, else None.
    """

    def __init__(self, local, remote):
        self.local, self.remote = Path(local), Path(remote)
        self.pending, self.last_error, self.state_copied = {}, None, time.monotonic()

    def remote_path(self, path):
        """The path on Drive of a local file or folder."""
        return self.remote / Path(path).relative_to(self.local)

    def describe(self, folder):
        """Where a folder is kept, in words."""
        if self.last_error:
            return f"{folder}, not on Drive ({self.last_error}): it is lost with this session"
        return f"{self.remote_path(folder)} (Drive; a copy of {folder})"

    def upload(self, folder, marker, replace=False):
        """Copies a complete folder to Drive, and what was pending before it.

        Args:
            folder: local folder.
            marker: name of its marker file.
            replace: whether a different complete folder on Drive is overwritten.
        """
        self.pending[Path(folder)] = (marker, replace)
        for waiting, settings in list(self.pending.items()):
            with self._tolerant():
                self._upload(waiting, *settings)
                del self.pending[waiting]
        if self.last_error and not self.pending:
            print("Drive takes files again.")
            self.last_error = None

    def _upload(self, folder, marker, replace):
        remote, failed = self.remote_path(folder), None
        self._check_mounted()
        if not (folder / marker).exists():  # deleted meanwhile
            return
        if (remote / marker).exists():
            if filecmp.cmp(folder / marker, remote / marker, shallow=False):
                return
            if not replace:
                print(f"Drive has another finished {folder.name} and keeps it; this session's "
                      f"stays in {folder}. RETRAIN replaces Drive's.")  # fmt: skip
                return
            (remote / marker).unlink()
        for name in read_json(folder / marker)["files"]:
            try:
                self._copy(folder / name, remote / name)
            except (OSError, UserError) as error:  # one that does not fit holds no other back
                failed = error
        if failed:
            raise failed
        self._copy(folder / marker, remote / marker)

    def _copy(self, source, target):
        self._check_mounted()  # else writing would make folders under the mount point
        if not (target.exists() and filecmp.cmp(source, target, shallow=False)):
            with atomic_write(target) as part:
                shutil.copyfile(source, part)

    def download(self, folder, marker):
        """Fetches a folder that is complete on Drive and not here."""
        folder, remote = Path(folder), self.remote_path(folder)
        with self._tolerant():
            if (folder / marker).exists() or not (remote / marker).exists():
                return
            try:
                for name, expected in read_json(remote / marker)["files"].items():
                    with atomic_write(folder / name) as part:
                        shutil.copyfile(remote / name, part)
                        if checksum(part) != expected:
                            raise FileNotFoundError(errno.ENOENT, f"{name} is not what it was")
                self._copy_here(remote / marker, folder / marker)
            except (FileNotFoundError, UserError) as error:
                if error.__cause__:  # not Drive's fault: this machine's disk is full
                    raise
                print(f"{remote} is damaged ({error}): it is not used, and made again.")
                (remote / marker).unlink()

    def upload_state(self, path):
        """Copies the state of a running training now and then, over the old copy: Drive's bin
        would keep every replaced file."""
        if time.monotonic() - self.state_copied > STATE_INTERVAL:
            with self._tolerant():
                self._check_mounted()
                self.remote_path(path).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, self.remote_path(path))
            self.state_copied = time.monotonic()

    def download_state(self, path):
        """Fetches the state of an interrupted training, if Drive has one and this machine not."""
        with self._tolerant():
            if not path.exists() and self.remote_path(path).exists():
                self._copy_here(self.remote_path(path), path)

    def delete(self, path):
        """Deletes Drive's copy of a file."""
        with self._tolerant():
            self.remote_path(path).unlink(missing_ok=True)

    @staticmethod
    def _copy_here(source, target):
        with atomic_write(target) as part:
            shutil.copyfile(source, part)

    def _check_mounted(self):
        """MyDrive, or the folder of shared drives, is there when Drive is. It is never made
        here: files in a made one would hide the real one."""
        if not (DRIVE / self.remote.relative_to(DRIVE).parts[0]).is_dir():
            raise OSError(errno.ENOTCONN, "it is not mounted any more")

    @contextlib.contextmanager
    def _tolerant(self):
        """What fails on Drive is said once and stops nothing."""
        try:
            yield
        except (OSError, UserError) as error:
            if isinstance(error, UserError) and str(self.remote) not in str(error):
                raise  # this machine's disk is full
            reason = getattr(error.__cause__ or error, "strerror", None) or str(error)
            if not self.last_error:
                print(f"Drive does not take or give files ({reason}): going on in {self.local}, "
                      "and trying again later.")  # fmt: skip
            self.last_error = reason
