"""A whole run in a second: a very small network, trained as notebook 02 trains CNN_1 on a set of
very few images; and what tests do to files."""

import multiprocessing
import os

import keras
import numpy as np
import pandas as pd
import pytest
from PIL import Image

import utils

NAME = "02_small"
FILES = {"history.csv", "predictions.csv", "model.weights.h5", "run.json"}


def make_tiny_set(folder):
    """Writes 24 small noisy pictures in Kaggle's layout and naming; returns the folder."""
    rng = np.random.default_rng(0)
    for split in ("train", "val", "test"):
        for n in range(1, 5):
            for name in (f"NORMAL/IM-{n:04d}-0001.jpeg", f"PNEUMONIA/person{n}_bacteria_{n}.jpeg"):
                path = folder / split / name
                path.parent.mkdir(parents=True, exist_ok=True)
                pixels = rng.integers(0, 256, (50, 60), np.uint8)
                Image.fromarray(pixels).save(path, "JPEG", quality=90)
    return folder


class Killed(BaseException):
    """Stands for the end of the process."""


def at_end(hook):
    """A callback that calls `hook(epoch)`, from 1, at the end of each epoch."""
    return keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, _: hook(epoch + 1))


def floats(images, rows):
    return utils.to_rgb(images.read(rows.index.to_numpy())).astype("float32") / 255


def build_model(rate):
    layers = keras.layers
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [keras.Input((224, 224, 3)), layers.RandomFlip("horizontal", seed=0),
         layers.AveragePooling2D(32), layers.Flatten(), layers.Dropout(0.5, seed=0),
         layers.Dense(2, activation="softmax")]
    )  # fmt: skip
    optimizer = keras.optimizers.Adam(rate)
    model.compile(optimizer, "categorical_crossentropy", metrics=["accuracy"], jit_compile=False)
    return model


def train(config, name=NAME, killed_after=None, hook=None, patience=1, epochs=6, rate=1e-2,
          follow=False, plain=False, times=1, tick=False, **options):  # fmt: skip
    """Trains as the notebooks do, and saves the run; `options` are `TrainingCheckpoint`'s. Returns
    (history, predictions, weights).

    `killed_after` is the epoch whose state is kept last; `hook` is called with each epoch's number
    before that; `follow` adds the accuracy on test; `plain` leaves `TrainingCheckpoint` out; what
    comes after the model is run some `times`, then with RETRAIN if `tick`."""

    def kill(epoch):
        if epoch == killed_after:
            raise Killed

    images = utils.load_images(config)
    metadata = utils.assign_splits(images.metadata, config)
    training, validation, test = utils.by_split(metadata)
    shuffle = utils.EpochShuffle(config.seed)
    data = utils.make_dataset(images, training, 2, 2, shuffle)
    data = data if plain else data.prefetch(1).take(9)  # as a newcomer may write, in vain
    held_out = floats(images, validation), utils.one_hot(validation, 2)
    model = build_model(rate)
    early_stopping = keras.callbacks.EarlyStopping(patience=patience, restore_best_weights=True)
    checkpoint = utils.TrainingCheckpoint(config, name, images, early_stopping, shuffle, **options)
    callbacks = [early_stopping, at_end(hook or bool), checkpoint, at_end(kill)]
    if follow:
        import study

        names = {"test_data": utils.make_dataset(images, test, 2, 2), "checkpoint": checkpoint}
        callbacks.insert(1, eval(study.FOLLOW, {"keras": keras, **names}))  # noqa: S307
    if plain:
        callbacks = [early_stopping, at_end(lambda epoch: setattr(shuffle, "epoch", epoch))]
    fixed = {"epochs": epochs, "verbose": 0, "callbacks": callbacks, "shuffle": False}
    rows = pd.concat([validation, test])
    for _ in range(times):
        first = 0 if plain else checkpoint.restore(model)
        try:
            if first <= epochs or times > 1:  # notebooks 04 and 05 ask first, the others do not
                done = model.fit(data, validation_data=held_out, initial_epoch=first, **fixed)
        except Killed:
            with pytest.raises(utils.UserError, match="was interrupted: run its cell again"):
                utils.save_run(checkpoint, model, None)
            raise
        predictions = utils.prediction_table(rows, 2, model(floats(images, rows), training=False))
        if not plain:
            utils.save_run(checkpoint, model, predictions)
            utils.save_run(checkpoint, model, predictions)  # a cell that is run again saves nothing
            checkpoint.retrain |= tick
    history = pd.DataFrame(done.history) if plain else checkpoint.history
    return history, predictions, model.get_weights()


def assert_same(one, other):
    """Raises AssertionError unless two runs are the same to the last bit."""
    columns = ["loss", "accuracy", "val_loss", "val_accuracy"]
    pd.testing.assert_frame_equal(one[0][columns], other[0][columns], check_exact=True)
    pd.testing.assert_frame_equal(one[1], other[1], check_exact=True)
    assert all(np.array_equal(a, b) for a, b in zip(one[2], other[2], strict=True))


def contents(folder):
    """The bytes of every file, by its name in the folder."""
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


def in_a_process(function, *arguments):
    """The exit code of a function that runs in a process of its own, forked from one that has
    loaded TensorFlow and done nothing with it yet."""
    context = multiprocessing.get_context("forkserver")
    os.environ["PYTHONPATH"] = os.pathsep.join((str(utils.PROJECT), os.path.dirname(__file__)))
    context.set_forkserver_preload(["utils", "small"])
    process = context.Process(target=function, args=arguments)
    process.start()
    process.join(600)
    return process.exitcode
