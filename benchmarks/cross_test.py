"""Does the way of resizing matter? CNN_1 trained on each copy of the data set, and notebook 06's
network, scored on the test images of both: results/cross_test.csv. DATA and OUT are those of the
study, the argument is the smoothed copy; weights that were trained on it are in the history of this
repository, seed 0's others in weights/. What the file has is not scored again."""

import subprocess
import sys
import tempfile
from pathlib import Path

import keras
import numpy as np
import pandas as pd

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import utils
from cxr.files import PROJECT, RESULTS, WEIGHTS, atomic_write
from cxr.reference import MAIN_IMAGES
from cxr.runs import ModelRun

LAST_SMOOTHED = "f59033d^"  # the last commit whose weights were trained on the smoothed copy


def find_weights(trained_on, out, seed, name):
    """The weights' content, or None where there are none."""
    if trained_on == "nearest224":
        for place in (out, RESULTS / MAIN_IMAGES):
            run = place / f"seed-{seed}" / name
            if (run / "run.json").exists() and ModelRun(run).has_weights:
                own, published = run / "model.weights.h5", WEIGHTS / f"{name}.weights.h5"
                return (own if own.exists() else published).read_bytes()
        return None
    show = ["git", "show", f"{LAST_SMOOTHED}:weights/seed-{seed}/{name}.weights.h5"]
    found = subprocess.run(show, cwd=PROJECT, capture_output=True)
    return None if found.returncode else found.stdout


def build_xception(config):
    """(the model of notebook 06 that predicts, the part of it whose weights are kept)."""
    layers = keras.layers
    weights, file, _ = utils.pretrained_weights(config, keras.applications.Xception)
    xception = keras.applications.Xception(include_top=False, weights=weights)
    if file:
        xception.load_weights(file)
    middle = xception.get_layer("block9_sepconv1_act").input
    tuned, pool = keras.Model(middle, xception.output), layers.GlobalAveragePooling2D()
    head = [pool, layers.Dropout(0.3), layers.Dense(3, activation="softmax")]
    kept = keras.Sequential([keras.Input(middle.shape[1:]), tuned, *head])
    inputs = keras.Input((224, 224, 3))
    lower = keras.Model(xception.input, middle)
    answers = [kept(lower(layers.Rescaling(2, offset=-1)(x)))
               for x in (inputs, keras.ops.flip(inputs, axis=2))]  # fmt: skip
    return keras.Model(inputs, layers.Average()(answers)), kept


def main():
    if len(sys.argv) != 2:
        sys.exit(f"usage: {sys.argv[0]} FOLDER, the smoothed copy, with test/ in it")
    config, smoothed = utils.setup(mode="full"), Path(sys.argv[1])
    known = pd.read_csv(RESULTS / "cross_test.csv")
    rows = [tuple(row) for row in known.itertuples(index=False)]
    done = set(known[["run", "seed", "trained_on"]].itertuples(index=False, name=None))
    out, images = config.output_dir.parent, utils.load_images(config)
    test = images.metadata.query("source_split == 'test'")
    pixels = {
        "nearest224": images.read(test.index),
        "smoothed": np.stack([utils.read_image(smoothed / file)[0] for file in test["file"]]),
    }
    for name, number in {"02_cnn1_2class": 2, "03_cnn1_3class": 3, "06_beyond": 3}.items():
        for seed in range(5):
            for trained_on in pixels:
                content = find_weights(trained_on, out, seed, name)
                if (name, seed, trained_on) in done or not content:
                    continue
                model = kept = utils.build_cnn_1(number, 0.2, 0)
                if name == "06_beyond":
                    model, kept = build_xception(config)
                with tempfile.TemporaryDirectory() as folder:
                    path = Path(folder, "model.weights.h5")
                    path.write_bytes(content)
                    kept.load_weights(path)
                for tested_on, data in pixels.items():
                    found = model.predict(utils.to_rgb(data).astype("float32") / 255, verbose=0)
                    table = utils.prediction_table(test.assign(split="test"), number, found)
                    accuracy = (utils.predicted_classes(table) == table["true"]).mean()
                    rows.append((name, seed, trained_on, tested_on, round(accuracy, 6)))
                    print(*rows[-1], flush=True)
    columns = ["run", "seed", "trained_on", "tested_on", "accuracy"]
    with atomic_write(RESULTS / "cross_test.csv") as part:
        table = pd.DataFrame(rows, columns=columns).sort_values(columns)
        table.to_csv(part, index=False, lineterminator="\n")


if __name__ == "__main__":
    main()
