"""Copies on Google Drive; nothing that fails there stops a notebook. A folder is complete when its
marker is there, a JSON file whose `files` maps names to SHA-256: it is copied last, both ways."""

import contextlib
import filecmp
import shutil
import time
from pathlib import Path

from cxr.files import STATE, UserError, atomic_write, checksum, read_json

DRIVE = Path("/content/drive")
STATE_INTERVAL = 600  # seconds between two copies of a running training's state


def mount():
    """Mounts Drive; False, and a line that says so, where that cannot be done."""
    from google.colab import drive

    try:
        drive.mount(str(DRIVE))
    except Exception as error:  # ValueError, MessageError, NotImplementedError, by version
        print(f"Drive was not mounted ({type(error).__name__}: {error}): what this session makes "
              "is lost with it. Run this cell again to retry.")  # fmt: skip
        return False
    return True


class DriveSync:
    """Keeps files below `remote`, on Drive, like those below `local`; paths given are local ones.
    `pending` are the markers that Drive has not taken yet; a set-up finds them all again."""

    def __init__(self, local, remote):
        self.local, self.remote, self.failing = local, remote, False
        self.pending, self.state_copied = {}, time.monotonic()

    def remote_path(self, path):
        """The path on Drive of a local file or folder."""
        return self.remote / path.relative_to(self.local)

    def upload(self, marker, replace=False):
        """Copies a complete folder to Drive, and what was pending before it. A different one there
        is overwritten only if `replace`, which outlives the session as a file."""
        if replace:
            marker.with_name(".replaces").touch()
        self.pending[marker] = None
        for waiting in list(self.pending):
            remote, replaces = self.remote_path(waiting), waiting.with_name(".replaces")
            with self._tolerant(UserError):
                is_new = not remote.exists()
                differs = not is_new and not filecmp.cmp(waiting, remote, shallow=False)
                if differs and not replaces.exists():
                    print(f"Drive has another finished {waiting.parent.name} and keeps it; this "
                          f"session's stays in {waiting.parent}. RETRAIN replaces it.")  # fmt: skip
                elif differs:  # whole beside the old one, then in its place
                    new = remote.parent.with_name(f".{remote.parent.name}.part")
                    self._copy_folder(waiting, new / remote.name)
                    old = remote.parent.rename(new.with_suffix(f".{time.time_ns()}"))
                    new.rename(remote.parent)
                    shutil.rmtree(old)
                elif is_new:
                    self._copy_folder(waiting, remote)
                if is_new or differs:
                    (remote.parent / STATE).unlink(missing_ok=True)  # of what is finished now
                replaces.unlink(missing_ok=True)
                del self.pending[waiting]
        if self.failing and not self.pending:
            print("Google Drive works again.")
            self.failing = False

    def upload_state(self, path):
        """Copies the state of a running training now and then, over the old copy: Drive's bin
        would keep every replaced file."""
        if time.monotonic() - self.state_copied > STATE_INTERVAL:
            with self._tolerant():
                self._copy(path, self.remote_path(path), write=contextlib.nullcontext)
            self.state_copied = time.monotonic()

    def download(self, path):
        """Fetches a file that is on Drive and not here; a marker after the files it names."""
        remote = self.remote_path(path)
        with self._tolerant():
            if path.exists() or not remote.exists():
                return
            try:
                (self._copy_folder if path.suffix == ".json" else self._copy)(remote, path)
            except (FileNotFoundError, UserError) as error:
                if error.__cause__:  # not Drive's fault: this machine's disk is full
                    raise
                print(f"{remote.parent} is damaged ({error}): it is not used, and made again.")
                remote.unlink()

    def _copy_folder(self, source, target):
        """Copies the files that a marker names, and then the marker."""
        with contextlib.ExitStack() as stack:  # run at its end, each even if another fails
            for name, expected in read_json(source)["files"].items():
                stack.callback(self._copy, source.parent / name, target.parent / name, expected)
        self._copy(source, target)

    def _copy(self, source, target, expected=None, write=atomic_write):
        """Copies a file, and sees that its checksum is `expected`. MyDrive, or the folder of shared
        drives, is never made here: files in a made one would hide the real one."""
        if not (DRIVE / self.remote.relative_to(DRIVE).parts[0]).is_dir():
            raise ConnectionError("it is not mounted any more")
        target.parent.mkdir(parents=True, exist_ok=True)
        with write(target) as part:
            shutil.copyfile(source, part)
            if expected and checksum(part) != expected:
                raise UserError(f"{source} is not what it was")

    @contextlib.contextmanager
    def _tolerant(self, *kinds):
        """What fails on Drive, an OSError or of `kinds`, is said once and stops nothing."""
        try:
            yield
        except (OSError, *kinds) as error:
            reason = getattr(error.__cause__ or error, "strerror", None) or str(error)
            if not self.failing:
                print(f"Not copied to or from Google Drive ({reason}): going on in {self.local}, "
                      "which is lost with this session, and trying again later.")  # fmt: skip
            self.failing = True
