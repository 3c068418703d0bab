"""A finished model run on disk: written last file last, checked as it is read."""

import contextlib
import json
import platform
import time

import keras
import numpy as np
import pandas as pd
import tensorflow as tf

from cxr import files
from cxr.files import RESULTS, STATE, WEIGHTS, UserError, atomic_write, checksum, display_path

MAIN_IMAGES = "chest_xray_nearest224"  # label of those of the published runs: as in the report
DEFAULTS = {"dropout": 0.2, "patience": 3}  # what the report leaves open
_IMAGES = ("label", "name", "preparation", "fingerprint", "test_fingerprint")


def run_name(name, **choices):
    """The folder name of a run: choices other than DEFAULTS are part of it, which keeps runs apart
    ("05_cnn1_transfer-dropout-0.5-patience-10"). `choices` has a number for each of DEFAULTS."""
    return name + "".join(f"-{k}-{choices[k]:g}" for k in DEFAULTS if choices[k] != DEFAULTS[k])


class ModelRun:
    """A finished run in a folder: `info` (run.json); `history` and `predictions`, DataFrames as of
    `TrainingCheckpoint` and `predict` (exact from pandas 3 on). UserError, also from these two,
    for a damaged file."""

    history = property(lambda self: pd.read_csv(self._file("history.csv"), engine="python"))
    predictions = property(lambda self: pd.read_csv(self._file("predictions.csv"), engine="python"))

    def __init__(self, folder):
        self.folder = folder
        self.info = files.read_json(folder / "run.json")

    def _file(self, name):
        path = self.folder / name
        if name == "model.weights.h5" and RESULTS in path.parents:
            path = WEIGHTS / f"{self.info['run']}.weights.h5"
        if not path.exists() or checksum(path) != self.info["files"].get(name):
            raise files.damaged(path)
        return path

    @property
    def has_weights(self):
        """Whether its weights are here, as they were saved."""
        with contextlib.suppress(UserError):
            return bool(self._file("model.weights.h5"))
        return False

    def load_weights(self, model):
        """Loads the run's weights into a model of the same layers; UserError if they do not fit."""
        path, bare = self._file("model.weights.h5"), _without_optimizer(model)
        try:
            bare.load_weights(path)
        except ValueError as error:
            problem = f"{display_path(path)} does not fit this model ({error})"
            raise UserError(f"{problem}: run its notebook again with RETRAIN ticked.") from error
        model.set_weights(bare.get_weights())


def _without_optimizer(model):
    """A model of the same layers and weights without optimizer; those rounded to 16 bits as 16."""
    weights, config = model.get_weights(), model.get_config()
    if all((w == w.astype("float16")).all() for w in weights if w.dtype == "float32"):
        config = json.loads(json.dumps(config).replace('"float32"', '"float16"'))
    bare = type(model).from_config(config)
    bare.set_weights(weights)
    return bare


def save_run(config, name, images, model=None, tables=None, replace=True, **info):
    """Writes a run's files, here and on Drive. run.json comes last: a run is there when it is, and
    an earlier one is replaced only when all is written; on Drive only if `replace`. `model` gives
    model.weights.h5, `tables` maps file names to DataFrames; `info`: what else run.json says."""
    folder, tables, parts = config.output_dir / name, tables or {}, {}
    weights = {} if model is None else {"model.weights.h5": 8 * model.count_params()}
    with contextlib.ExitStack() as stack:  # at its end files get their names, run.json the last
        run_json = stack.enter_context(atomic_write(folder / "run.json"))
        for file_name, size in (dict.fromkeys(tables, 0) | weights).items():
            parts[file_name] = part = stack.enter_context(atomic_write(folder / file_name, size))
            if file_name in tables:
                tables[file_name].to_csv(part, index=False, lineterminator="\n")
            else:
                _without_optimizer(model).save_weights(part)  # HDF5 can crash on a full disk
        files.write_json(run_json, {
            "run": name, "seed": config.seed, "mode": config.mode,
            "images": {"count": len(images.metadata)} | {k: getattr(images, k) for k in _IMAGES},
            "versions": {"python": platform.python_version(), "tensorflow": tf.__version__,
                         "keras": keras.__version__, "numpy": np.__version__},
            "device": config.device, "seconds": round(time.monotonic() - config.started, 1),
            "files": {file_name: checksum(part) for file_name, part in parts.items()}, **info,
        })  # fmt: skip
        (folder / "run.json").unlink(missing_ok=True)
    (folder / STATE).unlink(missing_ok=True)
    if config.drive:
        config.drive.upload(folder / "run.json", replace)


def find_own_run(config, name):
    """The user's own finished run of this name as `ModelRun`, also from Drive; or None."""
    path = config.output_dir / name / "run.json"
    if config.drive:
        config.drive.download(path)
    return ModelRun(path.parent) if path.exists() else None


def find_published_run(name, need_weights=False):
    """The published run with seed 0 of this name as `ModelRun`; None where there is none, or it has
    no weights and these are needed."""
    folder = RESULTS / MAIN_IMAGES / "seed-0" / name
    run = ModelRun(folder) if (folder / "run.json").exists() else None
    return run if run and (run.has_weights or not need_weights) else None


def load_run(config, name, images):
    """An earlier notebook's run, as `ModelRun`: this user's own of the same mode and seed, else the
    published one. UserError where there is neither, or the user's is damaged or of other images."""
    if run := find_own_run(config, name):
        folder, trained = display_path(run.folder), run.info["images"]
        if trained["fingerprint"] != images.fingerprint:
            others = f"{folder} was trained on {trained['name']}, not on {images.name}"
            raise UserError(f"{others}: tick RETRAIN there, or set another OUT (CXR_OUT).")
        print(f"{name}: your own run in {folder}")
    elif run := find_published_run(name):
        print(f"{name}: the published run (you have none of your own)")
        warn_other_images(run, images)
    else:
        raise UserError(f"{name} is not in {config.output_dir}, nor published: run its notebook.")
    return run


def warn_other_images(run, images):
    """Says so where a run was trained on images that were prepared in another way."""
    if (trained := run.info["images"]["preparation"]) != images.preparation:
        words = f"trained on images resized by {trained}, applied here to {images.preparation}"
        print(f"NOTE: {words}: a network can take that difference for a sign of illness.")
