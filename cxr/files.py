"""Whole files or none: atomic writes, JSON with a checksum, one error for a person to read."""

import contextlib
import errno
import functools
import hashlib
import json
import os
import platform
import shutil
import sys
import time
from pathlib import Path

import psutil
from tqdm import tqdm

PROJECT = Path(__file__).resolve().parents[1]
RESULTS, WEIGHTS = PROJECT / "results", PROJECT / "weights"
STATE = "training.npz"  # in the folder of a run that is not finished, see cxr/training.py
# A progress bar, redrawn rarely, because in a log every one is a line.
progress = functools.partial(tqdm, file=sys.stdout, ncols=88, mininterval=2, leave=False)
_MORE_SPACE = "Free some, or set OUT (CXR_OUT) to a folder on a larger disk."


class UserError(RuntimeError):
    """Something a person can mend: the message names it and says what to do next."""


def display_path(path):
    """A path as printed in a notebook: relative to the project where it lies inside."""
    return Path(path).relative_to(PROJECT) if Path(path).is_relative_to(PROJECT) else path


@contextlib.contextmanager
def atomic_write(path, size=0):
    """Gives a temporary path beside `path` that takes its name only when the block succeeds.
    UserError where the disk is full or has no room for `size` bytes; nothing half-written stays."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if shutil.disk_usage(path.parent).free < size:
        raise UserError(f"{path} takes {size / 1e6:.0f} MB, more than is free. {_MORE_SPACE}")
    for stale in path.parent.glob(f".*.part.{path.name}"):  # of killed processes
        with contextlib.suppress(OSError, ValueError):
            pid, _, host = stale.name[1:].partition(".part.")[0].partition("-")
            dead = host == platform.node() and not psutil.pid_exists(int(pid))
            if dead or time.time() - stale.stat().st_mtime > 3600:
                stale.unlink()
    part = path.with_name(f".{os.getpid()}-{platform.node()}.part.{path.name}")
    try:
        yield part
        with open(part, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(part, path)
    except OSError as error:
        if error.errno in (None, errno.ENOSPC, errno.EDQUOT, errno.EFBIG):  # numpy's has none
            raise UserError(f"No space left while writing {path}. {_MORE_SPACE}") from error
        raise
    finally:
        part.unlink(missing_ok=True)


def checksum(path):
    """SHA-256 of a file, as hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fingerprint(*parts):
    """SHA-256 of strings and C-contiguous arrays, one after the other, as hexadecimal digits."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.encode() if isinstance(part, str) else part)
    return digest.hexdigest()


def write_json(path, content):
    """Writes a dict, with a checksum of its own, in one step."""
    content = json.loads(json.dumps(content, allow_nan=False))
    content["checksum"] = fingerprint(json.dumps(content, sort_keys=True))[:16]
    with atomic_write(path) as part:
        part.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def read_json(path):
    """Reads what `write_json` wrote; FileNotFoundError, or UserError where it is damaged."""
    with contextlib.suppress(ValueError, KeyError, AttributeError):
        content = json.loads(path.read_text(encoding="utf-8"))
        if content.pop("checksum") == fingerprint(json.dumps(content, sort_keys=True))[:16]:
            return content
    raise damaged(path)


def damaged(path):
    """The UserError for a file that is not what was written: what helps depends on its origin."""
    hint = f"delete the folder {display_path(path.parent)} and run its notebook again"
    if {RESULTS, WEIGHTS} & set(path.parents):
        hint = "it came with the project, so fetch the project again (git checkout .)"
    return UserError(f"{display_path(path)} is missing or damaged: {hint}.")
