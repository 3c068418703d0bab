"""Timings as ratios, each pair measured in one run on one machine: `make bench`.

    CXR_DATA=folder CXR_ORIGINALS=folder python benchmarks/bench.py [NAME ...]

Every measurement runs in a process of its own, so that its peak memory is its own. The results are
printed and written to results/bench.json; with NAMEs only these are measured anew. CXR_ORIGINALS
has the files that are decoded (full-size ones, if at hand), by default those of the set itself.
"""

import contextlib
import dataclasses
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
import timeit
from collections import deque
from functools import partial
from pathlib import Path

import keras
import numpy as np
import pandas as pd
import tensorflow as tf

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import utils
from cxr import cache
from cxr.files import PROJECT, RESULTS

REPORT = RESULTS / "bench.json"
REPEATS = 3
TRAIN, VALIDATION, USED = 4172, 1044, 5840  # images of the whole set
RUNS = ("02_cnn1_2class", "03_cnn1_3class", "04_inceptionv3", "05_cnn1_transfer")


def fastest(function, repeats=REPEATS):
    """Least wall-clock seconds of several calls: the machine's other work only adds."""
    return min(timeit.repeat(function, number=1, repeat=repeats))


@contextlib.contextmanager
def opened():
    """(config, images, training images); what is computed goes to a folder that is deleted."""
    config = utils.setup(mode="full")
    images = utils.load_images(config)
    train = images.metadata[images.metadata["source_split"] == "train"]
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        yield dataclasses.replace(config, output_dir=place, cache_dir=place), images, train


def epochs_of(run):
    """Epochs of the published run with seed 0, for what is added up; 10 where there is none."""
    path = next(iter(sorted(RESULTS.glob(f"*/seed-0/{run}/history.csv"))), None)
    return len(path.read_text().splitlines()) - 1 if path else 10


# --- What is measured; each returns a dict ------------------------------------------------


def load_img_loop():
    files = sorted(Path(os.environ["CXR_ORIGINALS"]).rglob("*.jp*g"))[:500]
    images = np.empty((len(files), 224, 224, 3), np.uint8)

    def loop():
        for n, file in enumerate(files):
            images[n] = keras.utils.load_img(file, target_size=(224, 224), interpolation="nearest")

    loop()
    return {"images_per_s": len(files) / fastest(loop), "images": len(files)}


def fill_cache():
    root = Path(os.environ["CXR_ORIGINALS"])
    files = sorted(root.rglob("*.jp*g"))[:500]
    metadata = pd.DataFrame({"file": [file.relative_to(root).as_posix() for file in files]})
    metadata["source_split"] = "train"

    def build():
        with tempfile.TemporaryDirectory() as place:
            cache._build_cache(Path(place), root, "folder", metadata)

    build()
    return {"images_per_s": len(files) / fastest(build), "images": len(files)}


def pipeline(times=1):
    with opened() as (_, images, train):
        rows = pd.concat([train] * times)
        dataset = utils.make_dataset(images, rows, 3, 32, utils.EpochShuffle(0))
        seconds = fastest(lambda: deque(dataset, maxlen=0), REPEATS + 1)
    return {"images_per_s": len(rows) / seconds, "seconds": seconds, "images": len(rows)}


def directory_pipeline():
    with opened() as (_, images, train):
        dataset = keras.utils.image_dataset_from_directory(
            images.root / "train", "inferred", "categorical", image_size=(224, 224), seed=0,
            interpolation="nearest", verbose=False)  # fmt: skip
        scaled = dataset.map(lambda pixels, label: (tf.cast(pixels, tf.float32) / 255.0, label))
        seconds = fastest(lambda: deque(scaled.prefetch(2), maxlen=0))
    return {"images_per_s": len(train) / seconds, "images": len(train)}


class Clock(keras.callbacks.Callback):
    """Of an epoch's steps alone: validation has no counterpart in bare steps."""

    def on_epoch_begin(self, epoch, logs=None):
        self.began = time.perf_counter()

    def on_train_batch_end(self, batch, logs=None):
        self.seconds = time.perf_counter() - self.began


def training_and_bare():
    """The training loop with all its callbacks beside a bare `train_on_batch`, in turns."""
    whole, bare, steps, clock = [], [], 20, Clock()
    with opened() as (config, images, train):
        rows, shuffle = train.sample(32 * steps, random_state=0), utils.EpochShuffle(0)
        data = utils.make_dataset(images, rows, 2, 32, shuffle)
        validation = utils.make_dataset(images, rows.head(32), 2, 32)
        model = utils.build_cnn_1(2, 0.2, 0)
        model.compile(utils.build_optimizer(), "categorical_crossentropy", metrics=["accuracy"])
        pixels = np.random.default_rng(0).random((32, 224, 224, 3), dtype="float32")
        labels = utils.one_hot(rows.head(32), 2)
        early_stopping = keras.callbacks.EarlyStopping(patience=99, restore_best_weights=True)
        checkpoint = utils.TrainingCheckpoint(config, "bench", images, early_stopping, shuffle)
        checkpoint.restore(model)
        for _ in range(REPEATS + 1):
            model.fit(data, validation_data=validation, shuffle=False, verbose=0,
                      callbacks=[early_stopping, checkpoint, clock])  # fmt: skip
            whole.append(len(rows) / clock.seconds)
            started = time.perf_counter()
            for _ in range(steps):
                model.train_on_batch(pixels, labels)
            bare.append(len(rows) / (time.perf_counter() - started))
    return {"images_per_s": max(whole[1:]), "bare_images_per_s": max(bare[1:]), "images": len(rows)}


def frozen_and_layers(run):
    """The frozen part of notebook 04 or 05, and the layers that are trained on it. Untrained
    weights are as fast as ImageNet's, and need no download."""
    layers = keras.layers
    if run == "05_cnn1_transfer":
        cnn_1 = utils.build_cnn_1(3, 0.2, 0)
        return keras.Model(cnn_1.inputs[0], cnn_1.layers[6].output), utils.cnn_1_layers(3, 0.2, 0)
    shape = (224, 224, 3)
    return keras.applications.InceptionV3(include_top=False, weights=None, input_shape=shape), [
        layers.Flatten(), layers.Dense(256, activation="relu"), layers.Dropout(0.2),
        layers.Dense(128, activation="relu"), layers.Dropout(0.2),
        layers.Dense(3, activation="softmax"),
    ]  # fmt: skip


def transfer(run, count):
    """Training on frozen features beside the same training with the frozen part inside."""
    with opened() as (config, images, train):
        rows = train.sample(min(count, len(train)), random_state=0)
        frozen, layers = frozen_and_layers(run)
        frozen.trainable = False
        head = keras.Sequential([keras.Input(frozen.output_shape[1:]), *layers])
        flip = keras.layers.RandomFlip("horizontal")
        whole = keras.Sequential([keras.Input((224, 224, 3)), flip, frozen, *layers])
        for model in (whole, head):
            model.compile("adam", "categorical_crossentropy", metrics=["accuracy"])
        data = utils.make_dataset(images, rows, 3, 64)
        frozen.predict(data, verbose=0)
        predict = fastest(lambda: frozen.predict(data, verbose=0), 2)
        features = utils.FrozenFeatures(config, images, rows, frozen, "bench")
        extraction = fastest(lambda: (features.path.unlink(missing_ok=True), features.compute()), 2)
        seconds = {}
        for model, source in ((head, features), (whole, images)):
            shuffled = utils.make_dataset(source, rows, 3, 64, utils.EpochShuffle(0))
            model.fit(shuffled, shuffle=False, verbose=0)
            seconds[model] = fastest(partial(model.fit, shuffled, shuffle=False, verbose=0), 2)
    epochs, fast, slow = epochs_of(run), seconds[head], seconds[whole]
    return {
        "images": len(rows), "epochs": epochs,
        "epoch_images_per_s": len(rows) / fast, "inside_images_per_s": len(rows) / slow,
        "extraction_images_per_s": 2 * len(rows) / extraction,
        "predict_images_per_s": len(rows) / predict,
        "training_ratio": epochs * slow / (extraction + epochs * fast),
    }  # fmt: skip


MEASURES = {
    "load_img loop": load_img_loop,
    "filling the cache": fill_cache,
    "pipeline": pipeline,
    "pipeline, 2x images": lambda: pipeline(2),
    "pipeline, 4x images": lambda: pipeline(4),
    "image_dataset_from_directory": directory_pipeline,
    "CNN_1 training": training_and_bare,
    "04 on features": lambda: transfer("04_inceptionv3", 512),
    "05 on features": lambda: transfer("05_cnn1_transfer", 1024),
}


# --- What follows from it -----------------------------------------------------------------


def ratios(found):
    rate = {name: measured.get("images_per_s") for name, measured in found.items()}
    one, two, four = (found[f"pipeline{n}"] for n in ("", ", 2x images", ", 4x images"))
    training = rate["CNN_1 training"]
    result = {
        "filling the cache : load_img loop": rate["filling the cache"] / rate["load_img loop"],
        "pipeline : image_dataset_from_directory":
            rate["pipeline"] / rate["image_dataset_from_directory"],
        "pipeline seconds, 2x : 1x images": two["seconds"] / one["seconds"],
        "pipeline seconds, 4x : 1x images": four["seconds"] / one["seconds"],
        "pipeline peak memory, 4x : 1x images": four["peak_mb"] / one["peak_mb"],
        "pipeline : CNN_1 training": rate["pipeline"] / training,
        "CNN_1 training : bare train_on_batch":
            training / found["CNN_1 training"]["bare_images_per_s"],
    }  # fmt: skip
    for number in ("04", "05"):
        of = found[f"{number} on features"]
        result |= {
            f"{number}, epoch on features : frozen part inside":
                of["epoch_images_per_s"] / of["inside_images_per_s"],
            f"{number}, whole training on features : frozen part inside": of["training_ratio"],
            f"{number}, feature extraction : bare predict":
                of["extraction_images_per_s"] / of["predict_images_per_s"],
        }  # fmt: skip
    return result | whole_report(found, rate)


def whole_report(found, rate):
    """The four trainings at their published epochs, added up from the rates measured in this run.
    The plain way decodes every image in every epoch with load_img, and keeps the frozen part
    inside the model."""
    epochs = {run[:2]: epochs_of(run) for run in RUNS}
    scratch = (epochs["02"] + epochs["03"]) * TRAIN / rate["CNN_1 training"]
    decoding = sum(epochs.values()) * (TRAIN + VALIDATION) / rate["load_img loop"]
    ours, plain = scratch + USED / rate["filling the cache"], scratch
    for number in ("04", "05"):
        of = found[f"{number} on features"]
        ours += 2 * USED / of["extraction_images_per_s"]
        ours += epochs[number] * TRAIN / of["epoch_images_per_s"]
        plain += epochs[number] * TRAIN / of["inside_images_per_s"]
        plain += epochs[number] * VALIDATION / of["predict_images_per_s"]
    return {
        "whole report : plain way": (plain + decoding) / ours,
        "whole report : plain way without its decoding": plain / ours,
    }


def rounded(numbers):
    return {n: float(f"{v:.3g}") if isinstance(v, float) else v for n, v in numbers.items()}


def main(names):
    if names[:1] == ["--one"]:
        result = MEASURES[names[1]]()
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        print(json.dumps({**result, "peak_mb": round(peak / 1024)}))
        return
    if unknown := set(names) - set(MEASURES):
        sys.exit(f"no such measurement: {', '.join(unknown)}; there are {', '.join(MEASURES)}")
    data = os.environ.get("CXR_DATA") or str(PROJECT / "data" / "sample")
    for name, folder in (("DATA", data), ("ORIGINALS", os.environ.get("CXR_ORIGINALS") or data)):
        os.environ[f"CXR_{name}"] = str(Path(folder).absolute())
    # with NAMEs, the others stay as they are
    found = json.loads(REPORT.read_text())["measured"] if names and REPORT.exists() else {}
    for name in names or MEASURES:
        done = subprocess.run([sys.executable, __file__, "--one", name],
                              cwd=PROJECT, capture_output=True, text=True)  # fmt: skip
        if done.returncode:
            sys.exit(f"{name} failed:\n{done.stderr}")
        found[name] = rounded(json.loads(done.stdout.splitlines()[-1]))
        print(f"{name:32}", found[name], flush=True)
    if set(found) == set(MEASURES):
        version = f"Python {platform.python_version()}"
        report = {"machine": f"{os.cpu_count()} cores, {platform.machine()}, {version}",
                  "data": Path(os.environ["CXR_DATA"]).name, "measured": found,
                  "ratios": rounded(ratios(found))}  # fmt: skip
        REPORT.write_text(json.dumps(report, indent=1) + "\n")
        print(*(f"{name:50} {value}" for name, value in report["ratios"].items()), sep="\n")


if __name__ == "__main__":
    main(sys.argv[1:])
