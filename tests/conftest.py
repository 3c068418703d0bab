import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent / "tools"))


@pytest.fixture
def make_run(tmp_path):
    """Builds a `Run` on a folder, with an output folder of its own."""
    import utils

    def make(data, out=None, **settings):
        return utils.setup(data=str(data), out=str(out or tmp_path / "out"), **settings)

    return make


@pytest.fixture
def tiny_set(tmp_path):
    """A set of 24 small pictures in Kaggle's layout; returns the folder."""

    def make(folder=tmp_path / "set", size=(60, 50)):
        rng = np.random.default_rng(0)
        for split in ("train", "val", "test"):
            for n in range(1, 5):
                for kind, name in (
                    ("NORMAL", f"IM-{n:04d}-0001.jpeg"),
                    ("PNEUMONIA", f"person{n}_bacteria_{n}.jpeg"),
                ):
                    path = folder / split / kind / name
                    path.parent.mkdir(parents=True, exist_ok=True)
                    pixels = rng.integers(0, 256, size[::-1], np.uint8)
                    Image.fromarray(pixels).save(path, "JPEG", quality=90)
        return folder

    return make
