"""Timings as ratios, each pair measured in one run on one machine.

    CXR_DATA=folder CXR_ORIGINALS=folder python tests/tools/bench.py [NAME ...]

Every measurement runs in a process of its own, so that its peak memory is its own. The results
are printed and written to results/bench.json; with NAMEs only these are measured anew.
"""

import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(PROJECT))
REPEATS = 3


def peak_mb():
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def fastest(function, repeats=REPEATS):
    """Least wall-clock seconds of several calls: the machine's other work only adds."""
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        function()
        times.append(time.perf_counter() - started)
    return min(times)


def originals():
    """Full-size files: CXR_ORIGINALS, or else the train files of the set itself."""
    folder = os.environ.get("CXR_ORIGINALS") or os.environ["CXR_DATA"]
    return sorted(Path(folder).rglob("*.jpeg"))[:500]


def opened():
    import utils

    run = utils.setup()
    return run, utils.open_images(run)


# --- what is measured; each returns a dict ------------------------------------------------


def load_img_loop():
    import keras
    import numpy as np

    files = originals()
    images = np.empty((len(files), 224, 224, 3), np.uint8)

    def loop():
        for number, file in enumerate(files):
            images[number] = keras.utils.load_img(
                file, target_size=(224, 224), interpolation="nearest"
            )

    loop()
    return {"images_per_s": len(files) / fastest(loop), "images": len(files)}


def packing():
    import pandas as pd

    import utils

    files = originals()
    folder = Path(os.path.commonpath(files))
    index = pd.DataFrame({"file": [file.relative_to(folder).as_posix() for file in files]})
    index = index.assign(split="", class3="")
    run = utils.setup()

    def pack():
        with tempfile.TemporaryDirectory() as place:
            cold = utils.dataclasses.replace(run, cache=Path(place), mirror=None)
            utils._pack(cold, "bench", folder, "folder", index)

    pack()
    return {"images_per_s": len(files) / fastest(pack), "images": len(files)}


def warm_start():
    import utils

    run, images = opened()
    return {"seconds": fastest(lambda: utils.open_images(run)), "images": len(images.index)}


def pipeline(times=1):
    import pandas as pd

    import utils

    _, images = opened()
    rows = pd.concat([images.index[images.index["split"] == "train"]] * times)
    dataset = utils.make_dataset(images, rows, classes=3, batch_size=32, shuffle_seed=0)

    def epoch():
        for _ in dataset:
            pass

    epoch()
    seconds = fastest(epoch)
    return {"images_per_s": len(rows) / seconds, "seconds": seconds, "images": len(rows)}


def directory_pipeline():
    import keras
    import tensorflow as tf

    _, images = opened()
    dataset = keras.utils.image_dataset_from_directory(
        images.root / "train", image_size=(224, 224), interpolation="nearest",
        label_mode="categorical", batch_size=32, seed=0, verbose=False,
    )  # fmt: skip
    scaled = dataset.map(lambda pixels, label: (tf.cast(pixels, tf.float32) / 255.0, label))
    count = int((images.index["split"] == "train").sum())
    seconds = fastest(lambda: [None for _ in scaled.prefetch(2)])
    return {"images_per_s": count / seconds, "images": count}


def report_model(classes=2):
    import keras

    import utils

    model = utils.build_cnn_1(classes, 0.2, 0)
    schedule = keras.optimizers.schedules.InverseTimeDecay(1e-4, 1, 1e-5)
    model.compile(keras.optimizers.Adam(schedule), "categorical_crossentropy", metrics=["accuracy"])
    return model


def training_and_bare():
    """The training loop with all its callbacks beside a bare `train_on_batch`, in turns."""
    import keras
    import numpy as np

    import utils

    _, images = opened()
    rows = images.index[images.index["split"] == "train"].sample(32 * 24, random_state=0)
    data = utils.make_dataset(images, rows, 2, 32, shuffle_seed=0)
    validation = utils.make_dataset(images, rows.head(32), 2, 32)
    model = report_model()
    pixels = np.random.default_rng(0).random((32, 224, 224, 3), dtype="float32")
    labels = utils.one_hot(rows.head(32), 2)
    whole, bare = [], []

    class Clock(keras.callbacks.Callback):  # the steps alone: validation has no bare counterpart
        def on_epoch_begin(self, epoch, logs=None):
            self.began = time.perf_counter()

        def on_train_batch_end(self, batch, logs=None):
            self.ended = time.perf_counter()

    clock = Clock()
    with tempfile.TemporaryDirectory() as place:
        early = keras.callbacks.EarlyStopping(patience=99, restore_best_weights=True)
        keep = utils._Resume(Path(place) / "training.npz", {}, early, data.order, 1)
        for _ in range(REPEATS + 1):
            callbacks = [early, keep, clock]
            model.fit(data, validation_data=validation, callbacks=callbacks, verbose=0,
                      shuffle=False)  # fmt: skip
            whole.append(len(rows) / (clock.ended - clock.began))
            started = time.perf_counter()
            for _ in range(24):
                model.train_on_batch(pixels, labels)
            bare.append(24 * 32 / (time.perf_counter() - started))
    best = {"images_per_s": max(whole[1:]), "bare_images_per_s": max(bare[1:])}
    return {**best, "images": len(rows)}


def pytorch():
    """The same CNN, batch and optimizer in PyTorch, on constant data."""
    try:
        import torch
    except ImportError:
        return {"images_per_s": None, "note": "PyTorch is not installed"}
    from torch import nn

    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 32, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(32, 64, 3), nn.ReLU(),
        nn.MaxPool2d(2), nn.Conv2d(64, 128, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Dropout(0.2), nn.Linear(86528, 2),
    )  # fmt: skip
    optimizer = torch.optim.Adam(model.parameters(), 1e-4)
    pixels, labels = torch.rand(32, 3, 224, 224), torch.arange(32) % 2

    def steps(count=8):
        for _ in range(count):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(pixels), labels).backward()
            optimizer.step()

    steps(2)
    return {"images_per_s": 8 * 32 / fastest(steps), "version": torch.__version__}


def transfer(stage, count):
    """A stage on frozen features beside the same stage with the frozen part inside."""
    import keras
    import pandas as pd

    import utils

    run, images = opened()
    rows = images.index[images.index["split"] == "train"].sample(count, random_state=0)
    layers = keras.layers
    if stage == "04_inceptionv3":
        # untrained weights are as fast as ImageNet's, and no download
        frozen, _ = utils.build_inception(utils.dataclasses.replace(run, inception="random"))
        shape = frozen.output_shape[1:]
        head = keras.Sequential(
            [keras.Input(shape), layers.Flatten(), layers.Dense(256, activation="relu"),
             layers.Dropout(0.2), layers.Dense(128, activation="relu"), layers.Dropout(0.2),
             layers.Dense(3, activation="softmax")]
        )  # fmt: skip
    else:
        cnn_1 = utils.build_cnn_1(3, 0.2, 0)
        frozen = keras.Model(cnn_1.inputs, cnn_1.layers[6].output)
        frozen.trainable = False
        shape = frozen.output_shape[1:]
        head = keras.Sequential([keras.Input(shape), *utils.cnn_1_layers(3, 0.2, 0)])
    whole = keras.Sequential(
        [keras.Input((224, 224, 3)), layers.RandomFlip("horizontal"), frozen, *head.layers]
    )
    for model in (whole, head):
        model.compile(keras.optimizers.Adam(1e-4), "categorical_crossentropy", metrics=["accuracy"])
    pixels = utils.make_dataset(images, rows, 3, 64, shuffle_seed=0)

    data = utils.make_dataset(images, rows, 3, 64)
    frozen.predict(data, verbose=0)
    predict = fastest(lambda: frozen.predict(data, verbose=0), 2)
    with tempfile.TemporaryDirectory() as place:
        cold = utils.dataclasses.replace(run, cache=Path(place), mirror=None)

        def extract():
            for old in Path(place).iterdir():
                old.unlink()
            return utils.frozen_features(cold, images, rows, frozen, "bench")

        extraction = fastest(extract, 2)
        features = utils.frozen_features(cold, images, rows, frozen, "bench")  # from the cache
        on_features = utils.make_feature_dataset(features, rows, 3, 64, shuffle_seed=0)
        fit = {"epochs": 1, "shuffle": False, "verbose": 0}
        head.fit(on_features, **fit)
        whole.fit(pixels, **fit)
        fast = fastest(lambda: head.fit(on_features, **fit), 3)
        slow = fastest(lambda: whole.fit(pixels, **fit), 2)
    epochs = pd.read_csv(history_of(stage))["epoch"].max() if history_of(stage) else 10
    return {
        "images": count,
        "epoch_images_per_s": count / fast,
        "inside_images_per_s": count / slow,
        "extraction_images_per_s": 2 * count / extraction,
        "predict_images_per_s": count / predict,
        "epochs": int(epochs),
        "stage_ratio": epochs * slow / (extraction + epochs * fast),
    }


def history_of(stage):
    return next(iter(sorted((PROJECT / "results").glob(f"*/seed-0/{stage}/history.csv"))), None)


MEASURES = {
    "load_img loop": load_img_loop,
    "packing": packing,
    "warm start": warm_start,
    "pipeline": pipeline,
    "pipeline, 2x images": lambda: pipeline(2),
    "pipeline, 4x images": lambda: pipeline(4),
    "image_dataset_from_directory": directory_pipeline,
    "CNN_1 training": training_and_bare,
    "CNN_1 in PyTorch": pytorch,
    "04 on features": lambda: transfer("04_inceptionv3", 512),
    "05 on features": lambda: transfer("05_cnn1_transfer", 1024),
}


def ratios(found):
    def rate(name):
        return found[name]["images_per_s"]

    one, two, four = (found[n] for n in ("pipeline", "pipeline, 2x images", "pipeline, 4x images"))
    return {
        "packing : load_img loop": rate("packing") / rate("load_img loop"),
        "pipeline : image_dataset_from_directory": rate("pipeline")
        / rate("image_dataset_from_directory"),
        "pipeline seconds, 2x : 1x images": two["seconds"] / one["seconds"],
        "pipeline seconds, 4x : 1x images": four["seconds"] / one["seconds"],
        "pipeline peak memory, 4x : 1x images": four["peak_mb"] / one["peak_mb"],
        "pipeline : CNN_1 training": rate("pipeline") / rate("CNN_1 training"),
        "CNN_1 training : bare train_on_batch": rate("CNN_1 training")
        / found["CNN_1 training"]["bare_images_per_s"],
        **(
            {"CNN_1 training : PyTorch": rate("CNN_1 training") / rate("CNN_1 in PyTorch")}
            if rate("CNN_1 in PyTorch")
            else {}
        ),
        **{
            f"{stage}, {what}": value
            for stage in ("04", "05")
            for what, value in transfer_ratios(found[f"{stage} on features"]).items()
        },
        **report_ratios(found),
    }


def whole_report(found):
    """Seconds of the four trainings at their published epochs: (this project, the plain way).

    Added up from the rates measured in this run, not run as a whole. The plain way decodes every
    image in every epoch with load_img and keeps the frozen part inside the model.
    """
    train, validation, used = 4172, 1044, 5840  # images
    epochs = {}
    for stage in ("02_cnn1_2class", "03_cnn1_3class", "04_inceptionv3", "05_cnn1_transfer"):
        path = history_of(stage)
        epochs[stage[:2]] = len(path.read_text().splitlines()) - 1 if path else 10
    scratch = (epochs["02"] + epochs["03"]) * train / found["CNN_1 training"]["images_per_s"]
    fast = scratch + used / found["packing"]["images_per_s"]
    decode = found["load_img loop"]["images_per_s"]
    plain = scratch + sum(epochs.values()) * (train + validation) / decode
    for stage in ("04", "05"):
        rates = found[f"{stage} on features"]
        fast += 2 * used / rates["extraction_images_per_s"]
        fast += epochs[stage] * train / rates["epoch_images_per_s"]
        plain += epochs[stage] * train / rates["inside_images_per_s"]
        plain += epochs[stage] * validation / rates["predict_images_per_s"]
    return fast, plain, plain - sum(epochs.values()) * (train + validation) / decode


def transfer_ratios(found):
    return {
        "epoch on features : frozen part inside": found["epoch_images_per_s"]
        / found["inside_images_per_s"],
        "whole stage on features : frozen part inside": found["stage_ratio"],
        "feature extraction : bare predict": found["extraction_images_per_s"]
        / found["predict_images_per_s"],
    }


def report_ratios(found):
    fast, plain, without_decoding = whole_report(found)
    return {
        "whole report : plain way": plain / fast,
        "whole report : plain way without its decoding": without_decoding / fast,
    }


def rounded(numbers):
    return {
        name: float(f"{value:.3g}") if isinstance(value, float) else value
        for name, value in numbers.items()
    }


def main(names):
    if len(names) == 2 and names[0] == "--one":
        result = MEASURES[names[1]]()
        print(json.dumps(dict(result, peak_mb=peak_mb())))
        return
    chosen = names or list(MEASURES)
    if unknown := set(chosen) - set(MEASURES):
        sys.exit(f"no such measurement: {', '.join(unknown)}; there are {', '.join(MEASURES)}")
    if os.environ.get("CXR_DATA", "") not in ("", "kaggle", "phantom"):
        os.environ["CXR_DATA"] = str(Path(os.environ["CXR_DATA"]).absolute())
    if os.environ.get("CXR_ORIGINALS"):
        os.environ["CXR_ORIGINALS"] = str(Path(os.environ["CXR_ORIGINALS"]).absolute())
    elif os.environ.get("CXR_DATA") in ("", "kaggle", "phantom", None):
        os.environ.setdefault("CXR_DATA", "phantom")
        import utils

        os.environ["CXR_ORIGINALS"] = str(utils.find_images(utils.setup())[0])
    found = {}
    for name in chosen:
        command = [sys.executable, __file__, "--one", name]
        done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"{name} failed:\n{done.stderr}")
        found[name] = rounded(json.loads(done.stdout.splitlines()[-1]))
        print(f"{name:32}", found[name], flush=True)
    path = PROJECT / "results" / "bench.json"
    if names and path.exists():  # each of these stands for itself, the others stay
        found = json.loads(path.read_text())["measured"] | found
    if set(found) == set(MEASURES):
        report = {
            "machine": f"{os.cpu_count()} cores, {platform.machine()}, Python "
            f"{platform.python_version()}",
            "data": os.environ["CXR_DATA"].rsplit("/", 1)[-1],
            "measured": found,
            "ratios": rounded(ratios(found)),
        }
        for name, value in report["ratios"].items():
            print(f"{name:45} {value}")
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
