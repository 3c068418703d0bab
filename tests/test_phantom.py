"""The stand-in images."""

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import utils
from data import phantom

FEW = {
    "train": {"normal": 6, "bacterial": 6, "viral": 6},
    "val": {"normal": 2, "bacterial": 2, "viral": 0},
    "test": {"normal": 2, "bacterial": 2, "viral": 2},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return phantom.make_phantoms(tmp_path_factory.mktemp("phantoms") / "a", seed=0, counts=FEW)


def test_layout_and_counts_are_kaggles(folder):
    index = utils.read_index(folder)
    for split, counts in FEW.items():
        of_split = index[index["split"] == split]["class3"].value_counts()
        assert {k: v for k, v in counts.items() if v} == of_split.to_dict()
    assert not index.drop_duplicates(["patient", "split"])["patient"].duplicated().any()


def test_the_seed_draws_the_same_files(folder, tmp_path):
    again = phantom.make_phantoms(tmp_path / "b", seed=0, counts=FEW)
    other = phantom.make_phantoms(tmp_path / "c", seed=1, counts=FEW)
    for path in folder.rglob("*.*"):
        assert path.read_bytes() == (again / path.relative_to(folder)).read_bytes()
    sidecars = [(place / phantom.SIDECAR).read_text() for place in (folder, other)]
    assert sidecars[0] != sidecars[1]


def test_sizes_and_modes_vary(folder):
    pictures = [Image.open(path) for path in folder.rglob("*.jpeg")]
    assert len({picture.size for picture in pictures}) > 20


def test_the_sidecar_says_where_the_opacities_are(folder):
    table = pd.read_csv(folder / phantom.SIDECAR)
    labels = utils.read_index(folder).set_index("file")["class3"]
    assert set(table["file"]) == set(labels.index[labels != "normal"])
    assert (labels[table["file"]].to_numpy() == table["label"]).all()
    per_file = table.groupby("file")["label"].agg(["size", "first"])
    assert (per_file["size"] == per_file["first"].map({"bacterial": 1, "viral": 2})).all()
    assert table["x"].between(0, 1).all() and table["y"].between(0, 1).all()


@pytest.mark.parametrize(("label", "reach"), [("bacterial", 1.6), ("viral", 1.1)])
def test_opacities_are_where_the_sidecar_says(label, reach):
    """What the opacities change in a picture of the same chest lies around their positions."""
    for seed in range(5):
        patient = phantom._anatomy(np.random.default_rng(seed))
        picture, spots = phantom.draw(label, patient, np.random.default_rng([seed, 1]))
        without, _ = phantom.draw(label, patient, np.random.default_rng([seed, 1]), strength=0)
        change = np.abs(picture.astype(float) - without)
        height, width = picture.shape
        rows, columns = np.mgrid[:height, :width]
        near = np.zeros(picture.shape, bool)
        for spot in spots:
            x = (columns / width - spot["x"]) / spot["rx"]
            y = (rows / height - spot["y"]) / spot["ry"]
            near |= np.hypot(x, y) < reach
        assert change.max() > 10
        assert change[near].sum() > 0.85 * change.sum()


def test_an_existing_folder_is_never_written_over(folder):
    with pytest.raises(FileExistsError):
        phantom.make_phantoms(folder)


def test_nothing_is_left_of_a_drawing_that_failed(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(phantom, "draw", fail)
    with pytest.raises(OSError, match="disk full"):
        phantom.make_phantoms(tmp_path / "set", counts=FEW)
    assert not list(tmp_path.iterdir())
