"""Timings as ratios, each pair measured in one run on one machine.

    CXR_DATA=folder CXR_ORIGINALS=folder python tests/tools/bench.py [NAME ...]

Every measurement runs in a process of its own, so that its peak memory is its own. The results
are printed and, when all of them ran, written to results/bench.json.
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
            cold = utils.dataclasses.replace(run, cache=Path(place), keep=None)
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


MEASURES = {
    "load_img loop": load_img_loop,
    "packing": packing,
    "warm start": warm_start,
    "pipeline": pipeline,
    "pipeline, 2x images": lambda: pipeline(2),
    "pipeline, 4x images": lambda: pipeline(4),
    "image_dataset_from_directory": directory_pipeline,
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
    if not names:
        report = {
            "machine": f"{os.cpu_count()} cores, {platform.machine()}, Python "
            f"{platform.python_version()}",
            "data": os.environ["CXR_DATA"].rsplit("/", 1)[-1],
            "measured": found,
            "ratios": rounded(ratios(found)),
        }
        for name, value in report["ratios"].items():
            print(f"{name:45} {value}")
        path = PROJECT / "results" / "bench.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
