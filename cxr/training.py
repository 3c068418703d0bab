"""Resuming as a Keras callback: a training that is killed at any moment goes on after its last
finished epoch, and a finished one is not repeated."""

import json
import time
import zipfile

import keras
import numpy as np
import pandas as pd

from cxr.files import UserError, atomic_write, display_path
from cxr.runs import find_own_run, find_published_run, warn_other_images

FINISHED = 10**6  # an epoch beyond any: `fit` has nothing left to do
_COUNTERS = ("wait", "best", "best_epoch", "stopped_epoch")  # of early stopping


class TestAccuracy(keras.callbacks.Callback):
    """Adds `test_accuracy` to every epoch's record, for a look back at the stopping rules.

    Nothing in the training sees it. Comes before `TrainingCheckpoint`, which keeps the record.
    """

    __test__ = False  # not a test for pytest

    def __init__(self, test_data):
        super().__init__()
        self.test_data = test_data

    def on_epoch_end(self, epoch, logs=None):
        result = self.model.evaluate(self.test_data, verbose=0, return_dict=True)
        logs["test_accuracy"] = result["accuracy"]


class TrainingCheckpoint(keras.callbacks.Callback):
    """Keeps a training's whole state after every epoch, and goes on from it.

    One file holds the model's variables (random state included), the optimizer's, the best
    weights, early stopping's counters and the history; it arrives in one step, and zip's
    checksums tell whether it is whole. Comes last in the list of callbacks.

    Args:
        config: `Config`.
        name: of the run's folder.
        images: `ImageCache`.
        early_stopping: a fresh keras.callbacks.EarlyStopping with restore_best_weights.
        shuffle: `EpochShuffle` of the training images.
        retrain: train anew even if the run is finished.
        use_published: take the published weights instead of training.
        full_model: the assembled model that is saved, where only its head is trained.
        settings: anything else the result depends on.

    Attributes:
        rows, history: one dict per epoch, and the DataFrame of them: epoch (from 1), loss,
            accuracy, val_loss, val_accuracy, seconds.
        settings: all the training depends on, as JSON.
        is_new: whether there is anything that `save_run` must write.
    """

    def __init__(self, config, name, images, early_stopping, shuffle, retrain=False,
                 use_published=False, full_model=None, **settings):  # fmt: skip
        super().__init__()
        self.config, self.name, self.images = config, name, images
        self.early_stopping, self.shuffle, self.retrain = early_stopping, shuffle, retrain
        self.use_published, self.full_model, self.extra = use_published, full_model, settings
        self.path = config.output_dir / name / "training.npz"
        self.rows, self.counters, self.is_new = [], {}, True

    @property
    def history(self):
        return pd.DataFrame(self.rows)

    def restore(self, model):
        """Puts back what there is: the published run, a finished one, or an interrupted training.

        Args:
            model: compiled, with the metric accuracy.

        Returns:
            The epoch to go on from, for `fit`'s `initial_epoch`.

        Raises:
            UserError: the finished run was made with other settings or on other images.
        """
        self.settings = self._describe(model)
        if self.use_published:
            if (run := find_published_run(self.name, need_weights=True)) is None:
                raise UserError(f"No weights of {self.name} are published: untick "
                                "USE_PUBLISHED_WEIGHTS and train.")  # fmt: skip
            return self._take(run, model, "the published run, not trained here")
        run = None if self.retrain else find_own_run(self.config, self.name)
        if run is None:
            return self._load_state(model)
        if changed := _differences(run.info["settings"], self.settings):
            raise UserError(
                f"{display_path(run.folder)} holds a training with other settings ({changed}). "
                "Tick RETRAIN to replace it, or set OUT (CXR_OUT) to another folder."
            )
        return self._take(run, model, f"trained before, in {display_path(run.folder)}")

    def _take(self, run, model, words):
        print(f"{self.name}: {words}, {len(run.history)} epochs. Its weights are loaded.")
        warn_other_images(run, self.images)
        run.load_weights(self.full_model or model)
        self.rows, self.is_new = run.history.to_dict("records"), False
        for row in self.rows:
            measures = ("accuracy", "loss", "val_accuracy", "val_loss")
            print(f"Epoch {row['epoch']} - {row['seconds']:.0f}s - "
                  + " - ".join(f"{name}: {row[name]:.4f}" for name in measures))  # fmt: skip
        return FINISHED

    def _load_state(self, model):
        if self.config.drive:
            self.config.drive.download_state(self.path)
        try:
            with zipfile.ZipFile(self.path) as archive:  # each array is checked to its last byte
                if bad := archive.testzip():
                    raise zipfile.BadZipFile(f"bad CRC-32 of {bad}")
            with np.load(self.path, allow_pickle=False) as arrays:
                state = json.loads(arrays["state"].tobytes())
                groups = {group: [arrays[f"{group}_{number}"] for number in range(count)]
                          for group, count in state["counts"].items()}  # fmt: skip
        except FileNotFoundError:
            return 0
        except Exception as error:  # a damaged zip raises nearly anything
            print(f"{display_path(self.path)} is damaged ({error}): training starts anew.")
            return 0
        if self.retrain and not state["retrain"]:
            return 0
        if changed := _differences(state["settings"], self.settings):
            print(f"An unfinished training had other settings ({changed}): training starts anew.")
            return 0
        model.optimizer.build(model.trainable_variables)
        for variables, values in ((model.variables, groups["model"]),
                                  (model.optimizer.variables, groups["optimizer"])):  # fmt: skip
            for variable, value in zip(variables, values, strict=True):
                variable.assign(value)
        self.rows = state["history"]
        self.counters = {**state["counters"], "best_weights": groups["best"]}
        print(f"Going on after epoch {len(self.rows)} of a training that was interrupted.")
        return FINISHED if state["stopped"] else len(self.rows)

    def on_train_begin(self, logs=None):
        for name, value in self.counters.items():  # early stopping has just reset itself
            setattr(self.early_stopping, name, value)

    def on_train_end(self, logs=None):
        if self.early_stopping.best_weights is not None:  # some Kerases restore on a stop only
            self.model.set_weights(self.early_stopping.best_weights)

    def on_epoch_begin(self, epoch, logs=None):
        self.shuffle.epoch, self.began = epoch, time.perf_counter()

    def on_epoch_end(self, epoch, logs=None):
        measures = {name: float(value) for name, value in logs.items()}
        seconds = round(time.perf_counter() - self.began, 2)
        self.rows.append({"epoch": epoch + 1, **measures, "seconds": seconds})
        groups = {
            "model": [variable.numpy() for variable in self.model.variables],
            "optimizer": [variable.numpy() for variable in self.model.optimizer.variables],
            "best": list(self.early_stopping.best_weights),
        }
        state = {
            "settings": self.settings, "retrain": self.retrain, "history": self.rows,
            "stopped": bool(self.model.stop_training),
            "counters": {name: float(getattr(self.early_stopping, name)) for name in _COUNTERS},
            "counts": {group: len(values) for group, values in groups.items()},
        }  # fmt: skip
        arrays = {f"{g}_{n}": value for g, vs in groups.items() for n, value in enumerate(vs)}
        arrays["state"] = np.frombuffer(json.dumps(state).encode(), np.uint8)
        with atomic_write(self.path) as part, open(part, "wb") as file:
            np.savez(file, allow_pickle=False, **arrays)
        if self.config.drive:
            self.config.drive.upload_state(self.path)

    def finish(self):
        """Deletes the state: `save_run` has just saved the run."""
        self.path.unlink(missing_ok=True)
        if drive := self.config.drive:
            drive.upload(self.path.parent, "run.json", replace=self.retrain)
            if self.path.parent not in drive.pending:
                drive.delete(self.path)

    def _describe(self, model):
        """All the result depends on, as JSON: two trainings with the same are the same."""
        stopping, optimizer = self.early_stopping, model.optimizer
        layers = [
            (type(layer).__name__, layer.count_params(),
             None if isinstance(layer, keras.Model) else _nameless(layer.get_config()))
            for layer in model.layers
        ]  # fmt: skip
        settings = {
            "seed": self.config.seed, "mode": self.config.mode,
            "images": self.images.fingerprint, "train": self.shuffle.fingerprint,
            "layers": layers, "loss": getattr(model.loss, "name", model.loss),
            "optimizer": [type(optimizer).__name__, _nameless(optimizer.get_config())],
            "early_stopping": [stopping.monitor, stopping.patience, float(stopping.min_delta)],
            **self.extra,
        }  # fmt: skip
        return json.loads(json.dumps(settings, default=str))


def _nameless(config):
    """A layer's or optimizer's configuration without what differs from one object to the next."""
    if isinstance(config, dict):
        skip = ("name", "build_config", "registered_name", "module")
        return {k: _nameless(v) for k, v in config.items() if k not in skip}
    return [_nameless(v) for v in config] if isinstance(config, list | tuple) else config


def _differences(old, new):
    """The names of the settings that differ, for a message."""
    return ", ".join(sorted(k for k in old.keys() | new.keys() if old.get(k) != new.get(k)))
