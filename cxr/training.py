"""Resuming as a Keras callback: a killed training goes on after its last finished epoch."""

import json
import time

import keras
import numpy as np
import pandas as pd

from cxr.files import STATE, UserError, atomic_write, display_path
from cxr.runs import find_own_run, find_published_run, warn_other_images

FINISHED = 10**6  # an epoch beyond any: `fit` has nothing left to do
_COUNTERS = ("wait", "best", "best_epoch", "stopped_epoch")  # of early stopping


class TrainingCheckpoint(keras.callbacks.Callback):
    """Keeps a training's whole state after every epoch, and goes on from it: the variables of model
    (random state included) and optimizer, the best weights (early stopping restores them at the
    end), its counters, the history, in one file that arrives in one step. The last callback.

    Args:
        config, name, images: `Config`, name of the run's folder, `ImageCache`.
        early_stopping: a fresh keras.callbacks.EarlyStopping with restore_best_weights.
        shuffle: `EpochShuffle` of the training images.
        retrain, use_published: train anew even if the run is finished; take published weights.
        kept: the model whose weights are saved, where it is not the one that is trained.
        settings: anything else the result depends on.
    """

    def __init__(self, config, name, images, early_stopping, shuffle, retrain=False,
                 use_published=False, kept=None, **settings):  # fmt: skip
        super().__init__()
        self.config, self.name, self.images = config, name, images
        self.early_stopping, self.shuffle, self.retrain = early_stopping, shuffle, retrain
        self.use_published, self.kept, self.extra = use_published, kept, settings
        self.path = config.output_dir / name / STATE

    @property
    def history(self):
        """DataFrame, by epoch (from 1): loss, accuracy, val_loss, val_accuracy, seconds. UserError
        while the training has not ended: nobody plots or saves half of one for a whole."""
        if not self.ended:
            raise UserError(f"The training of {self.name} was interrupted: run its cell again.")
        return pd.DataFrame(self.rows)

    def restore(self, model):
        """Puts back what there is, the published run, a finished one or an interrupted training,
        into a compiled model; returns the epoch to go on from, for `fit`. UserError where the
        finished run has other settings, the model is trained already, nothing is published, or
        early stopping does not restore the best weights."""
        self.settings, name, stopping = self._describe(model), self.name, self.early_stopping
        if not stopping.restore_best_weights or stopping.start_from_epoch:
            raise UserError("EarlyStopping needs restore_best_weights here, no start_from_epoch.")
        self.rows, self.counters, self.is_new, self.ended = [], {}, True, False
        if self.use_published and not self.retrain:
            words = "the published run, not trained here: it may know these validation images"
            if not (run := find_published_run(name, need_weights=True)):
                raise UserError(f"{name}: no weights are published for such settings, or weights/ "
                                "is damaged. Untick USE_PUBLISHED_WEIGHTS to train.")  # fmt: skip
        elif self.retrain or not (run := find_own_run(self.config, name)):
            if not (epoch := self._load_state(model)) and model.optimizer.iterations.numpy():
                raise UserError(f"The model of {name} is trained already, at least for part of an "
                                "epoch: run the cell that builds it again.")  # fmt: skip
            return epoch
        elif changed := _differences(run.info["settings"], self.settings):
            words = f"{display_path(run.folder)} was trained with other settings ({changed})"
            raise UserError(f"{words}. Tick RETRAIN to replace it, or set another OUT (CXR_OUT).")
        else:
            words = f"trained before, in {display_path(run.folder)}"
        print(f"{name}: {words}, {len(run.history)} epochs. Its weights are loaded.")
        warn_other_images(run, self.images)
        run.load_weights(self.kept or model)
        model.optimizer.iterations.assign(1)  # so that RETRAIN does not go on from these weights
        self.rows, self.is_new, self.ended = run.history.to_dict("records"), False, True
        shown = ["epoch", "loss", "accuracy", "val_loss", "val_accuracy"]
        print(self.history[shown].round(4).to_string(index=False))
        return FINISHED

    def _load_state(self, model):
        if self.config.drive:
            self.config.drive.download(self.path)
        try:
            with np.load(self.path) as archive:
                if damaged := archive.zip.testzip():  # numpy does not read on to the checksums
                    raise ValueError(f"{damaged} is not what was written")
                state = json.loads(archive["state"].tobytes())
                arrays = [archive[f"arr_{number}"] for number in range(state["arrays"])]
            old = self.retrain and not state["retrain"]  # of the training that RETRAIN replaces
            if changed := "RETRAIN" if old else _differences(state["settings"], self.settings):
                raise ValueError(f"of a training with other settings: {changed}")
        except FileNotFoundError:
            return 0
        except Exception as error:  # a damaged zip raises nearly anything
            print(f"{display_path(self.path)} cannot be used ({error}): training starts anew.")
            return 0
        with model.distribute_strategy.scope():
            model.optimizer.build(model.trainable_variables)
        variables = [*model.variables, *model.optimizer.variables]
        for variable, value in zip(variables, arrays, strict=False):
            variable.assign(value)
        self.rows, self.ended = state["history"], state["stopped"]
        self.counters = state["counters"] | {"best_weights": arrays[len(variables) :]}
        print(f"Going on after epoch {len(self.rows)} of a training that was interrupted.")
        if not state["stopped"]:
            return len(self.rows)
        model.set_weights(self.counters["best_weights"])  # fit, which would, may not be called
        return FINISHED

    def on_train_begin(self, logs=None):
        vars(self.early_stopping).update(self.counters)  # it has just reset itself

    def on_train_end(self, logs=None):
        self.ended = True  # Keras does not come here from an interrupted `fit`

    def on_epoch_begin(self, epoch, logs=None):
        self.shuffle.epoch, self.began = epoch, time.perf_counter()

    def on_epoch_end(self, epoch, logs=None):
        measures, stopping = {k: float(logs[k]) for k in logs}, self.early_stopping
        seconds = round(time.perf_counter() - self.began, 2)
        self.rows.append({"epoch": epoch + 1, **measures, "seconds": seconds})
        variables = [*self.model.variables, *self.model.optimizer.variables]
        arrays = [*(variable.numpy() for variable in variables), *(stopping.best_weights or ())]
        state = {
            "arrays": len(arrays), "settings": self.settings, "retrain": self.retrain,
            "history": self.rows, "stopped": bool(self.model.stop_training),
            "counters": {name: float(getattr(stopping, name)) for name in _COUNTERS},
        }  # fmt: skip
        with atomic_write(self.path) as part:
            np.savez(part, *arrays, state=np.frombuffer(json.dumps(state).encode(), np.uint8))
        if self.config.drive:
            self.config.drive.upload_state(self.path)

    def _describe(self, model):
        """What a result depends on, initial weights aside, as JSON."""
        stopping, optimizer = self.early_stopping, model.optimizer
        settings = {
            "seed": self.config.seed, "mode": self.config.mode,
            "images": self.images.fingerprint, "train": self.shuffle.fingerprint,
            "layers": [(type(layer).__name__, layer.count_params(),
                        len(layer.trainable_weights) if isinstance(layer, keras.Model)
                        else layer.get_config()) for layer in model.layers],
            "loss": getattr(model.loss, "get_config", lambda: model.loss)(),
            "optimizer": [type(optimizer).__name__, optimizer.get_config()],
            "early_stopping": {"monitor": stopping.monitor, "patience": stopping.patience,
                               "min_delta": abs(float(stopping.min_delta))},
            **self.extra,
        }  # fmt: skip
        skip = ("name", "build_config", "registered_name", "module")  # differ between equal objects
        content = json.dumps(settings, default=lambda x: getattr(x, "__name__", str(x)))
        return json.loads(content, object_hook=lambda d: {k: d[k] for k in d if k not in skip})


def _differences(old, new):
    """The settings that differ, in words. None and data_format come and go with Keras' versions."""
    old, new = (json.loads(json.dumps(settings), object_hook=lambda d: {
        k: v for k, v in d.items() if v is not None and k != "data_format"
    }) for settings in (old, new))  # fmt: skip
    for one, other in zip(old.get("layers", ()), new.get("layers", ()), strict=False):
        one[2:] = other[2:] if one[2] is None else one[2:]  # a nested model, before version 4
    return ", ".join(sorted(k for k in old.keys() | new.keys() if old.get(k) != new.get(k)))
