"""A finished model run on disk: written last file last, checked as it is read."""

import contextlib
import os
import platform
import time
from pathlib import Path

import keras
import numpy as np
import pandas as pd
import tensorflow as tf

from cxr import files
from cxr.files import RESULTS, WEIGHTS, UserError, atomic_write, checksum, display_path

DEFAULTS = {"dropout": 0.2, "patience": 3}  # what the report leaves open


def run_name(name, **choices):
    """The folder name of a run: choices other than DEFAULTS are part of it, so that runs with
    different ones are kept apart ("05_cnn1_transfer-dropout-0.5-patience-10")."""
    changed = [f"-{key}-{choices[key]:g}" for key in DEFAULTS if choices[key] != DEFAULTS[key]]
    return name + "".join(changed)


class ModelRun:
    """A finished run in a folder. `info` is the content of run.json.

    Raises:
        UserError: the run is not there or a file of it is damaged.
    """

    def __init__(self, folder):
        self.folder = Path(folder)
        try:
            self.info = files.read_json(self.folder / "run.json")
        except FileNotFoundError:
            raise UserError(f"No finished run in {display_path(self.folder)}.") from None

    def _file(self, name):
        path = self.folder / name
        if name == "model.weights.h5" and RESULTS in path.parents:
            path = WEIGHTS / f"{self.info['run']}.weights.h5"
        if not path.exists() or checksum(path) != self.info["files"].get(name):
            raise UserError(
                f"{display_path(path)} is missing or damaged: {files.repair_hint(path)}."
            )
        return path

    @property
    def has_weights(self):
        """Whether its weights are here, as they were saved."""
        with contextlib.suppress(UserError):
            return bool(self._file("model.weights.h5"))
        return False

    @property
    def history(self):
        """DataFrame, as `TrainingCheckpoint.history`."""
        return pd.read_csv(self._file("history.csv"), engine="python")  # exact to the last bit

    @property
    def predictions(self):
        """DataFrame, as `predict` makes it."""
        return pd.read_csv(self._file("predictions.csv"), engine="python")

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
    folder, names = config.output_dir / name, list(tables or {})
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "run.json").unlink(missing_ok=True)
    for file_name in names:
        with atomic_write(folder / file_name) as part:
            tables[file_name].to_csv(part, index=False, lineterminator="\n")
    if model is not None:
        names.append("model.weights.h5")
        _save_weights(model, folder / "model.weights.h5")
    files.write_json(folder / "run.json", {
        "run": name, "seed": config.seed, "mode": config.mode,
        "images": {"label": images.label, "name": images.name, "count": len(images.metadata),
                   "preparation": images.preparation, "fingerprint": images.fingerprint,
                   "test_fingerprint": images.test_fingerprint},
        "versions": {"python": platform.python_version(), "tensorflow": tf.__version__,
                     "keras": keras.__version__, "numpy": np.__version__},
        "device": config.device, "seconds": round(time.monotonic() - config.started, 1),
        "files": {file_name: checksum(folder / file_name) for file_name in names}, **info,
    })  # fmt: skip


def _save_weights(model, path):
    files.check_space(
        path.parent, 8 * model.count_params(), "The weights"
    )  # HDF5 can crash on a full disk
    bare = type(model).from_config(model.get_config())
    bare.set_weights(model.get_weights())
    with atomic_write(path) as part:
        h5 = part.with_name(f"{part.name}.weights.h5")  # the only ending Keras takes
        try:
            bare.save_weights(h5)
            os.replace(h5, part)
        finally:
            h5.unlink(missing_ok=True)


def find_own_run(config, name):
    """The user's own finished run of this name as `ModelRun`, fetched from Drive where it is only
    there; or None."""
    folder = config.output_dir / name
    if config.drive:
        config.drive.download(folder, "run.json")
    return ModelRun(folder) if (folder / "run.json").exists() else None


def find_published_run(name, need_weights=False):
    """The published run with seed 0 of this name as `ModelRun`, on the report's own kind of images
    if there is one; None where there is none, or none with weights where these are needed."""
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
    run = find_own_run(config, name)
    if run and run.info["images"]["fingerprint"] != images.fingerprint:
        raise UserError(
            f"{display_path(run.folder)} was trained on {run.info['images']['name']}, this "
            f"notebook works on {images.name}. Run its notebook again with RETRAIN ticked, or set "
            "OUT (CXR_OUT) to another folder."
        )
    if run:
        print(f"{name}: your own run in {display_path(run.folder)}")
    elif run := find_published_run(name):
        print(f"{name}: the published run (you have none of your own)")
        warn_other_images(run, images)
    else:
        raise UserError(f"{name} is neither in {display_path(config.output_dir)} nor published: "
                        f"run its notebook first.")  # fmt: skip
    return run


def warn_other_images(run, images):
    """Says so where a run was trained on images that were prepared in another way."""
    if (trained := run.info["images"]["preparation"]) != images.preparation:
        print(
            f"NOTE: trained on images resized by {trained}, applied here to images resized by "
            f"{images.preparation}: a network can take that difference for a sign of illness."
        )
