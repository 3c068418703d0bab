"""Does the way of resizing matter? CNN_1 trained on each copy of the data set, scored on the test
images of both: results/cross_test.csv. DATA and OUT are those of the study, the argument is the
smoothed copy; weights that were trained on it are in the history of this repository. What the file
has is not scored again."""

import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import utils
from cxr.files import PROJECT, RESULTS, atomic_write
from cxr.runs import ModelRun

LAST_SMOOTHED = "f59033d^"  # the last commit whose weights were trained on the smoothed copy


def find_weights(trained_on, out, seed, name):
    """The weights' content, or None where there are none."""
    if trained_on == "nearest224":
        run = out / f"seed-{seed}" / name
        ready = (run / "run.json").exists() and ModelRun(run).has_weights
        return (run / "model.weights.h5").read_bytes() if ready else None
    show = ["git", "show", f"{LAST_SMOOTHED}:weights/seed-{seed}/{name}.weights.h5"]
    found = subprocess.run(show, cwd=PROJECT, capture_output=True)
    return None if found.returncode else found.stdout


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
    for number, name in {2: "02_cnn1_2class", 3: "03_cnn1_3class"}.items():
        for seed in range(5):
            for trained_on in pixels:
                content = find_weights(trained_on, out, seed, name)
                if (name, seed, trained_on) in done or not content:
                    continue
                model = utils.build_cnn_1(number, 0.2, 0)
                with tempfile.TemporaryDirectory() as folder:
                    path = Path(folder, "model.weights.h5")
                    path.write_bytes(content)
                    model.load_weights(path)
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
