"""A whole run in a few seconds, for the tests that disturb it: images are packed, features
computed, a head is trained on them, and the stage is saved."""

import contextlib
import os
import signal

import h5py
import keras
import pandas as pd

import utils

STAGE = "09_tiny"
BLOCK = 4  # images per block of features, so that there are several


def whole_run(run):
    """Everything a notebook does with the files of a run, on the images of `run`.

    Returns:
        (history, predictions, weights): DataFrames, history without its seconds, and a list of
        the arrays in model.weights.h5: what two runs must have in common.
    """
    utils.FEATURE_BLOCK, utils.FEATURE_RECORD = BLOCK, 2
    layers = keras.layers
    images = utils.open_images(run)
    index = images.index.assign(part=utils.assign_parts(images.index, run.seed))
    rows = index[index["part"] != "unused"]
    inputs = keras.Input((utils.SIDE, utils.SIDE, 3))
    frozen = keras.Model(inputs, layers.AveragePooling2D(32)(inputs))
    features = utils.frozen_features(run, images, rows, frozen, "tiny")
    parts = [rows[rows["part"] == part] for part in ("train", "validation", "test")]
    data = utils.make_feature_dataset(features, parts[0], 3, 4, shuffle_seed=run.seed)
    validation = utils.make_feature_dataset(features, parts[1], 3, 4)
    keras.utils.set_random_seed(run.seed)
    head = keras.Sequential([keras.Input(features.shape), layers.Flatten(),
                             layers.Dense(3, activation="softmax")])  # fmt: skip
    whole = keras.Sequential([inputs, frozen, *head.layers])
    head.compile("adam", "categorical_crossentropy", metrics=["accuracy"])
    early = keras.callbacks.EarlyStopping(patience=5, restore_best_weights=True)
    history, settings = utils.train(
        run, STAGE, images, head, data, validation, 2, early, whole=whole
    )
    predictions = utils.predict(whole, images, parts[2], 3)
    utils.save_stage(run, STAGE, images, whole, history, predictions, settings=settings)
    return left(run)


def left(run):
    """What a finished run left, read back; as `whole_run` returns it."""
    stage = utils.Stage(run.out / STAGE)
    weights = []
    with h5py.File(stage._file("model.weights.h5")) as file:
        file.visititems(lambda _, item: isinstance(item, h5py.Dataset) and weights.append(item[()]))
    return stage.history.drop(columns="seconds"), stage.predictions, weights


def assert_same(one, other):
    """Raises AssertionError unless two runs are the same to the last bit."""
    for number in (0, 1):
        pd.testing.assert_frame_equal(one[number], other[number], check_exact=True)
    assert len(one[2]) == len(other[2])
    assert all((a == b).all() for a, b in zip(one[2], other[2], strict=True))


def files(folder):
    """Names of all files in a folder, without those that carry a key or a time."""
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


@contextlib.contextmanager
def watched(tell):
    """Calls `tell(what, path)` at every moment at which a run touches its files.

    `what` is "rename" before a file gets its name and "renamed" after it, "read" for an image,
    "block" for a batch of features, "h5" when Keras has written the weights' temporary file.
    """
    replace, read = os.replace, utils.read_image
    predict, save = keras.Model.predict_on_batch, keras.Model.save_weights

    def watched_replace(old, new):
        tell("rename", os.fspath(new))
        replace(old, new)
        tell("renamed", os.fspath(new))

    def watched_read(path):
        tell("read", os.fspath(path))
        return read(path)

    def watched_predict(self, batch):
        tell("block", "")
        return predict(self, batch)

    def watched_save(self, path, *args, **kwargs):
        save(self, path, *args, **kwargs)
        tell("h5", os.fspath(path))

    os.replace, utils.read_image = watched_replace, watched_read
    keras.Model.predict_on_batch, keras.Model.save_weights = watched_predict, watched_save
    try:
        yield
    finally:
        os.replace, utils.read_image = replace, read
        keras.Model.predict_on_batch, keras.Model.save_weights = predict, save


def killed_run(data, out, what, name, count):
    """`whole_run`, ended by SIGKILL at the `count`-th moment `what` of a file whose path holds
    `name`. Runs in a process of its own."""
    seen = []

    def tell(now, path):
        if now == what and name in path:
            seen.append(path)
            if len(seen) == count:
                os.kill(os.getpid(), signal.SIGKILL)

    with watched(tell):
        whole_run(utils.setup(data=data, out=out, profile="full", seed="0"))
