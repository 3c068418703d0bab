"""A finished model run on disk: written last file last, checked as it is read."""

import contextlib
import os
import platform
import sys
import time
from pathlib import Path

import keras
import numpy as np
import pandas as pd
import tensorflow as tf

from cxr.files import (
    PROJECT, UserError, atomic_write, checksum, display_path, read_json, repair_hint, write_json,
)  # fmt: skip

RESULTS = PROJECT / "results"  # LABEL/seed-N/RUN: the small files of the published runs
WEIGHTS = PROJECT / "weights"  # RUN.weights.h5 of the published run with seed 0
DEFAULTS = {"dropout": 0.2, "patience": 3}  # what the report leaves open


def run_name(name, **choices):
    """The folder name of a run: choices other than DEFAULTS are part of it, so that runs with
    different ones are kept apart ("05_cnn1_transfer-dropout-0.5-patience-10")."""
    changed = [f"-{key}-{choices[key]:g}" for key in DEFAULTS if choices[key] != DEFAULTS[key]]
    return name + "".join(changed)


class ModelRun:
    """A finished run in a folder.

    Attributes:
        folder: where its files are.
        info: the content of run.json.
        history, predictions: DataFrames, as `TrainingCheckpoint` and `predict` made them.

    Raises:
        UserError: the run is not there or a file of it is damaged.
    """

    def __init__(self, folder):
        self.folder = Path(folder)
        try:
            self.info = read_json(self.folder / "run.json")
        except FileNotFoundError:
            raise UserError(f"No finished run in {display_path(self.folder)}.") from None

    def _file(self, name):
        path = self.folder / name
        if name == "model.weights.h5" and RESULTS in path.parents:
            path = WEIGHTS / f"{self.info['run']}.weights.h5"
        if not path.exists() or checksum(path) != self.info["files"].get(name):
            raise UserError(f"{display_path(path)} is missing or damaged: {repair_hint(path)}.")
        return path

    @property
    def has_weights(self):
        """Whether its weights are here, as they were saved."""
        with contextlib.suppress(UserError):
            return bool(self._file("model.weights.h5"))
        return False

    @property
    def history(self):
        return pd.read_csv(self._file("history.csv"), float_precision="round_trip")

    @property
    def predictions(self):
        return pd.read_csv(self._file("predictions.csv"), float_precision="round_trip")

    def load_weights(self, model):
        """Loads the run's weights into a model of the same layers."""
        path = self._file("model.weights.h5")
        bare = type(model).from_config(model.get_config())  # a compiled one expects an optimizer
        try:
            bare.load_weights(path)
        except ValueError as error:
            raise UserError(
                f"{display_path(path)} does not fit this model ({error}). Another version of the "
                "notebook made it: run that notebook again with RETRAIN ticked."
            ) from error
        model.set_weights(bare.get_weights())


def save_run(config, name, images, model=None, tables=None, **info):
    """Writes a run's files; run.json last: a run is there when it is.

    A run that is there already is replaced only now, when the new one is complete.

    Args:
        config: `Config`.
        name: of the folder, for instance "02_cnn1_2class".
        images: `ImageCache`.
        model: its weights become model.weights.h5, without the optimizer's.
        tables: dict from a file name to the DataFrame written there.
        info: settings, metrics and what else the run has to say; anything JSON can hold.
    """
    folder = config.output_dir / name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "run.json").unlink(missing_ok=True)
    names = list(tables or {})
    for file_name in names:
        with atomic_write(folder / file_name) as part:
            tables[file_name].to_csv(part, index=False, lineterminator="\n")
    if model is not None:
        names.append("model.weights.h5")
        save_weights(model, folder / "model.weights.h5")
    write_json(folder / "run.json", {
        "run": name,
        "seed": config.seed,
        "mode": config.mode,
        "images": {"label": images.label, "name": images.name, "count": len(images.metadata),
                   "preparation": images.preparation, "fingerprint": images.fingerprint,
                   "test_fingerprint": images.test_fingerprint},
        "versions": {"python": platform.python_version(), "tensorflow": tf.__version__,
                     "keras": keras.__version__, "numpy": np.__version__},
        "device": config.device,
        "seconds": round(time.monotonic() - config.started, 1),
        "peak_mb": peak_memory(),
        "files": {file_name: checksum(folder / file_name) for file_name in names},
        **info,
    })  # fmt: skip


def save_weights(model, path):
    """Saves a model's weights without its optimizer, which would triple the file."""
    bare = type(model).from_config(model.get_config())
    bare.set_weights(model.get_weights())
    with atomic_write(path) as part:
        h5 = part.with_name(f"{part.name}.weights.h5")  # the only ending Keras takes
        try:
            bare.save_weights(h5)
            os.replace(h5, part)
        finally:
            h5.unlink(missing_ok=True)


def peak_memory():
    """Peak memory of this process in MB, or None on Windows."""
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (2**20 if sys.platform == "darwin" else 2**10))


def find_own_run(config, name):
    """The user's own finished run of this name, fetched from Drive where it is only there.

    Returns:
        `ModelRun`, or None.
    """
    folder = config.output_dir / name
    if config.drive:
        config.drive.download(folder, "run.json")
    return ModelRun(folder) if (folder / "run.json").exists() else None


def find_published_run(name, need_weights=False):
    """The published run with seed 0 of this name on the report's own kind of images, else on
    another kind; None where there is none, or none with weights where these are needed."""
    found = [ModelRun(path.parent) for path in RESULTS.glob(f"*/seed-0/{name}/run.json")]
    found = [run for run in found if run.has_weights or not need_weights]
    return min(found, key=lambda run: run.info["images"]["preparation"] != "nearest neighbours",
               default=None)  # fmt: skip


def load_run(config, name, images):
    """An earlier notebook's run: this user's own if there is one, else the published one.

    Args:
        config: `Config`; its mode and seed must be those the user's run was made with.
        name: for instance "03_cnn1_3class".
        images: `ImageCache`; the user's run must have been made on the same.

    Returns:
        `ModelRun`.

    Raises:
        UserError: there is none, or the user's is damaged or of other images.
    """
    if run := find_own_run(config, name):
        if run.info["images"]["fingerprint"] != images.fingerprint:
            raise UserError(
                f"{name} in {display_path(run.folder)} was trained on {run.info['images']['name']}"
                f", this notebook works on {images.name}. Run its notebook again with RETRAIN "
                "ticked, or set OUT (CXR_OUT) to another folder."
            )
        print(f"{name}: your own run in {display_path(run.folder)}")
        return run
    if run := find_published_run(name):
        print(f"{name}: the published run (you have none of your own)")
        warn_other_images(run, images)
        return run
    raise UserError(f"{name} is neither in {display_path(config.output_dir)} nor published: run "
                    f"notebook {name.split('-')[0]} first.")  # fmt: skip


def warn_other_images(run, images):
    """Says so where a run was trained on images that were prepared in another way."""
    trained = run.info["images"]["preparation"]
    if trained != images.preparation:
        print(
            f"NOTE: trained on images resized by {trained}, applied here to images resized by "
            f"{images.preparation}: a network can take that difference for a sign of illness."
        )
