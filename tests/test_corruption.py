"""A bit flipped, or an end cut off, in every file that a run leaves and that is published:
found, named, and made anew or refused; never used."""

import json
import shutil

import keras
import numpy as np
import pytest
import tiny

import utils


class Killed(BaseException):
    """Stands for the end of the process."""


def flip(path, rng):
    content = bytearray(path.read_bytes())
    content[rng.integers(len(content))] ^= 1 << rng.integers(8)
    path.write_bytes(content)


def cut(path, rng):
    path.write_bytes(path.read_bytes()[: -int(rng.integers(1, path.stat().st_size))])


@pytest.fixture(scope="module")
def trees(tmp_path_factory):
    """Filled by the first test: a finished run and one that ended after its first epoch."""
    return {"folder": tmp_path_factory.mktemp("trees")}


@pytest.fixture
def damaged_run(trees, tiny_set, make_run, tmp_path):
    """Makes a copy of the finished or the unfinished run and damages one file of it."""
    if "results" not in trees:
        trees["root"] = tiny_set(trees["folder"] / "set")
        runs = {n: make_run(trees["root"], out=trees["folder"] / n, profile="full")
                for n in ("finished", "unfinished")}  # fmt: skip
        trees["results"] = tiny.whole_run(runs["finished"])

        def tell(what, path):
            if what == "renamed" and path.endswith("training.npz"):
                raise Killed

        with pytest.raises(Killed), tiny.watched(tell):
            tiny.whole_run(runs["unfinished"])

    def make(tree, pattern, damage, seed=0):
        shutil.copytree(trees["folder"] / tree, tmp_path / "out")
        [path] = (tmp_path / "out").glob(pattern)
        before = path.read_bytes()
        damage(path, np.random.default_rng([seed, len(before)]))
        assert path.read_bytes() != before
        return make_run(trees["root"], profile="full"), path, trees["results"]

    make.trees = trees["folder"] / "unfinished"
    return make


MADE_ANEW = {
    "packed images": ("finished", "cache/images-*.uint8"),
    "sidecar": ("finished", "cache/images-*.json"),
    "example": ("finished", "cache/images-*/normal.jpeg"),
    "features": ("unfinished", "cache/features-*.float16"),
    "record of features": ("unfinished", "cache/features-*.json"),
    "state of training": ("unfinished", f"seed-0/{tiny.STAGE}/training.npz"),
    "predictions": ("finished", f"seed-0/{tiny.STAGE}/predictions.csv"),
}


@pytest.mark.parametrize("damage", [flip, cut])
@pytest.mark.parametrize("file", MADE_ANEW)
def test_what_can_be_made_anew_is(damaged_run, capsys, file, damage):
    run, path, results = damaged_run(*MADE_ANEW[file], damage)
    capsys.readouterr()
    tiny.assert_same(results, tiny.whole_run(run))
    printed = capsys.readouterr().out
    if file != "predictions":  # they are simply saved again
        assert "damaged" in printed and path.stem.split("-")[0] in printed


@pytest.mark.parametrize("damage", [flip, cut])
@pytest.mark.parametrize("name", ["model.weights.h5", "history.csv", "run.json"])
def test_what_a_training_made_is_refused_by_name(damaged_run, name, damage):
    run, path, _ = damaged_run("finished", f"seed-0/{tiny.STAGE}/{name}", damage)
    with pytest.raises(utils.CxrError) as error:
        tiny.whole_run(run)
    assert utils.re.search(f"{path}.* damaged: delete .*run the notebook", str(error.value))


def test_no_flipped_bit_of_a_training_state_is_used(damaged_run, capsys):
    """Anywhere in the file: in its arrays, in numpy's headers, in zip's own records."""
    run, path, _ = damaged_run("unfinished", f"seed-0/{tiny.STAGE}/training.npz", cut)
    content = (damaged_run.trees / path.relative_to(run.out.parent)).read_bytes()
    path.write_bytes(content)
    settings = json.loads(np.load(path, allow_pickle=False)["meta"].tobytes())["settings"]
    layers = keras.layers
    model = keras.Sequential([keras.Input((7, 7, 3)), layers.Flatten(), layers.Dense(3)])
    model.compile("adam", "categorical_crossentropy")

    def load():
        state = utils._Resume(path, settings, None, None, 2)
        if not state.load(model):
            return None
        variables = [*model.variables, *model.optimizer.variables]
        arrays = [v.numpy() for v in variables] + state.best.pop("best_weights")
        return [array.tobytes() for array in arrays], state.rows, state.best, state.stopped

    good = load()
    rng = np.random.default_rng(0)
    places = [*rng.integers(len(content), size=200), *range(len(content) - 700, len(content))]
    refused = 0
    for place in places:
        damaged = bytearray(content)
        damaged[place] ^= 1 << rng.integers(8)
        path.write_bytes(damaged)
        found = load()
        refused += found is None
        assert found in (None, good), place
    assert refused > len(places) / 2
    assert capsys.readouterr().out.count("is damaged") == refused


PUBLISHED = "02_cnn1_2class"


@pytest.fixture
def published(tmp_path, monkeypatch):
    for name in ("RESULTS", "WEIGHTS"):
        copy = tmp_path / name.lower()
        shutil.copytree(getattr(utils, name), copy)
        monkeypatch.setattr(utils, name, copy)
    return tmp_path


class AnyXrays:
    source = "folder"


@pytest.mark.parametrize("damage", [flip, cut])
@pytest.mark.parametrize(
    "pattern",
    [f"results/*/seed-0/{PUBLISHED}/{n}" for n in ("run.json", "history.csv", "predictions.csv")]
    + [f"weights/seed-0/{PUBLISHED}.weights.h5"],
)
def test_what_is_published_is_refused_when_damaged(published, pattern, damage):
    [path] = published.glob(pattern)
    damage(path, np.random.default_rng(1))
    with pytest.raises(utils.CxrError) as error:
        stage = utils.published_stage(PUBLISHED, AnyXrays)
        assert len(stage.history) and len(stage.predictions)
        stage.load_weights(utils.build_cnn_1(2, 0.2, 0))
    assert utils.re.search(f"{path} .*damaged.*fetch the project anew", str(error.value))
