"""Settings and set-up, the door of the package: what paths, Drive and TensorFlow start with."""

import contextlib
import ctypes
import dataclasses
import os
import platform
import sys
import tempfile
import time
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from cxr import quiet_stderr
from cxr.drive import DRIVE, DriveSync, mount
from cxr.files import PROJECT, UserError, display_path

COLAB_OUTPUT = Path("/content/cxr_output")  # Colab's own disk: fast, and lost with the session
DRIVE_OUTPUT = DRIVE / "MyDrive" / "chest_xray_pneumonia"
KAGGLE_WORKING = Path("/kaggle/working")


@dataclasses.dataclass(frozen=True)
class Config:
    """The settings of one notebook run, resolved."""

    data: str  # a folder, "kaggle", "sample", or "": look for a folder, else Kaggle
    mode: str  # "full" as the report trains, or "quick": the sample, a few epochs, same layers
    seed: int  # of the split, the initial weights, the order and the flips
    output_dir: Path  # of runs; full and quick runs and other seeds never share one
    cache_dir: Path  # of cached images and frozen features
    drive: DriveSync | None  # copies to Drive what is worth keeping (Colab)
    device: str  # what trains here, in words: "2 x Tesla T4" or "CPU, 2 cores"
    started: float = dataclasses.field(default_factory=time.monotonic, compare=False)
    quick = property(lambda self: self.mode == "quick")


def setup(data="", mode="", seed="", out=""):
    """Resolves the settings, seeds everything, and prints what this run stands on. Each argument is
    a form field of the set-up cells: a string, where an empty one means the environment variable
    (CXR_DATA, CXR_MODE, CXR_SEED, CXR_OUT), and failing that the default. Returns a `Config`;
    UserError for a setting that cannot be, or a folder that cannot be written."""

    def setting(value, name, default):
        return str(value).strip() or os.environ.get(f"CXR_{name}", "").strip() or default

    mode, seed = setting(mode, "MODE", "full"), setting(seed, "SEED", "0")
    if mode not in ("full", "quick"):
        raise UserError(f"MODE (CXR_MODE) is {mode!r}: say full or quick.")
    if not (seed.isdecimal() and len(seed) < 10):
        raise UserError(f"SEED (CXR_SEED) is {seed!r}: say a whole number from 0.")
    quick, in_kaggle = mode == "quick", KAGGLE_WORKING.is_dir()
    in_colab = "google.colab" in sys.modules  # Colab imports it before the first cell
    default = DRIVE_OUTPUT if in_colab else (KAGGLE_WORKING if in_kaggle else PROJECT) / "artifacts"
    out, drive = Path(setting(out, "OUT", default)).expanduser().absolute(), None
    if in_colab and DRIVE in out.parents:
        remote, out = out, COLAB_OUTPUT / out.relative_to(DRIVE)
        drive = DriveSync(out, remote) if mount() else None
    details, processors = tf.config.experimental.get_device_details, accelerators()
    names = [details(device).get("device_name", device.device_type) for device in processors]
    config = Config(
        data=setting(data, "DATA", "sample" if quick else ""),
        mode=mode, seed=int(seed), drive=drive, cache_dir=out / "cache",
        output_dir=out / ("quick" if quick else "") / f"seed-{int(seed)}",
        device=f"{len(names)} x {names[0]}" if names else f"CPU, {os.cpu_count()} cores",
    )  # fmt: skip
    try:
        config.output_dir.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=config.output_dir).close()
    except OSError as error:
        raise UserError(f"Cannot write in {out} ({error.strerror}). Set OUT (CXR_OUT) to a folder "
                        "that can be written.") from error  # fmt: skip
    keras.utils.set_random_seed(config.seed)
    if not processors:  # on a GPU this would cost speed; there the seed alone is set
        tf.config.experimental.enable_op_determinism()
        keep_freed_memory()
    where = display_path(config.output_dir)
    if drive:
        for marker in [*out.rglob("run.json"), *out.glob("cache/*/info.json")]:
            drive.upload(marker)  # what was made while Drive could not be reached
        if not drive.failing:
            where = f"{drive.remote_path(config.output_dir)} (Drive; a copy of {where})"
    versions = f"TensorFlow {tf.__version__}, Keras {keras.__version__}, NumPy {np.__version__}"
    print(f"Python {platform.python_version()}, {versions}\ndevice   {config.device}")
    print(f"run      {mode} mode, seed {config.seed}\nresults  {where}")
    if not (quick or processors):
        faster = "Settings > Accelerator" if in_kaggle else "MODE = quick takes a few minutes"
        faster = "Runtime > Change runtime type > T4 GPU" if in_colab else faster
        print("no GPU   training takes minutes to hours a notebook on 2 CPU cores.", faster)
    return config


def keep_freed_memory():
    """glibc gives large blocks back to the kernel, which clears them before TensorFlow gets them
    again. Kept, CNN_1 trains a fifth faster on a CPU, in up to 1.6 times the memory (mallopt)."""
    with contextlib.suppress(AttributeError, TypeError, OSError):  # another C library, Windows
        mallopt = ctypes.CDLL(None).mallopt
        for option, value in ((-8, 1), (-4, 0), (-1, -1)):
            mallopt(option, value)  # M_ARENA_MAX, M_MMAP_MAX, M_TRIM_THRESHOLD: never


def accelerators():
    """The GPUs or TPU cores TensorFlow sees, a list of its PhysicalDevices."""
    with quiet_stderr():
        return [d for d in tf.config.list_physical_devices() if d.device_type in ("GPU", "TPU")]


def strategy():
    """How training is spread: over all GPUs where there are two or more, over a TPU's cores, else
    not at all. Build and compile a model inside `with utils.strategy().scope():`."""
    kinds = [device.device_type for device in accelerators()]
    if kinds.count("GPU") > 1:
        return tf.distribute.MirroredStrategy()
    if "TPU" in kinds or "TPU_WORKER_HOSTNAMES" in os.environ:
        resolver = tf.distribute.cluster_resolver.TPUClusterResolver.connect(tpu="local")
        return tf.distribute.TPUStrategy(resolver)
    return tf.distribute.get_strategy()
