"""What the five notebooks share. Read it once from top to bottom:

1. Settings and set-up     five settings, one `setup` call, atomic writes, a copy on Drive
2. Finding the images      folder, Kaggle's input, data/chest_xray, download, phantoms
3. The index and the parts file names to classes and patients; train, validation, test
4. Packed images           decoded once, one memory-mapped file
5. Pipelines               tf.data from the packed file
6. Models and training     CNN_1, and a fit that survives being killed
7. Stages                  what a notebook leaves behind for the next one
8. Frozen features         what a frozen network makes of every image, computed once
9. Evaluation              measures, intervals, yardsticks
10. Figures                colours, curves, confusion matrices, a grid of images

A notebook holds the report's story: architecture, optimizer, callbacks, what a figure says.
This file holds what the story does not need to explain.
"""

import contextlib
import dataclasses
import errno
import hashlib
import importlib.util
import json
import os
import platform
import re
import shutil
import sys
import time
import uuid
import zipfile
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from PIL import Image
from scipy import stats
from sklearn import metrics
from sklearn.dummy import DummyClassifier
from sklearn.model_selection import train_test_split
from sklearn.neighbors import KNeighborsClassifier, NearestNeighbors
from tqdm import tqdm


@contextlib.contextmanager
def _without_stderr():
    """TensorFlow's start-up lines go to file descriptor 2, past every Python setting."""
    saved, null = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    try:
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(null)


os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
with _without_stderr():
    import keras
    import tensorflow as tf

PROJECT = Path(__file__).resolve().parent
CLASSES = {2: ("normal", "pneumonia"), 3: ("normal", "bacterial", "viral")}
SIDE = 224  # pixels, the report's choice (section I)


class CxrError(RuntimeError):
    """Something a person can mend: the message names it and says what to do next."""


# --- 1. Settings and set-up ---------------------------------------------------------------

SETTINGS = {  # environment variable: default
    "CXR_DATA": "",
    "CXR_PROFILE": "full",
    "CXR_SEED": "0",
    "CXR_OUT": "",
    "CXR_INCEPTION_WEIGHTS": "imagenet",
}
SMOKE = {"train": 512, "validation": 128, "test": 200}  # images at most in the smoke profile
DRIVE = Path("/content/drive")
DRIVE_OUT = "MyDrive/chest_xray_pneumonia"
LOCAL = Path("/content/cxr_local")  # Colab's own disk: fast, and gone with the session
KAGGLE_WORKING = Path("/kaggle/working")
SESSION = uuid.uuid4().hex[:8]  # of this kernel


@dataclasses.dataclass(frozen=True)
class Run:
    """The settings of one notebook run, resolved.

    Attributes:
        data: a folder, "kaggle", "phantom", or "" (look for a folder, else Kaggle).
        profile: "full" as the report trains, or "smoke": few images, 2 epochs, same layers.
        seed: drives the split, the initial weights, the shuffling and the flips.
        out: folder of weights and results; real full runs, smoke runs and phantoms never share.
        cache: folder of packed images and frozen features.
        mirror: `Mirror` that copies to Drive what is worth keeping (Colab), or None.
        inception: "imagenet", a weights file for InceptionV3, or "random" (never trained).
        started: monotonic clock at the set-up, in seconds.
    """

    data: str
    profile: str
    seed: int
    out: Path
    cache: Path
    mirror: "Mirror | None"
    inception: str
    started: float = dataclasses.field(default_factory=time.monotonic, compare=False)

    @property
    def smoke(self):
        return self.profile == "smoke"


def setup(data="", profile="", seed="", out="", inception=""):
    """Resolves the settings, seeds everything, and prints what this run stands on.

    Every argument is a form field of the notebooks' set-up cell: a string, where an empty one
    means the environment variable (`CXR_DATA`, `CXR_PROFILE`, `CXR_SEED`, `CXR_OUT`,
    `CXR_INCEPTION_WEIGHTS`), and failing that its default.

    Returns:
        A `Run`.

    Raises:
        CxrError: a setting that cannot be, or an output folder that cannot be written.
    """
    given = dict(zip(SETTINGS, (data, profile, seed, out, inception), strict=True))
    value = {
        name: str(given[name]).strip() or os.environ.get(name, "").strip() or default
        for name, default in SETTINGS.items()
    }
    if value["CXR_PROFILE"] not in ("full", "smoke"):
        raise CxrError(f"CXR_PROFILE is {value['CXR_PROFILE']!r}: say full or smoke.")
    if not re.fullmatch(r"\d{1,9}", value["CXR_SEED"]):
        raise CxrError(f"CXR_SEED is {value['CXR_SEED']!r}: say a whole number from 0.")
    if (
        value["CXR_DATA"] == "phantom"
        and not inception
        and "CXR_INCEPTION_WEIGHTS" not in os.environ
    ):
        value["CXR_INCEPTION_WEIGHTS"] = "random"  # phantoms promise that nothing is downloaded
    out, drive = _output_folder(value["CXR_OUT"])
    apart = [value["CXR_DATA"]] if value["CXR_DATA"] == "phantom" else []
    apart += [value["CXR_PROFILE"]] if value["CXR_PROFILE"] == "smoke" else []
    run = Run(
        data=value["CXR_DATA"],
        profile=value["CXR_PROFILE"],
        seed=int(value["CXR_SEED"]),
        out=out.joinpath(*(["-".join(apart)] if apart else []), f"seed-{value['CXR_SEED']}"),
        cache=out / "cache",
        mirror=drive and Mirror(out, drive),
        inception=value["CXR_INCEPTION_WEIGHTS"],
    )
    for folder in (run.out, run.cache):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with atomic(folder / ".writable") as part:
                part.touch()
            (folder / ".writable").unlink()
            _tidy(folder.rglob(".*.part*"))
        except OSError as error:
            raise CxrError(
                f"Cannot write in {folder} ({error.strerror}). "
                "Set CXR_OUT (the form field OUT) to a folder that can be written."
            ) from error

    if run.mirror:
        run.mirror.begin(run)
    keras.utils.set_random_seed(run.seed)
    if not accelerators():  # on a GPU this would cost speed; there the seed alone is set
        tf.config.experimental.enable_op_determinism()
    print(
        f"Python {platform.python_version()}, TensorFlow {tf.__version__}, "
        f"Keras {keras.__version__}, NumPy {np.__version__}\n"
        f"device   {device_name()}\n"
        f"run      profile {run.profile}, seed {run.seed}\n"
        f"results  {_kept_in(run, run.out)}"
    )
    if not run.smoke and not accelerators():
        print(f"no GPU   {_without_gpu()}")
    if run.data == "phantom":
        line = "PHANTOMS: drawn stand-ins, not X-rays. No number below says anything about lungs."
        print(f"{'=' * len(line)}\n{line}\n{'=' * len(line)}")
    return run


def accelerators():
    """The GPUs or TPU cores TensorFlow sees."""
    with _without_stderr():
        return [d for d in tf.config.list_physical_devices() if d.device_type in ("GPU", "TPU")]


def device_name():
    """What trains here, in words: "2 x Tesla T4", or "CPU, 2 cores"."""
    details = tf.config.experimental.get_device_details
    names = [details(device).get("device_name", device.device_type) for device in accelerators()]
    if not names:
        return f"CPU, {os.cpu_count()} cores"
    return names[0] if len(names) == 1 else f"{len(names)} x {names[0]}"


def _without_gpu():
    """What it means that there is no GPU, and where this kind of notebook has its switch."""
    times = "all five notebooks take about an hour on 2 CPU cores (measured)"
    if _in_colab():
        switch = "Runtime > Change runtime type > T4 GPU, then run all again"
    elif KAGGLE_WORKING.is_dir():
        switch = "Settings > Accelerator, then run all again"
    else:
        return f"{times}."
    return f"{times}, about 10 minutes on a T4 (estimated): {switch}."


def _in_colab():
    return "google.colab" in sys.modules


def _output_folder(setting):
    """(folder that is worked in, folder on Drive that gets a copy or None)."""
    folder = Path(setting).expanduser().absolute() if setting else None
    if _in_colab() and (folder is None or DRIVE in folder.parents):
        mounted = _mount()
        folder = folder or DRIVE / DRIVE_OUT
        return LOCAL / folder.relative_to(DRIVE), folder if mounted else None
    if folder:
        return folder, None
    if KAGGLE_WORKING.is_dir():
        return KAGGLE_WORKING / "artifacts", None
    return PROJECT / "artifacts", None


def _mount():
    """Mounts Drive; False, and a line that says so, where that cannot be done."""
    from google.colab import drive

    try:
        drive.mount(str(DRIVE))
        return True
    except Exception as error:  # ValueError, MessageError, NotImplementedError, by version
        print(
            f"Drive was not mounted ({type(error).__name__}: {error}): what this session makes "
            "stays on Colab's disk and goes with it. Run this cell again to retry."
        )
        return False


def _kept_in(run, folder):
    """Where a folder of the run is kept, in words."""
    if not run.mirror:
        return f"{shown(folder)}"
    if run.mirror.trouble:
        return f"{folder}, not on Drive ({run.mirror.trouble}): it goes with this session"
    if folder in run.mirror.apart:
        return f"{folder}, not on Drive, which has another one"
    return f"{run.mirror.twin(folder)} (Drive; worked on in {folder})"


class Mirror:
    """Copies on Drive of what a run writes on Colab's own disk.

    Work goes on in the local files alone. Drive gets each of them in one step; what it does not
    take because it is full, read-only or gone is said once and offered again with the next file.

    Attributes:
        local, drive: the two folders whose files correspond.
        trouble: why Drive does not take files at the moment, else None.
        apart: local folders of stages of which Drive has others, never read here.
    """

    def __init__(self, local, drive):
        self.local, self.drive, self.trouble = local, drive, None
        self.known, self.apart = set(), set()
        self.waiting, self.told = {}, False  # local paths, in the order Drive is to get them
        self.next = 0.0  # monotonic clock

    def twin(self, path):
        """The path on Drive of a local file or folder."""
        return self.drive / path.relative_to(self.local)

    def begin(self, run):
        """Says whether another session is at work, and offers what Drive has not got yet."""
        self.heartbeat = self.twin(run.out / "session.json")
        made = [*run.out.glob("*/*"), *run.cache.glob("images-*/*"), *run.cache.glob("images-*")]
        with self._patient():
            self._top()
            for path in sorted(made, key=lambda path: (path.suffix == ".json", path)):
                if path.is_file() and not path.name.startswith(".") and self._newer(path):
                    self.waiting[path] = None
        self.put()

    def put(self, *paths, soon=True, ended=False):
        """Makes Drive's copies of local files like them, in this order; what is gone here is
        deleted there.

        Args:
            paths: local files.
            soon: False where a later state will replace this one: copying such files then takes
                a tenth of the time at most, a Drive that hangs included.
            ended: whether no training is under way any more.
        """
        for path in paths:
            self.waiting.pop(path, None)
            self.waiting[path] = None
        started = time.monotonic()
        if not soon and started < self.next:
            return
        with self._patient(CxrError):  # what a full disk becomes
            self._top()
            self._beat(ended)
            for path in list(self.waiting):
                if not self._keeps_apart(path.parent):
                    self._copy(path)
                del self.waiting[path]
            if self.trouble:
                print("Drive takes files again: what was waiting is copied.")
                self.trouble = None
        if not soon:
            self.next = time.monotonic() + 9 * (time.monotonic() - started)

    def forget(self, folder):
        """Drive's copy of a stage goes as the local one has gone."""
        self.known.add(folder)
        self.put(*(folder / name for name in ("run.json", *STAGE_FILES, "training.npz")))

    def get(self, path, files=dict):
        """Fetches a file from Drive where this machine has none, after the files it vouches for.

        Args:
            path: local path; a file of `write_json` where there are `files`.
            files: function from its content to a dict from local paths to CRC-32 or None.
        """
        if path.exists() or path in self.waiting:
            return
        with self._patient():
            twin, at = self.twin(path), path
            there = self._top() and twin.exists()
            self.known.add(path.parent)
            if not there:
                return
            try:
                wanted = files(read_json(twin)) if path.suffix == ".json" else {}
                for at, checksum in [*wanted.items(), (path, None)]:
                    self._fetch(at, checksum)
            except (FileNotFoundError, CxrError) as error:
                if error.__cause__:  # not Drive's fault: this machine's disk is full
                    raise
                print(
                    f"{self.twin(at)} is missing or damaged: what belongs to it is not used, and "
                    "replaced when its notebook has made it anew."
                )

    def _fetch(self, path, checksum):
        twin = self.twin(path)
        with atomic(path) as part:
            shutil.copyfile(twin, part)
            if checksum not in (None, _checksums(part)[0]):
                raise CxrError(f"{twin} is damaged.")
            os.utime(part, ns=(time.time_ns(), twin.stat().st_mtime_ns))  # `_newer` compares

    def _keeps_apart(self, folder):
        """Whether Drive has a stage that this session could not look at, for instance because
        Drive was mounted late: only RETRAIN replaces a finished stage."""
        if folder in self.known or not self.twin(folder / "run.json").exists():
            return False
        if folder not in self.apart:
            self.apart.add(folder)
            print(
                f"Drive has a finished {folder.name} which this session has not read, and keeps "
                f"it. This session's stays in {folder}: tick RETRAIN to replace Drive's."
            )
        return True

    def _copy(self, path):
        twin = self.twin(path)
        if not path.exists():
            twin.unlink(missing_ok=True)
            return
        self._top()  # `atomic` makes folders, also those of a Drive that has just gone
        with atomic(twin) as part:
            shutil.copyfile(path, part)
        if path.name == "run.json":  # another session may have written between our files
            for name, checksum in read_json(path)["files"].items():
                other = twin.with_name(name)
                if not other.exists() or _checksums(other)[0] != checksum:
                    self._copy(path.with_name(name))

    def _top(self):
        """The folder that is there when Drive is: MyDrive, or the one of shared drives. Nothing
        here ever makes it: files in it would hide the real one."""
        top = DRIVE / self.drive.relative_to(DRIVE).parts[0]
        if not top.is_dir():
            raise OSError(errno.ENOTCONN, "it is not mounted any more")
        return top

    def _newer(self, path):
        twin = self.twin(path)
        return not twin.exists() or twin.stat().st_mtime_ns < path.stat().st_mtime_ns

    def _beat(self, ended):
        """Leaves a sign of life beside the stages while a training may be under way."""
        try:
            found = read_json(self.heartbeat)
            minutes = (time.time() - found["time"]) / 60
            if found["session"] != SESSION and minutes < 15 and not self.told:
                self.told = True
                print(
                    f"Another session wrote in {self.heartbeat.parent} {max(minutes, 0):.0f} min "
                    "ago. If that was yours and is over, or runs another notebook, all is well. "
                    "If it trains the same notebook, stop one of the two."
                )
        except (FileNotFoundError, CxrError):
            pass
        if ended:
            self.heartbeat.unlink(missing_ok=True)
        else:
            write_json(self.heartbeat, {"session": SESSION, "time": time.time()})

    @contextlib.contextmanager
    def _patient(self, *also):
        """What fails on Drive is said once and stops nothing."""
        try:
            yield
        except (OSError, *also) as error:
            reason = getattr(error.__cause__ or error, "strerror", None) or str(error)
            if not self.trouble:
                print(
                    f"Drive does not take or give files ({reason}): going on in {self.local}, and "
                    "trying again with each file to be kept."
                )
            self.trouble = reason


def shown(path):
    """A path as printed in a notebook: relative to the project where it lies inside."""
    path = Path(path)
    return path.relative_to(PROJECT) if path.is_relative_to(PROJECT) else path


@contextlib.contextmanager
def _full_disk_said(path, kept):
    """Turns a full disk into an error that names the file, what to do, and what was kept."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise CxrError(
                f"No space left while writing {path}. Free some, or set CXR_OUT to a folder on "
                f"a larger disk. {kept}"
            ) from error
        raise


def _tidy(parts):
    """Removes temporary files and folders of a killed run; a live one keeps writing to its own."""
    for old in list(parts):
        with contextlib.suppress(OSError):
            if time.time() - old.stat().st_mtime > 600:
                shutil.rmtree(old) if old.is_dir() else old.unlink()


@contextlib.contextmanager
def atomic(path):
    """Gives a temporary path beside `path`, which takes its name only when the block succeeds.

    Raises:
        CxrError: the disk is full; nothing is left behind.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    _tidy(path.parent.glob(".*.part*"))
    part = path.with_name(f".{uuid.uuid4().hex[:8]}.{path.name}.part")
    try:
        with _full_disk_said(path, "Nothing half-written was kept."):
            yield part
            with open(part, "rb+") as file:
                os.fsync(file.fileno())
            os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def write_json(path, content):
    """Writes a dict, with a checksum of its own, in one step."""
    content = json.loads(json.dumps(content, allow_nan=False))
    content["checksum"] = _json_checksum(content)
    with atomic(path) as part:
        part.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def read_json(path):
    """Reads what `write_json` wrote.

    Raises:
        FileNotFoundError: no such file.
        CxrError: the file is damaged.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        if content.pop("checksum") == _json_checksum(content):
            return content
    except (ValueError, KeyError, AttributeError):
        pass
    raise CxrError(f"{shown(path)} is damaged: {_mended(path, 'delete it')}.")


def _mended(path, otherwise):
    """What to do about a damaged file, in words."""
    if {RESULTS, WEIGHTS} & set(Path(path).parents):
        return "it came with the project, so fetch the project anew (git checkout results weights)"
    return f"{otherwise} and run the notebook that made it again"


def _json_checksum(content):
    return f"{zlib.crc32(json.dumps(content, sort_keys=True).encode()):08x}"


def progress(items, what, unit="image", keep=True):
    """A progress bar on stdout: redrawn in place in a notebook, rarely in a log."""
    live = sys.stdout.isatty() or "ipykernel" in sys.modules
    return tqdm(
        items, desc=what, unit=unit, file=sys.stdout, ncols=88, ascii=" .:#", leave=keep,
        mininterval=0.5 if live else 15,
    )  # fmt: skip


# --- 2. Finding the images ----------------------------------------------------------------

KAGGLE_SET = "paultimothymooney/chest-xray-pneumonia"
KAGGLE_HANDLE = f"{KAGGLE_SET}/versions/2"
KAGGLE_KEY = "kaggle-2"  # names the packed file of a downloaded set
KAGGLE_INPUT = Path("/kaggle/input")
LOCAL_SET = PROJECT / "data" / "chest_xray"
ORIGINALS = PROJECT / "data" / "originals"
SPLITS, KINDS = ("train", "val", "test"), ("NORMAL", "PNEUMONIA")
_AGAIN = "run this cell again, what has arrived is kept"
_DOWNLOAD_FAULTS = {  # HTTP status, or kind of exception: what it means and what to do
    401: "Kaggle refuses the token found here. None is needed: remove it (~/.kaggle/kaggle.json, "
    "~/.kaggle/access_token, KAGGLE_API_TOKEN, KAGGLE_USERNAME and KAGGLE_KEY, in Colab also "
    "under Secrets) or put a new one in its place",
    403: f"Kaggle keeps this set from you: look at https://www.kaggle.com/datasets/{KAGGLE_SET}, "
    "sign in and accept its terms, then make a token (data/README.md); remove an old token",
    404: "Kaggle has this version no more: fetch the set by hand (data/README.md)",
    429: f"too many requests to Kaggle: wait a quarter of an hour, then {_AGAIN}",
    500: f"Kaggle has a fault of its own: wait a little, then {_AGAIN}",
    **dict.fromkeys(
        ("ConnectionError", "Timeout", "ChunkedEncodingError"),
        "no connection to Kaggle, or it broke off: check the network (in a Kaggle notebook: "
        f"Settings, Internet on), then {_AGAIN}",
    ),
    "DataCorruptionError": "the download does not match its checksum and was deleted: run this "
    "cell again",
    "BadZipFile": "the downloaded archive is damaged: delete it in kagglehub's cache "
    "(~/.cache/kagglehub/datasets, or KAGGLEHUB_CACHE), then run this cell again",
    "ModuleNotFoundError": "install what requirements.txt lists",
    errno.ENOSPC: "the disk is full: the download takes 5 GB, unpacked; free some, or set "
    f"KAGGLEHUB_CACHE to a folder on a larger disk, then {_AGAIN}",
}  # fmt: skip
_SECRET = re.compile(r"(?s)\?[\w.-]+=\S*|//[^/\s]*@|(Bearer|Basic) .*")


def image_root(folder):
    """The folder that directly holds train/, val/ and test/, or None.

    Kaggle's archive nests them in chest_xray/, with a second copy in chest_xray/chest_xray/
    and a __MACOSX folder of leftovers; both are left alone.
    """
    folder = Path(folder)
    for root in (folder, folder / "chest_xray", folder / "chest_xray" / "chest_xray"):
        if any((root / split).is_dir() for split in SPLITS):
            return root
    return None


def find_images(run, download=True):
    """Finds the data set: a named folder, Kaggle's input, data/chest_xray, else a download.

    Phantoms are drawn only when `run.data` is "phantom".

    Args:
        run: `Run`.
        download: False to stop before the download.

    Returns:
        (root, source): the folder that holds train/, val/, test/, or None where only the
        download is left; and "phantom", "folder" or "kaggle" (version 2 as downloaded).

    Raises:
        CxrError: nothing was found; the message lists what was tried and the ways out.
    """
    tried = []

    def look(folder, called):
        root = image_root(folder)
        if root is None:
            there = "holds no train, val or test" if Path(folder).is_dir() else "no such folder"
            tried.append(f"{called}: {there}")
        return root

    if run.data == "phantom":
        return _phantoms(run), "phantom"
    if run.data and run.data != "kaggle":
        if root := look(Path(run.data).expanduser(), f"CXR_DATA={run.data}"):
            return root, "folder"
    else:
        if not run.data:
            tried.append("CXR_DATA: not set")
            owner, name = KAGGLE_SET.split("/")
            for mounted in (KAGGLE_INPUT / name, KAGGLE_INPUT / "datasets" / owner / name):
                if root := look(mounted, str(mounted)):
                    return root, "folder"
            if root := look(LOCAL_SET, "data/chest_xray"):
                return root, "folder"
        if not download:
            return None, "kaggle"
        print(f"Downloading {KAGGLE_HANDLE} with kagglehub (about 2.3 GB, no login needed)")
        try:
            import kagglehub

            folder = kagglehub.dataset_download(KAGGLE_HANDLE)
            if root := look(folder, f"kagglehub's download in {folder}"):
                return root, "kaggle"
            tried[-1] += (
                "\n     delete that folder and run this cell again; where Colab mounted it, set "
                "DISABLE_COLAB_CACHE=1 first."
            )
        except Exception as error:  # network, quota, disk: whatever it is, say it and go on
            tried.append(f"download with kagglehub: {_download_fault(error)}")
    raise CxrError(
        "No chest X-ray images found. Tried:\n"
        + "\n".join(f"  {number}. {what}" for number, what in enumerate(tried, 1))
        + "\nWays out:\n"
        "  - set CXR_DATA (the form field DATA) to the folder that holds train, val and test;\n"
        "  - fetch the set by hand into data/chest_xray, as data/README.md says;\n"
        "  - in a Kaggle notebook: Add Input, search chest-xray-pneumonia;\n"
        "  - to try the notebooks without X-rays: CXR_DATA=phantom."
    )


def _download_fault(error):
    """What an exception of kagglehub means, and what to do; never with a token or a signed link."""
    kinds = [kind.__name__ for kind in type(error).__mro__]
    status = getattr(getattr(error, "response", None), "status_code", None)
    status = 500 if status and status >= 500 else status
    advice = next((_DOWNLOAD_FAULTS[key] for key in (status, getattr(error, "errno", None), *kinds)
                   if key in _DOWNLOAD_FAULTS), None)  # fmt: skip
    if "credentials file" in str(error):
        advice = _DOWNLOAD_FAULTS[401]
    said = " ".join(_SECRET.sub("...", str(error)).split())[:300]
    return f"{kinds[0]}: {said}" + (f"\n     {advice}." if advice else "")


def _phantoms(run):
    path = PROJECT / "data" / "phantom.py"
    spec = importlib.util.spec_from_file_location("phantom", path)
    phantom = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(phantom)
    folder = run.cache / f"phantoms-v{phantom.VERSION}"
    if not folder.exists():
        with _full_disk_said(folder, "Nothing half-drawn was kept."):
            phantom.make_phantoms(folder, progress=lambda n: progress(n, "drawing phantoms"))
    return folder


# --- 3. The index and the parts -----------------------------------------------------------

_PNEUMONIA_NAME = re.compile(r"person(\d+)_(bacteria|virus)_\d+(?:_\d+)?\.(?:jpe?g|png)", re.I)
_NORMAL_NAME = re.compile(r"(NORMAL2-IM|IM)-(\d+)-\d+(?:-\d+)?\.(?:jpe?g|png)", re.I)


def parse_name(kind, name):
    """(class, series, number) of a file name in a folder NORMAL or PNEUMONIA, else None."""
    if kind == "NORMAL" and (found := _NORMAL_NAME.fullmatch(name)):
        return "normal", found[1].upper(), int(found[2])
    if kind == "PNEUMONIA" and (found := _PNEUMONIA_NAME.fullmatch(name)):
        series = found[2].lower()
        return {"bacteria": "bacterial", "virus": "viral"}[series], series, int(found[1])
    return None


def read_index(root):
    """One row per image, from folder and file names alone.

    Args:
        root: the folder that holds train/, val/ and test/.

    Returns:
        DataFrame, sorted by `file`, with the string columns file (relative, with slashes),
        split (Kaggle's folder), class2, class3 (names from CLASSES), series (bacteria, virus,
        IM or NORMAL2-IM) and patient: series and number, because each series counts anew.

    Raises:
        CxrError: folders that are missing or empty and names of an unknown form, all at once.
    """
    root, rows, wrong = Path(root), [], []
    for split in SPLITS:
        for kind in KINDS:
            folder = root / split / kind
            try:
                names = sorted(name for name in os.listdir(folder) if not name.startswith("."))
            except OSError as error:
                wrong.append(f"{split}/{kind}: {error.strerror}")
                continue
            if not names:
                wrong.append(f"{split}/{kind}: empty folder")
            for name in names:
                file = f"{split}/{kind}/{name}"
                parsed = parse_name(kind, name)
                if parsed is None:
                    wrong.append(f"{file}: not a name of this set")
                    continue
                label, series, number = parsed
                class2 = "normal" if label == "normal" else "pneumonia"
                rows.append((file, split, class2, label, series, f"{series}-{number}"))
    if wrong:
        raise CxrError(
            f"{root} is not the set in Kaggle's layout:\n"
            + "\n".join(f"  {line}" for line in wrong)
            + "\nFetch it anew as data/README.md says, or move what does not belong there."
        )
    columns = ["file", "split", "class2", "class3", "series", "patient"]
    return pd.DataFrame(sorted(rows), columns=columns)


def assign_parts(
    index, seed, by="image", fraction=0.2, smoke=False, smoke_share=1.0, stratify=True
):
    """Says for each image what it is used for (the report's Fig. 1).

    A fifth of Kaggle's train folder becomes the validation set, drawn with the same share of
    each of the three classes, so that stages with two and with three classes share one split.
    Kaggle's own val folder stays out ("unused"): 16 images, none of them viral, are too few to
    stop a training by, and adding them would no longer be the report's 20%.

    Args:
        index: DataFrame of `read_index`.
        seed: integer; the same seed gives the same parts on any machine.
        by: "image" as the report draws, or "patient": all images of a patient on one side.
        fraction: share of the images, or of the patients, in Kaggle's train folder.
        smoke: keep only SMOKE images of each part, the others become "unused".
        smoke_share: of the smoke profile's images, for stages that are slow per image.
        stratify: False to draw images without a look at their class; the report does not say.

    Returns:
        Series of "train", "validation", "test" or "unused", indexed as `index`.
    """
    part = index["split"].map({"train": "train", "val": "unused", "test": "test"})
    pool = index[index["split"] == "train"]
    if by == "patient":
        # Every patient has one class, so patients can be drawn as images are. (The folds of
        # StratifiedGroupKFold would differ between versions of scikit-learn.)
        patients = pool.groupby("patient")["class3"].first()
        _, chosen = train_test_split(
            patients.index, test_size=fraction, stratify=patients, random_state=seed
        )
        part[pool.index[pool["patient"].isin(chosen)]] = "validation"
    elif by == "image":
        _, chosen = train_test_split(
            pool.index,
            test_size=fraction,
            stratify=pool["class3"] if stratify else None,
            random_state=seed,
        )
        part[chosen] = "validation"
    else:
        raise CxrError(f"by is {by!r}: say image or patient.")
    for name, images in SMOKE.items() if smoke else ():
        rows, most = index[part == name], round(images * smoke_share)
        if len(rows) > most:
            _, dropped = train_test_split(
                rows.index, train_size=most, stratify=rows["class3"], random_state=seed
            )
            part[dropped] = "unused"
    return part.rename("part")


# --- 4. Packed images ---------------------------------------------------------------------

PACK_VERSION = 2
MOST_PIXELS = 60_000_000  # the largest original has 5 million; more is a mistake or a bomb
LEAST_SIDE = 32


@dataclasses.dataclass(frozen=True)
class Images:
    """The whole set, decoded and resized once.

    Attributes:
        index: DataFrame of `read_index`, and of each original: width, height (pixels), mode.
        pixels: memory-mapped uint8, (images, 224, 224) if the three channels are equal
            everywhere, else (images, 224, 224, 3); row i belongs to row i of `index`.
        source: "kaggle", "folder" or "phantom".
        label: names the set in folder names: "kaggle", "phantom" or the folder's own name.
        fingerprint: SHA-256 of names and pixels: the same images have the same one anywhere.
        root: folder of the originals, or None in a Colab session that found the packed file.
        examples: folder with one original per class, kept beside the packed file.
    """

    index: pd.DataFrame
    pixels: np.memmap
    source: str
    label: str
    fingerprint: str
    root: Path | None
    examples: Path

    @property
    def name(self):
        """The source in words, with no path of this machine."""
        names = {"kaggle": f"Kaggle, {KAGGLE_HANDLE}", "phantom": "phantoms (not X-rays)"}
        return names.get(self.source, f"the folder {self.label}")

    def read(self, numbers):
        """uint8 pixels of some rows, in memory. Mapped anew each time, unlike `pixels`: what a
        map has touched counts as this process's memory for as long as it is open."""
        return np.memmap(self.pixels.filename, np.uint8, "r", shape=self.pixels.shape)[numbers]

    @property
    def resized(self):
        """Whether the set is a copy that somebody already brought to 224 x 224."""
        return bool((self.index[["width", "height"]] == SIDE).all(axis=None))


def read_image(path):
    """Decodes one image as `keras.utils.load_img(path, target_size=(224, 224),
    interpolation="nearest")` does (report, section I).

    Returns:
        (pixels, size, mode): uint8 (224, 224) where the three channels are equal, else
        (224, 224, 3); (width, height) and Pillow's mode of the original.

    Raises:
        CxrError, OSError and others: the file cannot be used; the message says why.
    """
    with Image.open(path) as image:
        width, height = image.size
        if width * height > MOST_PIXELS:
            raise CxrError(f"{width} x {height} pixels: too large for an X-ray, not decoded")
        if min(width, height) < LEAST_SIDE:
            raise CxrError(f"{width} x {height} pixels: too small for an X-ray")
        if image.mode.startswith(("I", "F")):
            raise CxrError("more than 8 bits per channel, which load_img would cut off at 255")
        # Nearest neighbours first, then colours: the same pixels, for a tenth of the work.
        small = image.resize((SIDE, SIDE), Image.Resampling.NEAREST)
        pixels = np.asarray(small if small.mode == "L" else small.convert("RGB"))
        if pixels.ndim == 3 and (pixels == pixels[..., :1]).all():
            pixels = np.ascontiguousarray(pixels[..., 0])
        return pixels, (width, height), image.mode


def open_images(run):
    """Finds, checks and packs the images, or maps the file an earlier run packed.

    The packed file is found again by the names, sizes and times of the files it was made from;
    a downloaded set by its version alone, so that a new Colab session needs no download. It
    arrives complete or not at all.

    Returns:
        `Images`.

    Raises:
        CxrError: nothing found, or files that cannot be used (all of them, by name).
    """
    started = time.perf_counter()
    root, source = find_images(run, download=False)
    images = _open_pack(run, KAGGLE_KEY) if root is None else None
    if images is None:
        if root is None:
            root, source = find_images(run)
        index = read_index(root)
        fixed = {"kaggle": KAGGLE_KEY, "phantom": root.name}  # known without looking at files
        key = fixed.get(source) or _pack_key(root, index)
        images = _open_pack(run, key, root)
        if images is None:
            _pack(run, key, root, source, index)
            images = _open_pack(run, key, root)
    if images is None:
        raise CxrError(
            f"{run.cache} does not give back what is written to it: set CXR_OUT (the form field "
            "OUT) to a folder on another disk."
        )
    print(
        f"images   {len(images.index):,} from {images.name}, "
        f"fingerprint {images.fingerprint[:12]}\n"
        f"packed   {images.pixels.shape} uint8, {images.pixels.nbytes / 1e6:.0f} MB, "
        f"ready in {time.perf_counter() - started:.1f} s"
    )
    return images


def _pack_key(root, index):
    digest = hashlib.sha256(f"{PACK_VERSION} {SIDE} nearest\n".encode())
    for file in index["file"]:
        try:
            facts = os.stat(root / file)
            digest.update(f"{file}\t{facts.st_size}\t{facts.st_mtime_ns}\n".encode())
        except OSError as error:  # a broken link: reported by name when it is read
            digest.update(f"{file}\t{error.strerror}\n".encode())
    return digest.hexdigest()[:16]


def _pack_paths(folder, key):
    """The packed file, its sidecar (written last: only then is it there), the examples."""
    name = f"images-v{PACK_VERSION}-{key}"
    return folder / f"{name}.uint8", folder / f"{name}.json", folder / f"{name}-examples"


def _open_pack(run, key, root=None):
    """The packed set of this key, checked; None where there is none or it is damaged."""
    packed, sidecar, examples = _pack_paths(run.cache, key)
    if run.mirror:
        run.mirror.get(
            sidecar,
            lambda facts: {
                packed: facts["crc32"],
                **{examples / name: crc for name, crc in facts["examples"].items()},
            },
        )
    try:
        facts = read_json(sidecar)
        pixels = np.memmap(packed, np.uint8, "r", shape=tuple(facts["shape"]))
        if packed.stat().st_size != pixels.nbytes or _checksums(packed)[0] != facts["crc32"]:
            raise ValueError("its content is not what was written")
        for name, crc in facts["examples"].items():
            if _checksums(examples / name)[0] != crc:
                raise ValueError(f"the example {name} is not what was written")
        return Images(
            pd.DataFrame(facts["index"]), pixels, facts["source"], facts["label"],
            facts["fingerprint"], root, examples,
        )  # fmt: skip
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, CxrError) as error:
        print(f"The packed file {shown(packed)} is damaged ({error}): packing the images again.")
        sidecar.unlink(missing_ok=True)
        return None


def _checksums(path, digest=None):
    """(CRC-32, digest) of a file, read piece by piece: mapping it would fill the memory."""
    crc = 0
    with open(path, "rb") as file:
        while piece := file.read(1 << 22):
            crc = zlib.crc32(piece, crc)
            if digest:
                digest.update(piece)
    return crc, digest


def _pack(run, key, root, source, index):
    """Reads every file of `index` and writes the packed file, the examples, the sidecar."""
    packed, sidecar, examples = _pack_paths(run.cache, key)
    room = len(index) * SIDE * SIDE
    if shutil.disk_usage(run.cache).free < room:
        raise CxrError(
            f"Packing the images takes {room / 1e6:.0f} MB in {run.cache}, more than is free. "
            "Free some, or set CXR_OUT to a folder on a larger disk."
        )

    def read(file):
        try:
            return read_image(root / file)
        except Exception as error:  # Pillow raises many kinds; each file's is reported
            reason = str(error).replace(str(root / file), "the file").replace("\n", " ")
            return f"{file}: {reason or type(error).__name__}"

    broken, originals, colour = [], [], False
    with (
        atomic(packed) as part,
        open(part, "wb+") as file,
        ThreadPoolExecutor(max(2, min(8, os.cpu_count() or 2))) as pool,
        progress(range(len(index)), "packing images") as bar,
    ):
        for start in range(0, len(index), 256):  # a few at a time: memory stays flat
            for result in pool.map(read, index["file"][start : start + 256]):
                bar.update()
                if isinstance(result, str):
                    broken.append(result)
                elif not broken:
                    pixels, size, mode = result
                    if pixels.ndim == 3 and not colour:
                        _widen(file, len(originals))
                        colour = True
                    file.write(three_channels(pixels) if colour else pixels)
                    originals.append((*size, mode))
        if broken:
            raise CxrError(
                f"{len(broken)} of {len(index)} files in {root} cannot be used:\n"
                + "\n".join(f"  {line}" for line in broken)
                + "\nFetch them anew (data/README.md), or move them out of the folder."
            )
    names = hashlib.sha256("\n".join(index["file"]).encode())
    crc, content = _checksums(packed, names)
    index = index.join(pd.DataFrame(originals, columns=["width", "height", "mode"]))
    kept = {}
    for label in CLASSES[3]:
        rows = index[(index["class3"] == label) & (index["split"] == "train")]
        for file in rows["file"][:1]:
            name = f"{label}{Path(file).suffix}"
            with atomic(examples / name) as part:
                shutil.copyfile(root / file, part)
            kept[name] = _checksums(examples / name)[0]
    facts = {
        "source": source,
        "label": root.name if source == "folder" else source,
        "fingerprint": content.hexdigest(),
        "crc32": crc,
        "examples": kept,
        "shape": (len(index), SIDE, SIDE) + ((3,) if colour else ()),
        "index": index.to_dict("list"),
    }
    write_json(sidecar, facts)
    if run.mirror:
        run.mirror.put(packed, *examples.glob("*"), sidecar)


def three_channels(pixels):
    """One packed image as (224, 224, 3), uint8."""
    return pixels if pixels.ndim == 3 else np.repeat(pixels[..., None], 3, axis=-1)


def _widen(file, count):
    """Widens the first `count` grey images of an open file in place, from the last one back."""
    for row in reversed(range(count)):
        file.seek(row * SIDE * SIDE)
        grey = np.frombuffer(file.read(SIDE * SIDE), np.uint8).reshape(SIDE, SIDE)
        file.seek(row * SIDE * SIDE * 3)
        file.write(three_channels(grey))
    file.seek(count * SIDE * SIDE * 3)


def original_sizes(images):
    """Sizes of the originals: the set's own, or, where the set is a resized copy, those of the
    files in data/originals (same layout, any number of files; optional).

    Returns:
        DataFrame with the columns class3, width, height (pixels) and path; empty where there
        are no originals. `path` is None where a later Colab session has the packed file only.
    """
    if not images.resized:
        table = images.index[["class3", "width", "height"]]
        return table.assign(path=[images.root and images.root / f for f in images.index["file"]])
    rows = []
    for path in sorted(ORIGINALS.rglob("*.*")):
        if parsed := parse_name(path.parent.name, path.name):
            with Image.open(path) as image:
                rows.append((parsed[0], *image.size, path))
    return pd.DataFrame(rows, columns=["class3", "width", "height", "path"])


def original_file(images, label):
    """Path of one original of a class; of the set's own file where there are no originals."""
    table = original_sizes(images)
    for path in table.loc[table["class3"] == label, "path"]:
        if path is not None:
            return path
    return next(images.examples.glob(f"{label}.*"))


def identical_images(images):
    """The images that have an identical twin, pixel by pixel.

    Returns:
        The rows of `images.index` with a column `group` (a number from 0), sorted by it.
    """
    content = pd.Series(
        [hashlib.sha256(images.read(n)).hexdigest() for n in range(len(images.pixels))]
    )
    twins = images.index[content.duplicated(keep=False).to_numpy()]
    group = pd.factorize(content[twins.index])[0]
    return twins.assign(group=group).sort_values(["group", "file"])


# --- 5. Pipelines -------------------------------------------------------------------------


class EpochOrder:
    """The order of the images in each epoch, from the seed and the epoch's number alone.

    A resumed run therefore goes on in the order it would have had.
    """

    def __init__(self, count, seed):
        self.count, self.seed, self.epoch = count, seed, 0

    def flips(self):
        """Which images the coming epoch flips: int64 0 or 1, (count,)."""
        if self.seed is None:
            return np.zeros(self.count, np.int64)
        return np.random.default_rng([self.seed, self.epoch, 1]).integers(0, 2, self.count)

    def next(self):
        """A permutation of range(count), int64; then moves on to the next epoch."""
        if self.seed is None:
            return np.arange(self.count)
        order = np.random.default_rng([self.seed, self.epoch]).permutation(self.count)
        self.epoch += 1
        return order


def make_dataset(images, rows, classes, batch_size, shuffle_seed=None):
    """Batches from the packed file; only the batches under way are ever in memory as floats.

    Args:
        images: `Images`.
        rows: the rows of `images.index` to use, in this order.
        classes: 2 or 3.
        batch_size: images per batch; the last one may be smaller.
        shuffle_seed: integer for a new order every epoch, None to keep the order.

    Returns:
        tf.data.Dataset of (float32 (batch, 224, 224, 3) in [0, 1], one-hot float32 (batch,
        classes)). Its attribute `order` (`EpochOrder`) says which epoch comes next, and
        `fingerprint` what it is made of.
    """
    numbers = rows.index.to_numpy()
    labels = one_hot(rows, classes)
    order = EpochOrder(len(rows), shuffle_seed)

    def batches():
        chosen = order.next()
        for start in range(0, len(chosen), batch_size):
            batch = chosen[start : start + batch_size]
            yield images.read(numbers[batch]), labels[batch]

    def scale(pixels, label):
        floats = tf.cast(pixels, tf.float32) / 255.0
        if images.pixels.ndim == 3:
            floats = tf.image.grayscale_to_rgb(floats[..., tf.newaxis])
        return floats, label

    dataset = tf.data.Dataset.from_generator(
        batches,
        output_signature=(
            tf.TensorSpec((None, *images.pixels.shape[1:]), tf.uint8),
            tf.TensorSpec((None, classes), tf.float32),
        ),
    )
    dataset = dataset.apply(tf.data.experimental.assert_cardinality(-(-len(rows) // batch_size)))
    dataset = dataset.prefetch(2).map(scale).prefetch(1)
    dataset.order = order
    content = f"{batch_size} {shuffle_seed} {classes} {','.join(rows['file'])}"
    dataset.fingerprint = hashlib.sha256(content.encode()).hexdigest()[:16]
    return dataset


def one_hot(rows, classes):
    """The classes of `rows` as float32 (images, classes), in the order of CLASSES[classes]."""
    numbers = pd.Categorical(rows[f"class{classes}"], CLASSES[classes]).codes
    return keras.utils.to_categorical(numbers, classes).astype("float32")


# --- 6. Models and training ---------------------------------------------------------------


def strategy(devices=None):
    """How training is spread: over all GPUs where there are two or more, over a TPU's cores,
    else not at all. Build and compile a model inside `with utils.strategy().scope():`.

    Args:
        devices: names of devices to use instead, for instance ["CPU:0", "CPU:1"].

    Returns:
        A tf.distribute.Strategy.
    """
    kinds = [device.device_type for device in accelerators()]
    if devices or kinds.count("GPU") > 1:
        return tf.distribute.MirroredStrategy(devices)
    if "TPU" in kinds or "TPU_WORKER_HOSTNAMES" in os.environ:
        resolver = tf.distribute.cluster_resolver.TPUClusterResolver(tpu="local")
        tf.config.experimental_connect_to_cluster(resolver)
        tf.tpu.experimental.initialize_tpu_system(resolver)
        return tf.distribute.TPUStrategy(resolver)
    return tf.distribute.get_strategy()


def cnn_1_layers(classes, dropout, seed):
    """The layers of CNN_1 after its input and flip (report, Figs. 3 and 11)."""
    layers = keras.layers
    return [
        layers.Conv2D(32, 3, activation="relu"),
        layers.MaxPooling2D(),
        layers.Conv2D(64, 3, activation="relu"),
        layers.MaxPooling2D(),
        layers.Conv2D(128, 3, activation="relu"),
        layers.MaxPooling2D(),
        layers.Flatten(),
        layers.Dropout(dropout, seed=seed),
        layers.Dense(classes, activation="softmax"),
    ]


def build_cnn_1(classes, dropout, seed, augmentation="flip"):
    """CNN_1 (report, Fig. 3): float32 (batch, 224, 224, 3) in [0, 1] to probabilities.

    Args:
        classes: 2 (266,306 parameters) or 3 (352,835).
        dropout: rate before the dense layer; the report does not give it.
        seed: of the initial weights, the augmentation and the dropout.
        augmentation: "flip" as the report settled on, or one it tried: "zoom", "contrast",
            or "none".

    Returns:
        An uncompiled keras.Sequential.
    """
    keras.utils.set_random_seed(seed)
    augment = {
        "flip": lambda: [keras.layers.RandomFlip("horizontal", seed=seed)],
        "zoom": lambda: [keras.layers.RandomZoom(0.1, seed=seed)],
        "contrast": lambda: [keras.layers.RandomContrast(0.1, value_range=(0, 1), seed=seed)],
        "none": list,
    }[augmentation]()
    return keras.Sequential(
        [keras.Input((SIDE, SIDE, 3)), *augment, *cnn_1_layers(classes, dropout, seed)]
    )


def build_inception(run, rescale=False):
    """InceptionV3 without its top, frozen and in inference mode (report, section III b).

    Args:
        run: `Run`; its setting `inception` says which weights.
        rescale: whether [0, 1] becomes the [-1, 1] the network was trained on. The report
            feeds [0, 1].

    Returns:
        (model, weights): a frozen keras.Model, float32 (batch, 224, 224, 3) to (batch, 5, 5,
        2048), 21,802,784 parameters; and in words which weights it has.

    Raises:
        CxrError: the weights cannot be downloaded, or the file is not there or does not fit.
    """
    imagenet = run.inception == "imagenet"
    said = {"imagenet": "ImageNet's weights", "random": "random weights, never trained"}.get(
        run.inception, f"the weights file {Path(run.inception).name}"
    )
    keras.utils.set_random_seed(run.seed)
    try:
        base = keras.applications.InceptionV3(
            include_top=False, weights="imagenet" if imagenet else None, input_shape=(SIDE, SIDE, 3)
        )
        if not imagenet and run.inception != "random":
            base.load_weights(Path(run.inception).expanduser())
    except Exception as error:  # a download fails in as many ways as the network has
        raise CxrError(
            f"InceptionV3 did not get {said} ({type(error).__name__}: {str(error)[:200]}). "
            "Without a way to the download, set CXR_INCEPTION_WEIGHTS (the form field "
            "INCEPTION_WEIGHTS) to a weights file of InceptionV3(include_top=False)."
        ) from error
    base.trainable = False
    inputs = keras.Input((SIDE, SIDE, 3))
    scaled = keras.layers.Rescaling(2, offset=-1)(inputs) if rescale else inputs
    model = keras.Model(inputs, base(scaled, training=False), name="inception_v3")
    model.trainable = False
    return model, said


def layer_table(model):
    """The layers as the report's summaries list them.

    Returns:
        DataFrame: layer (class), output shape (without the batch), parameters.
    """
    shape = model.input_shape
    rows = [("InputLayer", tuple(shape[1:]), 0)]
    for layer in model.layers:
        if not isinstance(layer, keras.layers.InputLayer):
            shape = layer.compute_output_shape(shape)
            rows.append((type(layer).__name__, tuple(shape[1:]), layer.count_params()))
    return pd.DataFrame(rows, columns=["layer", "output shape", "parameters"])


def parameter_counts(model):
    """(all, trainable, frozen) parameters of a model."""
    trainable = sum(int(np.prod(w.shape)) for w in model.trainable_weights)
    return model.count_params(), trainable, model.count_params() - trainable


def _settings(run, images, model, train_data, validation_data, epochs, early, extra):
    """All a training's result depends on, as JSON: two trainings with the same are the same."""

    def nameless(config):
        if isinstance(config, dict):
            skip = ("name", "build_config", "registered_name", "module")
            return {k: nameless(v) for k, v in config.items() if k not in skip}
        return [nameless(v) for v in config] if isinstance(config, (list, tuple)) else config

    settings = {
        "seed": run.seed,
        "profile": run.profile,
        "data": images.fingerprint,
        "train": train_data.fingerprint,
        "validation": validation_data.fingerprint,
        "layers": [
            [type(layer).__name__, layer.count_params()]
            + ([] if isinstance(layer, keras.Model) else [nameless(layer.get_config())])
            for layer in model.layers
        ],
        "optimizer": [type(model.optimizer).__name__, nameless(model.optimizer.get_config())],
        "loss": model.loss if isinstance(model.loss, str) else model.loss.name,
        "epochs": epochs,
        "stop": {"monitor": early.monitor, "patience": early.patience,
                 "min_delta": abs(float(early.min_delta))},
        **extra,
    }  # fmt: skip
    return json.loads(json.dumps(settings, default=str))


class _Follow(keras.callbacks.Callback):
    """Adds `test_accuracy` to every epoch's record, for a look back at the stopping rules.

    Nothing in the training sees it. Comes before `_Resume`, which keeps the record.
    """

    def __init__(self, data):
        super().__init__()
        self.data = data

    def on_epoch_end(self, epoch, logs=None):
        logs["test_accuracy"] = self.model.evaluate(self.data, verbose=0, return_dict=True)[
            "accuracy"
        ]


class _Resume(keras.callbacks.Callback):
    """Keeps a training's whole state after every epoch, and goes on from it.

    One file holds the model's variables (random state included), the optimizer's, the best
    weights, early stopping's counters and the history; it arrives in one step, and zip's
    checksums tell whether it is whole. Comes after EarlyStopping in the list of callbacks.
    """

    def __init__(self, path, settings, early, order, epochs, mirror=None):
        super().__init__()
        self.mirror = mirror
        self.path, self.settings, self.early, self.order = path, settings, early, order
        self.epochs, self.rows, self.stopped, self.best = epochs, [], False, None
        self.bar = None

    def load(self, model):
        """Puts the kept state into `model`; False where there is none of these settings."""
        try:
            with zipfile.ZipFile(self.path) as whole:  # each array is checked to its last byte
                if name := whole.testzip():
                    raise zipfile.BadZipFile(f"bad CRC-32 of {name}")
            with np.load(self.path, allow_pickle=False) as state:
                meta = json.loads(state["meta"].tobytes())
                groups = {
                    group: [state[f"{group}_{number}"] for number in range(count)]
                    for group, count in meta["counts"].items()
                }
        except FileNotFoundError:
            return False
        except Exception as error:  # a damaged zip raises nearly anything
            print(f"{shown(self.path)} is damaged ({error}): training starts anew.")
            return False
        if changed := _differences(meta["settings"], self.settings):
            print(f"An unfinished training had other settings ({changed}): training starts anew.")
            return False
        model.optimizer.build(model.trainable_variables)
        for variables, values in (
            (model.variables, groups["model"]),
            (model.optimizer.variables, groups["optimizer"]),
        ):
            for variable, value in zip(variables, values, strict=True):
                variable.assign(value)
        self.rows, self.stopped, self.best = meta["history"], meta["stopped"], meta["early"]
        self.best["best_weights"] = groups["best"]
        return True

    def on_train_begin(self, logs=None):
        for name, value in (self.best or {}).items():
            setattr(self.early, name, value)

    def on_epoch_begin(self, epoch, logs=None):
        self.order.epoch = epoch
        self.began = time.perf_counter()
        self.bar = progress(range(self.params["steps"]), f"epoch {epoch + 1}", "batch", keep=False)

    def on_train_batch_end(self, batch, logs=None):
        self.bar.update()

    def on_epoch_end(self, epoch, logs=None):
        self.bar.close()
        row = {name: float(value) for name, value in logs.items()}
        seconds = round(time.perf_counter() - self.began, 2)
        self.rows.append({"epoch": epoch + 1, **row, "seconds": seconds})
        self.stopped = bool(self.model.stop_training)
        left = (self.epochs - epoch - 1) * seconds / 60
        print(_epoch_line(self.rows[-1]), end="  ")
        print("stop" if self.stopped or not left else f"at most {left:.0f} min left")
        self.save()

    def save(self):
        names = ("wait", "best", "best_epoch", "stopped_epoch")
        groups = {
            "model": [variable.numpy() for variable in self.model.variables],
            "optimizer": [variable.numpy() for variable in self.model.optimizer.variables],
            "best": list(self.early.best_weights),
        }
        meta = {
            "settings": self.settings,
            "history": self.rows,
            "stopped": self.stopped,
            "early": {name: json.loads(json.dumps(getattr(self.early, name), default=float))
                      for name in names},
            "counts": {group: len(values) for group, values in groups.items()},
        }  # fmt: skip
        arrays = {
            f"{g}_{n}": value for g, values in groups.items() for n, value in enumerate(values)
        }
        arrays["meta"] = np.frombuffer(json.dumps(meta).encode(), np.uint8)
        with atomic(self.path) as part, open(part, "wb") as file:
            np.savez(file, allow_pickle=False, **arrays)
        if self.mirror:
            self.mirror.put(self.path, soon=False)


def _epoch_line(row):
    return (
        f"epoch {row['epoch']:2d}  {row['seconds']:4.0f} s  loss {row['loss']:.3f}  accuracy "
        f"{row['accuracy']:.3f}  validation loss {row['val_loss']:.3f}  "
        f"accuracy {row['val_accuracy']:.3f}"
    )


def _differences(old, new):
    """The names of the settings that differ, for a message."""
    return ", ".join(sorted(k for k in old.keys() | new.keys() if old.get(k) != new.get(k)))


def train(
    run, stage, images, model, train_data, validation_data, epochs, early,
    whole=None, retrain=False, published=False, follow=None, **extra,
):  # fmt: skip
    """`model.fit` that survives: a killed training goes on after its last finished epoch, and a
    finished one is not repeated. Afterwards the model has the weights of its best epoch.

    Args:
        run: `Run`.
        stage: name of the stage's folder.
        images: `Images`.
        model: compiled, with the metric accuracy.
        train_data, validation_data: of `make_dataset`.
        epochs: most epochs; in the smoke profile 2.
        early: a fresh keras.callbacks.EarlyStopping.
        whole: the assembled model that is saved, where `model` is only its head and shares
            its layers (stages 4 and 5).
        retrain: train anew even if the stage is finished.
        published: take the published weights instead of training.
        follow: a dataset of the test images, whose accuracy after every epoch is then noted as
            `test_accuracy`. It is for describing the report's choices, never for making one.
        extra: anything else the result depends on, kept in run.json.

    Returns:
        (history, settings): a DataFrame with one row per epoch (epoch from 1, loss, accuracy,
        val_loss, val_accuracy, seconds), and what the training depended on, for `save_stage`.

    Raises:
        CxrError: the stage was finished with other settings, or holds a training of your own
            that published weights would replace.
    """
    epochs = min(epochs, 2) if run.smoke else epochs
    folder = run.out / stage
    settings = _settings(run, images, model, train_data, validation_data, epochs, early, extra)
    if published:
        own = finished(run, stage) and "published" not in Stage(folder).facts["settings"]
        if own or (folder / "training.npz").exists():
            raise CxrError(
                f"{shown(folder)} holds a training of your own. Untick PUBLISHED to go on with "
                "it, or set CXR_OUT to another folder to look at the published one."
            )
        done = published_stage(stage, images)
        done.load_weights(whole or model)
        return done.history, {**settings, "published": done.facts["settings"]}
    if retrain:
        shutil.rmtree(folder, ignore_errors=True)
        if run.mirror:
            run.mirror.forget(folder)
    if finished(run, stage):
        done = Stage(folder)
        if changed := _differences(done.facts["settings"], settings):
            raise CxrError(
                f"{shown(folder)} holds a training with other settings ({changed}). Tick RETRAIN "
                "to replace it, or set CXR_OUT to another folder to keep both."
            )
        done.load_weights(whole or model)
        print(f"{stage} is trained already ({len(done.history)} epochs): its weights are loaded.")
        print("\n".join(_epoch_line(row) for row in done.history.to_dict("records")))
        return done.history, settings
    state = _Resume(folder / "training.npz", settings, early, train_data.order, epochs, run.mirror)
    if state.load(model):
        print(f"Going on after epoch {len(state.rows)} of a training that was interrupted.")
    if not state.stopped and len(state.rows) < epochs:
        model.fit(
            train_data,
            validation_data=validation_data,
            epochs=epochs,
            initial_epoch=len(state.rows),
            callbacks=[early, *([_Follow(follow)] if follow is not None else []), state],
            shuffle=False,  # the data shuffles itself
            verbose=0,
        )
        best = early.best_weights
    else:
        best = state.best["best_weights"]
    model.set_weights(best)
    return pd.DataFrame(state.rows), settings


# --- 7. Stages: what a notebook leaves behind ---------------------------------------------

CHOICES = {"dropout": 0.2, "patience": 3, "stratified": True}  # what the report leaves open
RESULTS = PROJECT / "results"  # LABEL/seed-N/STAGE: the small files of the published runs
WEIGHTS = PROJECT / "weights"  # seed-N/STAGE.weights.h5 of published runs
STAGE_FILES = ("model.weights.h5", "history.csv", "predictions.csv")


def stage_name(stage, **choices):
    """The folder name of a stage: other choices than CHOICES are part of it, so that runs with
    different ones are kept apart ("05_cnn1_transfer-dropout-0.5-patience-10")."""
    words = [stage]
    for name, usual in CHOICES.items():
        value = choices.get(name, usual)
        if value != usual:
            words.append(f"{name}-{value:g}" if name != "stratified" else "unstratified")
    return "-".join(words)


def predict(model, images, rows, classes, batch_size=64):
    """The model's probabilities, from pixels.

    Returns:
        DataFrame, one line per row: file, part, patient, true (class name), and a float column
        of probabilities for each class, named after it.
    """
    probabilities = model.predict(make_dataset(images, rows, classes, batch_size), verbose=0)
    return prediction_table(rows, classes, probabilities)


def prediction_table(rows, classes, probabilities):
    """`predict`'s table from probabilities, float (images, classes), of `rows`."""
    table = rows[["file", "part", "patient"]].assign(true=rows[f"class{classes}"])
    values = pd.DataFrame(probabilities, index=rows.index, columns=list(CLASSES[classes]))
    return table.join(values.astype("float64").round(6)).reset_index(drop=True)


def save_stage(run, stage, images, model=None, history=None, predictions=None, **facts):
    """Writes what a stage leaves behind; `run.json` last: a stage is there when it is.

    A finished stage of the same settings is left as it is, unless a file of it is damaged.

    Args:
        run: `Run`.
        stage: name of the folder, for instance "02_cnn1_2class".
        images: `Images`.
        model, history, predictions: written as model.weights.h5, history.csv, predictions.csv.
        facts: settings, metrics and what else the stage has to say; anything JSON can hold.
    """
    folder = run.out / stage
    if run.mirror and model is None:  # tables alone are made anew each time
        run.mirror.known.add(folder)
    there = model is not None and (folder / "run.json").exists()
    done = Stage(folder) if there else None
    if done and done.facts["settings"] == facts["settings"] and done.is_whole():
        (folder / "training.npz").unlink(missing_ok=True)  # where a kill came just before this
        if run.mirror:
            run.mirror.put(folder / "training.npz", ended=True)
        return
    files = {}
    if model is not None:
        with atomic(folder / "model.weights.h5") as part:
            save_weights(model, part)
    for name, table in (("history.csv", history), ("predictions.csv", predictions)):
        if table is not None:
            with atomic(folder / name) as part:
                table.to_csv(part, index=False, lineterminator="\n")
    for name in STAGE_FILES:
        if (folder / name).exists():
            files[name] = _checksums(folder / name)[0]
    write_json(
        folder / "run.json",
        {
            "stage": stage,
            "seed": run.seed,
            "profile": run.profile,
            "data": {"source": images.source, "label": images.label, "name": images.name,
                     "images": len(images.index), "fingerprint": images.fingerprint},
            "versions": {"python": platform.python_version(), "tensorflow": tf.__version__,
                         "keras": keras.__version__, "numpy": np.__version__},
            "device": device_name(),
            "seconds": round(time.monotonic() - run.started, 1),
            "peak_mb": _peak_mb(),
            "files": files,
            **facts,
        },
    )  # fmt: skip
    (folder / "training.npz").unlink(missing_ok=True)
    if run.mirror:
        names = (*files, "run.json", "training.npz")
        run.mirror.put(*(folder / name for name in names), ended=True)
    print(f"saved in {_kept_in(run, folder)}")


def save_weights(model, path):
    """Saves a model's weights without its optimizer, which would triple the file."""
    copy = type(model).from_config(model.get_config())
    copy.set_weights(model.get_weights())
    named = Path(f"{path}.weights.h5")  # the only ending Keras takes
    weights = copy.get_weights()
    try:  # HDF5 can crash the whole process on a full disk: see first that there is room
        named.write_bytes(bytes(sum(w.nbytes for w in weights) + (len(weights) + 1) * 2**15))
        copy.save_weights(named)
        os.replace(named, path)
    finally:
        named.unlink(missing_ok=True)


def _peak_mb():
    """Peak memory of this process in MB, or None on Windows."""
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (2**20 if sys.platform == "darwin" else 2**10))


class Stage:
    """A finished stage in a folder, checked as it is read.

    Attributes:
        facts: the content of run.json.
        history, predictions: DataFrames, as `train` and `predict` returned them.

    Raises:
        CxrError: the stage is not there or a file of it is damaged.
    """

    def __init__(self, folder):
        self.folder = Path(folder)
        try:
            self.facts = read_json(self.folder / "run.json")
        except FileNotFoundError:
            raise CxrError(
                f"No finished stage in {shown(self.folder)}: run the notebook that makes it first."
            ) from None

    def _file(self, name):
        path = self.folder / name
        if name == "model.weights.h5" and RESULTS in path.parents:
            path = WEIGHTS / f"seed-{self.facts['seed']}" / f"{self.facts['stage']}.weights.h5"
        if not path.exists() or _checksums(path)[0] != self.facts["files"].get(name):
            delete = f"delete the folder {shown(self.folder)}"
            raise CxrError(f"{shown(path)} is missing or damaged: {_mended(path, delete)}.")
        return path

    def is_whole(self):
        """Whether every file is what was saved."""
        with contextlib.suppress(CxrError):
            return all(self._file(name) for name in self.facts["files"])
        return False

    @property
    def history(self):
        return pd.read_csv(self._file("history.csv"), float_precision="round_trip")

    @property
    def predictions(self):
        return pd.read_csv(self._file("predictions.csv"), float_precision="round_trip")

    def load_weights(self, model):
        """Loads the stage's weights into a model of the same layers."""
        path = self._file("model.weights.h5")
        bare = type(model).from_config(model.get_config())  # a compiled one expects an optimizer
        try:
            bare.load_weights(path)
        except ValueError as error:
            raise CxrError(
                f"{shown(path)} does not fit this model ({error}). Another version of the notebook "
                "made it: run that notebook again with RETRAIN ticked."
            ) from error
        model.set_weights(bare.get_weights())


def finished(run, stage):
    """Whether this run has the stage already. In Colab, a stage or the state of an unfinished
    training that Drive has and this machine has not is fetched first."""
    folder = run.out / stage
    if run.mirror:
        run.mirror.get(
            folder / "run.json",
            lambda facts: {folder / name: crc for name, crc in facts["files"].items()},
        )
        if not (folder / "run.json").exists():
            run.mirror.get(folder / "training.npz")
    return (folder / "run.json").exists()


def load_stage(run, stage, images, published=False):
    """An earlier stage's results, for a notebook that builds on them.

    Args:
        run: `Run`; profile, seed and folder must be those the stage ran with.
        stage: for instance "03_cnn1_3class".
        images: `Images`; the stage must have been trained on the same.
        published: where this run has no such stage, take the published one.

    Returns:
        `Stage`.

    Raises:
        CxrError: the stage is missing, damaged, or of other data, seed or profile; the message
            says which notebook to run.
    """
    folder = run.out / stage
    notebook = stage.split("-")[0]  # a trial's stage is named after its notebook
    if not finished(run, stage):
        if published:
            return published_stage(stage, images)
        raise CxrError(
            f"{stage} has not been run: {shown(folder)} is not there. Run notebook {notebook} "
            f"first, with profile {run.profile} and seed {run.seed}, or tick PUBLISHED."
        )
    found = Stage(folder)
    wanted = {"seed": run.seed, "profile": run.profile, "data": images.fingerprint}
    has = {**found.facts, "data": found.facts["data"]["fingerprint"]}
    for name, value in wanted.items():
        if has[name] != value:
            raise CxrError(
                f"{stage} in {shown(folder)} was run with {name} {str(has[name])[:12]}, this "
                f"notebook with {str(value)[:12]}. Run notebook {notebook} again with RETRAIN "
                "ticked, or set CXR_OUT to another folder."
            )
    print(f"{stage}: loaded from {shown(folder)}")
    return found


def _published(stage, seed="*"):
    """The published runs of a stage on all sets of images, as `Stage`; * stands for anything."""
    return [Stage(path.parent) for path in sorted(RESULTS.glob(f"*/seed-{seed}/{stage}/run.json"))]


def published_stage(stage, images):
    """The published run with seed 0 of a stage, the one whose weights are in weights/ first.

    Raises:
        CxrError: nothing is published of this stage, or the images are phantoms.
    """
    if images.source == "phantom":
        raise CxrError("What is published is about X-rays, not phantoms: untick PUBLISHED.")
    found = _published(stage, seed=0)
    if not found:
        raise CxrError(f"Nothing is published of {stage}: untick PUBLISHED and train.")

    def has_weights(one):
        path = WEIGHTS / "seed-0" / f"{stage}.weights.h5"
        return path.exists() and _checksums(path)[0] == one.facts["files"]["model.weights.h5"]

    best = max(found, key=has_weights)
    facts = best.facts
    print(f"{stage}: as published, trained on {facts['data']['name']} with seed {facts['seed']}")
    return best


def published_runs(stage):
    """The published runs of a stage, one row per set of images and seed.

    Returns:
        DataFrame with the columns data, seed, epochs and the stage's measures on the test images
        ("accuracy", "recall normal", ...) and on the validation images ("validation accuracy",
        ...), 0 to 1; empty where nothing is published.
    """
    rows = []
    for found in _published(stage):
        row = {"data": found.facts["data"]["label"], "seed": found.facts["seed"],
               "epochs": len(found.history)}  # fmt: skip
        for part, prefix in (("metrics", ""), ("validation", "validation ")):
            for name, value in found.facts.get(part, {}).items():
                if isinstance(value, dict):
                    row |= {f"{prefix}{name} {label}": of for label, of in value.items()}
                else:
                    row[prefix + name] = value
        rows.append(row)
    return pd.DataFrame(rows)


def published_histories(stage):
    """The epochs of the published runs of a stage: `train`'s history of each, one below the
    other, with the columns data and seed; an empty DataFrame where nothing is published."""
    tables = [
        found.history.assign(data=found.facts["data"]["label"], seed=found.facts["seed"])
        for found in _published(stage)
    ]
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()


COMBINATION = ["data", "seed", "dropout", "stratified", "patience", "weights"]


def open_choices(stage):
    """What a stage's published runs would have reached under other choices of what the report
    leaves open. A smaller patience stops earlier on the same path, so one run with a large
    patience tells about all smaller ones; one past its stop, about those it is long enough for.

    Returns:
        DataFrame with the columns data, seed, dropout, stratified, patience, weights (of the
        "best" or the "last" epoch), epoch (whose weights these are, from 1) and accuracy (on the
        test images). A run whose test accuracy was not followed tells about itself alone.
    """
    rows = []
    for found in _published(f"{stage}*"):
        choices = {**CHOICES, **found.facts.get("choices", {})}
        past = found.folder.name == f"{stage}-past"
        if not past and found.folder.name != stage_name(stage, **choices):
            continue  # a trial
        history = found.history
        for patience in (p for p in (2, 3, 5, 10) if p <= choices["patience"]):
            last, best = stopping_epoch(history["val_loss"], patience)
            if past and last - best < patience:
                continue  # it would have gone on
            for weights, epoch in (("best", best), ("last", last)):
                if "test_accuracy" in history:
                    accuracy = history["test_accuracy"][epoch - 1]
                elif (patience, weights) == (choices["patience"], "best"):
                    accuracy = found.facts["metrics"]["accuracy"]
                else:
                    continue
                rows.append({
                    "data": found.facts["data"]["label"], "seed": found.facts["seed"], **choices,
                    "patience": patience, "weights": weights, "epoch": epoch, "accuracy": accuracy,
                })  # fmt: skip
    table = pd.DataFrame(rows)  # a run with patience 3 is the beginning of the one with 10
    return table.drop_duplicates(COMBINATION).reset_index(drop=True) if rows else table


def stopping_epoch(losses, patience):
    """(last, best): the epoch, from 1, at which early stopping ends on these validation losses,
    and the epoch of the lowest one until then."""
    best = 0
    for epoch, loss in enumerate(losses):
        best = epoch if loss < losses[best] else best
        if epoch - best >= patience:
            break
    return epoch + 1, best + 1


def open_choices_said(choices, reported):
    """In words, how far a reported accuracy lies inside `open_choices`."""
    values = choices["accuracy"]
    above = (values >= reported).mean()
    words = [
        f"{len(values)} combinations of choice and seed ({choices['seed'].nunique()} seeds): "
        f"{values.min():.1%} to {values.max():.1%}, median {values.median():.1%}; "
        f"{above:.0%} of them reach the report's {reported:.0%}."
    ]
    for name in COMBINATION[1:]:
        rest = [other for other in COMBINATION if other != name]
        pairs = choices.pivot_table(index=rest, columns=name, values="accuracy").dropna()
        if pairs.shape[1] > 1 and len(pairs):  # only combinations that were run with each of them
            means = ", ".join(f"{value} {mean:.1%}" for value, mean in pairs.mean().items())
            words.append(f"  mean by {name}: {means}")
    return "\n".join(words)


def claims_table(run, images, claims):
    """The *Against the report* table: this run beside the published runs (results/claims.csv,
    which states its rules in results/claims.md).

    Args:
        run: `Run`.
        images: `Images`; where runs on several sets are published, those on this one are shown.
        claims: dict from claim id to what this run found, in words; or to (words, verdict),
            where this run alone decides: True, False, or None ("cannot be tested here").

    Returns:
        DataFrame indexed by claim id: report, this run, published runs, verdict.
    """
    words = {True: "reproduced", False: "not reproduced", None: "cannot be tested here"}
    ledger = pd.read_csv(RESULTS / "claims.csv", keep_default_na=False)
    if (ledger["data"] == images.label).any():
        ledger = ledger[ledger["data"] == images.label]
    ledger = ledger.drop_duplicates("claim").set_index("claim")
    rows = {}
    for claim, found in claims.items():
        said = ledger.loc[claim]
        found, verdict = found if isinstance(found, tuple) else (found, said["verdict"])
        if run.data == "phantom":
            verdict = "none: phantoms"
        rows[claim] = {
            "report": said["report"],
            "this run": found,
            "published runs": said["ours"],
            "verdict": words.get(verdict, verdict),
        }
    return pd.DataFrame(rows).T.rename_axis("claim")


# --- 8. Frozen features -------------------------------------------------------------------

FEATURE_BLOCK = 32  # images per block
FEATURE_RECORD = 10  # blocks between two writes of the checksums: what a kill costs at most


@dataclasses.dataclass(frozen=True)
class Features:
    """What a frozen network makes of every image, as it is and flipped left to right.

    The frozen part of stages 4 and 5 sees only these two versions of an image. They are
    computed once; an epoch then draws one of the two per image: the same training as with the
    frozen part inside the model.

    Attributes:
        path: float16 file (images, 2, *shape); version 1 is the flipped one.
        rows: the rows of `images.index` it holds, in its order.
        shape: of one image's features.
        key: names what made it: frozen weights and layers, images, scaling.
    """

    path: Path
    rows: pd.DataFrame
    shape: tuple
    key: str

    def read(self, positions, flipped):
        """float16 (batch, *shape). Mapped anew each time: pages held by a map count as memory."""
        array = np.memmap(self.path, np.float16, "r", shape=(len(self.rows), 2, *self.shape))
        return array[positions, flipped]


def frozen_features(run, images, rows, frozen, name, needed=True):
    """Computes the features of both versions of all images, or finds them in the cache.

    They are kept in blocks with a checksum each: a killed extraction goes on where it was, a
    damaged block is computed again.

    Args:
        run: `Run`.
        images: `Images`.
        rows: rows of `images.index`, of all parts.
        frozen: keras.Model from float32 (batch, 224, 224, 3) in [0, 1] to features; it is run
            in inference mode.
        name: for the file's name and the progress bar.
        needed: False where the stage is trained already; nothing is computed then.

    Returns:
        `Features`.

    Raises:
        CxrError: too little free disk; the message says how much is needed.
    """
    digest = hashlib.sha256(f"{images.fingerprint} {','.join(rows['file'])}".encode())
    for layer in frozen.layers:
        if isinstance(layer, keras.layers.Rescaling):
            digest.update(f"{layer.scale} {layer.offset}".encode())
    for weights in frozen.get_weights():
        digest.update(np.ascontiguousarray(weights))
    key = digest.hexdigest()[:16]
    shape = tuple(frozen.output.shape[1:])
    features = Features(run.cache / f"features-{name}-{key}.float16", rows, shape, key)
    record = features.path.with_suffix(".json")
    if not needed:
        print(f"features {name}: not needed, the stage is trained already")
        return features
    block_bytes = FEATURE_BLOCK * 2 * int(np.prod(shape)) * 2
    blocks = -(-len(rows) // FEATURE_BLOCK)
    try:
        checksums = read_json(record)["blocks"]
    except FileNotFoundError:
        checksums = []
    except CxrError:
        print(f"{shown(record)} is damaged: the features are computed anew.")
        checksums = []
    kept = _whole_blocks(features.path, checksums, block_bytes)
    need = (blocks - kept) * block_bytes
    if need > shutil.disk_usage(run.cache).free:
        raise CxrError(
            f"The features of {name} take {need / 1e9:.1f} GB in {run.cache}, more than is free. "
            "Free some, or set CXR_OUT to a folder on a larger disk."
        )
    if kept < blocks:
        _extract(images, rows, frozen, features.path, record, checksums[:kept], name)
    print(f"features {name}: {len(rows):,} images x 2 x {shape} float16, "
          f"{features.path.stat().st_size / 1e9:.2f} GB in the cache")  # fmt: skip
    return features


def _whole_blocks(path, checksums, block_bytes):
    """How many blocks at the beginning of the file are what their checksums say."""
    if not path.exists():
        return 0
    with open(path, "rb") as file:
        for number, checksum in enumerate(checksums):
            if zlib.crc32(file.read(block_bytes)) != checksum:
                print(f"Block {number} of {shown(path)} is damaged: computing from there.")
                return number
    return len(checksums)


def _extract(images, rows, frozen, path, record, checksums, name):
    """Appends the missing blocks to the file; the record of checksums follows every tenth."""
    start = len(checksums) * FEATURE_BLOCK
    data = make_dataset(images, rows.iloc[start:], 3, FEATURE_BLOCK)
    with (
        _full_disk_said(path, "What is computed so far was kept."),
        open(path, "r+b" if path.exists() else "wb") as file,
        progress(range(len(rows)), f"features {name}") as bar,
    ):
        bar.update(start)
        for pixels, _ in data:
            both = tf.concat([pixels, tf.reverse(pixels, [2])], axis=0)
            made = frozen.predict_on_batch(both).astype(np.float16)
            block = np.stack([made[: len(pixels)], made[len(pixels) :]], axis=1)
            if not checksums:
                file.truncate(0)
            file.seek(len(checksums) * FEATURE_BLOCK * block[0].nbytes)
            file.write(block.tobytes())
            checksums.append(zlib.crc32(block))
            bar.update(len(pixels))
            if len(checksums) % FEATURE_RECORD == 0:
                file.flush()
                write_json(record, {"blocks": checksums})
        file.truncate()
    write_json(record, {"blocks": checksums})


def make_feature_dataset(features, rows, classes, batch_size, shuffle_seed=None):
    """Batches of frozen features, as `make_dataset` makes batches of pixels.

    Args:
        features: `Features`.
        rows: the images to use, all of them in `features.rows`.
        classes: 2 or 3.
        batch_size: images per batch; the last one may be smaller.
        shuffle_seed: integer for a new order and new flips every epoch; None to keep the order
            and flip nothing.

    Returns:
        tf.data.Dataset of (float32 (batch, *features.shape), one-hot float32 (batch, classes)),
        with the attributes `order` and `fingerprint`.
    """
    positions = features.rows.index.get_indexer(rows.index)
    labels = one_hot(rows, classes)
    order = EpochOrder(len(rows), shuffle_seed)

    def batches():
        flipped = order.flips()
        chosen = order.next()
        for start in range(0, len(chosen), batch_size):
            batch = chosen[start : start + batch_size]
            values = features.read(positions[batch], flipped[batch])
            yield values, labels[batch]

    dataset = tf.data.Dataset.from_generator(
        batches,
        output_signature=(
            tf.TensorSpec((None, *features.shape), tf.float16),
            tf.TensorSpec((None, classes), tf.float32),
        ),
    )
    dataset = dataset.apply(tf.data.experimental.assert_cardinality(-(-len(rows) // batch_size)))
    dataset = dataset.map(lambda values, label: (tf.cast(values, tf.float32), label)).prefetch(2)
    dataset.order = order
    content = f"{features.key} {batch_size} {shuffle_seed} {classes} {','.join(rows['file'])}"
    dataset.fingerprint = hashlib.sha256(content.encode()).hexdigest()[:16]
    return dataset


# --- 9. Evaluation ------------------------------------------------------------------------


def evaluate(predictions, classes):
    """The measures of one model on one set of images.

    Args:
        predictions: DataFrame of `predict`.
        classes: 2 or 3.

    Returns:
        dict: accuracy; accuracy_low and accuracy_high, a 95% interval that resamples patients
        (images of one patient are not independent); recall and precision, each by class; auc,
        area under the ROC curve (3 classes: mean over one class against the rest). With 2
        classes also sensitivity (recall of pneumonia) and specificity (recall of normal).
    """
    names = list(CLASSES[classes])
    true = pd.Categorical(predictions["true"], names).codes
    probabilities = predictions[names].to_numpy()
    said = probabilities.argmax(axis=1)
    recall = metrics.recall_score(true, said, average=None, labels=range(classes), zero_division=0)
    precision = metrics.precision_score(
        true, said, average=None, labels=range(classes), zero_division=0
    )
    low, high = patient_interval(said == true, predictions["patient"])
    result = {
        "accuracy": metrics.accuracy_score(true, said),
        "accuracy_low": low,
        "accuracy_high": high,
        "recall": dict(zip(names, recall.tolist(), strict=True)),
        "precision": dict(zip(names, precision.tolist(), strict=True)),
        "auc": metrics.roc_auc_score(true, probabilities[:, 1])
        if classes == 2
        else metrics.roc_auc_score(true, probabilities / probabilities.sum(1, keepdims=True),
                                   multi_class="ovr"),
    }  # fmt: skip
    if classes == 2:
        result |= {"sensitivity": recall[1], "specificity": recall[0]}
    return {k: v if isinstance(v, dict) else float(v) for k, v in result.items()}


def patient_interval(hits, patients):
    """95% bootstrap interval (low, high) of the mean of `hits`, bool or float (images,), that
    resamples whole patients."""
    per_patient = (
        pd.Series(np.asarray(hits, float)).groupby(np.asarray(patients)).agg(["sum", "size"])
    )
    interval = stats.bootstrap(
        (per_patient["sum"], per_patient["size"]),
        lambda right, all_, axis=-1: right.sum(axis) / all_.sum(axis),
        paired=True,
        vectorized=True,
        n_resamples=2000,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    return float(interval.low), float(interval.high)


def yardsticks(images, train, rows, classes):
    """What classifiers without any training reach: the most frequent class of the training
    images, and the 11 nearest neighbours among them on 32 x 32 pixels.

    Args:
        images: `Images`.
        train: rows of the training images.
        rows: rows of the images to classify.
        classes: 2 or 3.

    Returns:
        dict from name to a DataFrame as `predict` returns.
    """

    def small(of):
        return np.stack([_small(images.read(number)) for number in of.index])

    names = f"class{classes}"
    order = pd.CategoricalDtype(CLASSES[classes])
    labels = train[names].astype(order).cat.codes
    models = {
        "majority class": DummyClassifier(strategy="most_frequent"),
        "11 nearest neighbours": KNeighborsClassifier(11),
    }
    seen, asked = small(train), small(rows)
    return {
        name: prediction_table(rows, classes, model.fit(seen, labels).predict_proba(asked))
        for name, model in models.items()
    }


def comparison(predictions, classes):
    """One line of measures per model.

    Args:
        predictions: dict from a model's name to its DataFrame of `predict`.
        classes: 2 or 3.

    Returns:
        DataFrame in percent, indexed by model.
    """
    rows = {}
    for name, table in predictions.items():
        found = evaluate(table, classes)
        rows[name] = {
            "accuracy": f"{found['accuracy']:.1%}",
            "95% interval": f"{found['accuracy_low']:.1%} to {found['accuracy_high']:.1%}",
            **{f"recall {c}": f"{v:.1%}" for c, v in found["recall"].items()},
            **{f"precision {c}": f"{v:.1%}" for c, v in found["precision"].items()},
            "ROC AUC": f"{found['auc']:.3f}",
        }
    return pd.DataFrame(rows).T.rename_axis("test images")


def own_image(path):
    """An image of one's own, resized as the data set was: uint8, as `read_image` gives it.

    Raises:
        CxrError: the file is not there or is no picture that can be used.
    """
    try:
        return read_image(Path(path).expanduser())[0]
    except Exception as error:
        raise CxrError(
            f"{path} cannot be used ({error}). Give the path of a JPEG or PNG of a chest X-ray; in "
            "Colab, drag the file into the Files pane at the left and copy its path from there."
        ) from error


def unlike_training(pixels, images, train):
    """What sets a picture apart from the training images, in words; an empty list for nothing.

    A network answers whatever it is shown, a flower too. So: colour, hardly any contrast, and a
    picture that none of 500 training images resembles as closely (correlation of 32 x 32 means)
    as 99 of 100 of them resemble another.

    Args:
        pixels: uint8 (224, 224) or (224, 224, 3).
        images: `Images`.
        train: rows of the training images.
    """
    some = train.sample(min(500, len(train)), random_state=0)
    seen = np.stack([_small(images.read(number)) for number in some.index])
    nearest = NearestNeighbors(n_neighbors=1, metric="correlation").fit(seen)
    usual = np.quantile(nearest.kneighbors()[0], 0.99)
    found = []
    if pixels.ndim == 3:
        found.append("it has colours, which X-rays have not")
    if pixels.std() < 10:
        found.append("it is nearly blank")
    elif nearest.kneighbors(_small(pixels)[None])[0].item() > usual:
        found.append("no training image looks like it")
    return found


def _small(pixels):
    """Means of 7 x 7 pixels, float32 (1024,), of one packed image."""
    return three_channels(pixels).mean(2).reshape(32, 7, 32, 7).mean((1, 3)).ravel().astype("f4")


def grad_cam(model, pixels, number, averaged=False):
    """Where a picture speaks for a class: Grad-CAM at the feature maps of the frozen network
    inside `model` (26 x 26 places in stage 05).

    The maps are weighted by the gradient of the class's logit against the other classes'
    (log-sum-exp); what speaks against the class is cut off. Keras' recipe averages that gradient
    over each map first, which suits networks that end in global average pooling. These end in
    layers that know places, and there the average points elsewhere; so each place keeps its own
    gradient (HiResCAM: Draelos and Carin, 2020).

    Args:
        model: an assembled model of stage 04 or 05, its last layer a softmax.
        pixels: float32 (224, 224, 3) in [0, 1].
        number: of the class.
        averaged: average the gradient over each map, as Keras' recipe (Selvaraju et al., 2017).

    Returns:
        float32 (224, 224), 0 to 1; 0 everywhere where nothing speaks for the class.
    """
    nested = next(layer for layer in model.layers if isinstance(layer, keras.Model))
    *rest, softmax = model.layers[model.layers.index(nested) + 1 :]
    maps = nested(pixels[None], training=False)
    with tf.GradientTape() as tape:
        tape.watch(maps)
        values = maps
        for layer in rest:
            values = layer(values, training=False)
        logits = (values @ softmax.kernel + softmax.bias)[0]
        others = tf.boolean_mask(logits, np.arange(len(logits)) != number)
        score = logits[number] - tf.reduce_logsumexp(others)
    weights = tape.gradient(score, maps)
    if averaged:
        weights = tf.reduce_mean(weights, axis=(1, 2), keepdims=True)
    heat = tf.nn.relu(tf.reduce_sum(maps * weights, axis=-1, keepdims=True))
    heat = tf.image.resize(heat, (SIDE, SIDE))[0, ..., 0].numpy()
    return heat / max(heat.max(), np.finfo("float32").tiny)


# --- 10. Figures --------------------------------------------------------------------------

COLOURS = {  # apart for the colour-blind, and in grey by lightness
    "normal": "#56B4E9", "bacterial": "#D55E00", "viral": "#332288", "pneumonia": "#882255",
    "train": "#332288", "validation": "#D55E00", "test": "#56B4E9", "unused": "#BBBBBB",
}  # fmt: skip
pd.set_option("display.max_colwidth", None)  # the claims are sentences
plt.rcParams.update({
    "figure.dpi": 80, "savefig.bbox": "tight", "axes.spines.top": False,
    "axes.spines.right": False, "font.size": 10,
})  # fmt: skip


def show_images(images, rows, title=lambda row: row["class3"], columns=6):
    """A grid of packed images.

    Args:
        images: `Images`.
        rows: rows of `images.index`.
        title: function of one row.
        columns: images per line.

    Returns:
        The matplotlib Figure.
    """
    lines = -(-len(rows) // columns)
    figure, axes = plt.subplots(
        lines, columns, figsize=(2 * columns, 2.25 * lines), squeeze=False, layout="constrained"
    )
    for axis in axes.flat:
        axis.axis("off")
    for axis, (number, row) in zip(axes.flat, rows.iterrows(), strict=False):
        axis.imshow(images.pixels[number], cmap="gray", vmin=0, vmax=255)
        axis.set_title(title(row), fontsize=9)
    return figure


def plot_history(history, reported, title):
    """Loss and accuracy of training and validation over the epochs (report, Figs. 4, 6, 9, 12).

    Args:
        history: DataFrame of `train`.
        reported: the epoch at which the report's training stopped.
        title: of the figure.

    Returns:
        The matplotlib Figure.
    """
    figure, axes = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
    best = history.loc[history["val_loss"].idxmin(), "epoch"]
    for axis, name in zip(axes, ("loss", "accuracy"), strict=True):
        axis.plot(history["epoch"], history[name], "-o", markersize=3,
                  color=COLOURS["train"], label="training")  # fmt: skip
        axis.plot(history["epoch"], history[f"val_{name}"], "--s", markersize=3,
                  color=COLOURS["validation"], label="validation")  # fmt: skip
        axis.axvline(best, color="black", linewidth=1, label=f"weights kept: epoch {best}")
        axis.axvline(reported, color="black", linewidth=1, linestyle=":",
                     label=f"report stopped: epoch {reported}")  # fmt: skip
        axis.set(xlabel="epoch", ylabel=name, xlim=(0.5, max(len(history), reported) + 0.5))
        axis.xaxis.get_major_locator().set_params(integer=True)
    axes[0].legend(framealpha=0.9, edgecolor="none")
    figure.suptitle(title)
    return figure


def plot_histories(histories, title):
    """Training and validation loss over the epochs of several runs each, one line per run.

    Args:
        histories: dict from a panel's title to a DataFrame of `published_histories`.
        title: of the figure.

    Returns:
        The matplotlib Figure.
    """
    figure, axes = plt.subplots(
        1, len(histories), figsize=(5 * len(histories), 3.4), layout="constrained", sharex=True,
        sharey=True, squeeze=False,
    )  # fmt: skip
    for axis, (name, table) in zip(axes.flat, histories.items(), strict=True):
        for number, (_, run) in enumerate(table.groupby(["data", "seed"])):
            axis.plot(run["epoch"], run["loss"], "-", color=COLOURS["train"],
                      label="" if number else "training")  # fmt: skip
            axis.plot(run["epoch"], run["val_loss"], "--", color=COLOURS["validation"],
                      label="" if number else "validation")  # fmt: skip
        axis.set(xlabel="epoch", title=name)
        axis.xaxis.get_major_locator().set_params(integer=True)
    axes[0, 0].set_ylabel("loss")
    axes[0, 0].legend(framealpha=0.9, edgecolor="none")
    figure.suptitle(title)
    return figure


def plot_open_choices(choices, reported, title):
    """Test accuracy over what the report leaves open, one point per combination and seed.

    Args:
        choices: DataFrame of `open_choices`.
        reported: the report's accuracy, 0 to 1.
        title: of the figure.

    Returns:
        The matplotlib Figure.
    """
    figure, axes = plt.subplots(
        1, 2, figsize=(10, 3.4), layout="constrained", sharey=True, width_ratios=(3, 1)
    )
    colours = {"best": COLOURS["train"], "last": COLOURS["validation"]}
    jitter = np.random.default_rng(0)
    ordered = choices.sort_values(["dropout", "stratified", "patience"], ascending=[1, 0, 1])
    ticks, middles = [], {}
    for (dropout, stratified), group in ordered.groupby(["dropout", "stratified"], sort=False):
        first = len(ticks)
        for patience, of_patience in group.groupby("patience"):
            for weights, points in of_patience.groupby("weights"):
                shift = -0.15 if weights == "best" else 0.15
                x = len(ticks) + shift + jitter.uniform(-0.06, 0.06, len(points))
                axes[0].plot(x, points["accuracy"], "o" if weights == "best" else "s",
                             color=colours[weights], markersize=4, alpha=0.8)  # fmt: skip
            ticks.append(patience)
        name = f"dropout {dropout:g}" + ("" if stratified else "\nnot stratified")
        middles[f"\n{name}"] = (first + len(ticks) - 1) / 2
        if first:
            axes[0].axvline(first - 0.5, color="#BBBBBB", linewidth=0.8)
    axes[0].set(xticks=range(len(ticks)), ylabel="test accuracy")
    axes[0].set_xticklabels(ticks, fontsize=8)
    below = axes[0].secondary_xaxis(0)  # the groups, under the patience of each tick
    below.set_xticks(list(middles.values()), labels=list(middles), fontsize=8)
    below.tick_params(length=0, pad=5)
    below.set_xlabel("patience, for each dropout rate and split")
    axes[1].hist([choices.loc[choices["weights"] == w, "accuracy"] for w in colours], bins=12,
                 color=list(colours.values()), stacked=True, orientation="horizontal",
                 label=[f"weights of the {w} epoch" for w in colours])  # fmt: skip
    axes[1].set(xlabel="combinations")
    axes[1].xaxis.get_major_locator().set_params(integer=True)
    for axis in axes:
        axis.axhline(reported, color="black", linestyle=":", label=f"report: {reported:.0%}")
    axes[1].legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    figure.suptitle(title)
    return figure


def plot_confusion(predictions, classes, title):
    """Confusion matrix in counts and in percent of each true class (report, Figs. 5, 7, 10, 13).

    Args:
        predictions: DataFrame of `predict`.
        classes: 2 or 3.
        title: of the figure.

    Returns:
        The matplotlib Figure.
    """
    names = list(CLASSES[classes])
    said = predictions[names].idxmax(axis=1)
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.8), layout="constrained")
    for axis, normalize, form in ((axes[0], None, "d"), (axes[1], "true", ".1%")):
        metrics.ConfusionMatrixDisplay.from_predictions(
            predictions["true"], said, labels=names, normalize=normalize, values_format=form,
            cmap="Blues", colorbar=False, ax=axis,
        )  # fmt: skip
        axis.set(title="images" if normalize is None else "share of the true class")
        axis.spines[:].set_visible(True)
    figure.suptitle(title)
    return figure


def plot_answer(model, pixels, classes, title):
    """One image as the model sees it, where it speaks for the model's answer (`grad_cam`), and
    the probabilities.

    Args:
        model: an assembled model of stage 04 or 05.
        pixels: uint8 (224, 224) or (224, 224, 3).
        classes: 2 or 3.
        title: of the figure.

    Returns:
        The matplotlib Figure.
    """
    floats = three_channels(pixels).astype("float32") / 255
    probabilities = model(floats[None], training=False)[0].numpy()
    answer = int(probabilities.argmax())
    figure, axes = plt.subplots(1, 3, figsize=(10, 3.1), layout="constrained")
    axes[0].imshow(floats)
    axes[0].set_title("as the model sees it", fontsize=9)
    axes[1].imshow(floats)
    axes[1].imshow(grad_cam(model, floats, answer), cmap="inferno", alpha=0.45, vmin=0, vmax=1)
    axes[1].set_title(f"what speaks for {CLASSES[classes][answer]}", fontsize=9)
    for axis in axes[:2]:
        axis.axis("off")
    names = CLASSES[classes]
    bars = axes[2].barh(names[::-1], probabilities[::-1], color=[COLOURS[c] for c in names[::-1]])
    axes[2].bar_label(bars, fmt="{:.1%}", padding=3)
    axes[2].set(xlim=(0, 1.2), xticks=[0, 0.5, 1], title="probability")
    figure.suptitle(title)
    return figure


def plot_inception(model):
    """InceptionV3 drawn from the model itself: its stem and its mixed blocks, each with its
    branches of convolutions and poolings (report, Annex 1).

    Args:
        model: keras.applications' InceptionV3, or a model around it.

    Returns:
        The matplotlib Figure.
    """
    base = next((layer for layer in model.layers if isinstance(layer, keras.Model)), model)

    def inputs_of(layer):
        return [tensor._keras_history.operation for tensor in keras.tree.flatten(layer.input)]

    def word(layer):
        if isinstance(layer, keras.layers.Conv2D):
            stride = "/2" if layer.strides[0] == 2 else ""
            return f"{'x'.join(map(str, layer.kernel_size))}, {layer.filters}{stride}"
        if isinstance(layer, (keras.layers.MaxPooling2D, keras.layers.AveragePooling2D)):
            kind = "max" if isinstance(layer, keras.layers.MaxPooling2D) else "mean"
            return f"{kind} {layer.pool_size[0]}x{layer.pool_size[1]}" + (
                "/2" if layer.strides[0] == 2 else ""
            )
        return None

    def back(layer, until):  # the words on the way up from `layer`, one tuple per branch
        if layer is until or isinstance(layer, keras.layers.InputLayer):
            return [()]
        own = (word(layer),) if word(layer) else ()
        return [way + own for above in inputs_of(layer) for way in back(above, until)]

    stem_end = [x for x in base.layers if isinstance(x, keras.layers.MaxPooling2D)][1]
    ends = [stem_end, *(base.get_layer(f"mixed{number}") for number in range(11))]
    figure, axes = plt.subplots(2, 6, figsize=(15, 6.5), layout="constrained")
    for axis, start, end in zip(axes.flat, [base.layers[0], *ends], ends, strict=False):
        ways = sorted(set(back(end, start)))
        name = "stem" if end is stem_end else end.name
        axis.axis("off")
        axis.set(xlim=(-0.5, len(ways) - 0.5), ylim=(-6.5 if end in ends[:6] else -4.5, 0.5))
        axis.set_title(f"{name}: {' x '.join(map(str, end.output.shape[1:]))}", fontsize=10)
        for column, way in enumerate(ways):
            axis.plot([column] * 2, [0, 1 - len(way)], color="#BBBBBB", zorder=0)
            for row, text in enumerate(way):
                colour = "#CFE8F7" if "," in text else "#E8E8E8"
                axis.text(
                    column, -row, text.replace(", ", "\n"), ha="center", va="center",
                    fontsize=7, bbox={"facecolor": colour, "edgecolor": "none", "pad": 2},
                )  # fmt: skip
    figure.suptitle(
        "Annex 1: InceptionV3, block by block. Branches lie side by side and are read downwards "
        "(kernel and filters;\n/2 halves width and height); their outputs are concatenated."
    )
    return figure
