"""What is published in results/ can be recomputed from its predictions, and hangs together."""

import re

import numpy as np
import pandas as pd
import pytest

import utils
from cxr import runs
from cxr.cache import KNOWN_TEST_IMAGES
from cxr.reference import KAGGLE_COUNTS, MAIN_IMAGES, REPORTED
from cxr.runs import RESULTS, WEIGHTS, ModelRun
from cxr.source import CLASS_NAMES, parse_name

FOLDERS = sorted(path.parent for path in RESULTS.glob("*/seed-*/*/run.json"))
MODELS = [folder for folder in FOLDERS if folder.name != "01_data"]
SHIPPED = ("02_cnn1_2class", "03_cnn1_3class", "05_cnn1_transfer")


def name(folder):
    return folder.relative_to(RESULTS).as_posix()


def of_each(folders):
    """A test for each kind of images and each notebook; it loops over `folders`, the runs."""
    groups = {}
    for folder in folders:
        groups.setdefault(f"{folder.parts[-3]}-{folder.name[:2]}", []).append(folder)
    return pytest.mark.parametrize("folders", groups.values(), ids=groups)


def of_split(folder, split):
    predictions = ModelRun(folder).predictions
    return predictions[predictions["split"] == split]


@pytest.fixture(scope="module")
def table():
    """runs.csv, by folder."""
    found = pd.read_csv(RESULTS / "runs.csv").fillna({"ablation": ""})
    return found.set_index(
        found["images"] + "/seed-" + found["seed"].astype(str) + "/" + found["run"]
    )


@of_each(MODELS)
def test_measures_follow_from_the_predictions(folders, table, monkeypatch):
    for folder in folders:
        for split, prefix in (("test", ""), ("validation", "validation_")):
            stored = ModelRun(folder).info["metrics"][split]
            with monkeypatch.context() as patch:
                if folder.name not in REPORTED:  # intervals of main runs alone: they take time
                    ends = stored["accuracy_low"], stored["accuracy_high"]
                    patch.setattr(utils, "cluster_bootstrap_interval", lambda *_, e=ends: e)
                found = utils.evaluate(of_split(folder, split))
            [flat] = pd.json_normalize(found, sep="_").to_dict("records")
            [known] = pd.json_normalize(stored, sep="_").to_dict("records")
            assert known == pytest.approx(flat, abs=1e-9), name(folder)
            listed = {measure: table.loc[name(folder), prefix + measure] for measure in flat}
            assert listed == pytest.approx(flat, abs=1e-6), name(folder)


@of_each(MODELS)
def test_the_best_epoch_follows_from_the_predictions(folders, table):
    for folder in folders:
        history, row = ModelRun(folder).history, table.loc[name(folder)]
        best, correct = history.loc[history["val_loss"].idxmin()], {}
        for split in ("test", "validation"):
            rows = of_split(folder, split)
            shares = rows[names := utils.class_names(rows)].to_numpy()
            true = pd.Categorical(rows["true"], names).codes
            correct[split] = (shares.argmax(axis=1) == true).mean()
        right = (shares / shares.sum(axis=1, keepdims=True))[np.arange(len(true)), true]
        saturated = 0.002 * (right < 2e-6).sum()  # predictions.csv rounds to six digits
        rounded = 5e-5 if "04" in folder.name else 5e-6  # 04 trains on features of 16 bits
        loss = pytest.approx(-np.log(right.clip(1e-7)).mean(), abs=rounded + saturated)
        assert best["val_loss"] == loss and row["best_val_loss"] == loss, name(folder)
        assert best["val_accuracy"] == pytest.approx(correct["validation"], abs=1e-6), name(folder)
        followed = best.get("test_accuracy", correct["test"])
        assert followed == pytest.approx(correct["test"], abs=1e-6), name(folder)
        assert (row["best_epoch"], row["epochs"]) == (best["epoch"], len(history)), name(folder)


@of_each(MODELS)
def test_a_training_ends_by_its_patience_or_by_its_cap(folders, table):
    for folder in folders:
        run, row = ModelRun(folder), table.loc[name(folder)]
        epochs, patience = len(run.history), run.info["settings"]["early_stopping"]["patience"]
        assert list(run.history["epoch"]) == list(range(1, epochs + 1)), name(folder)
        waited = epochs - 1 - run.history["val_loss"].idxmin()
        assert row["capped"] == (waited < patience) and waited <= patience, name(folder)
        cap = run.info["settings"].get("max_epochs")  # only the oldest runs had one that binds
        assert not row["capped"] or cap == epochs or row["ablation"] == "past", name(folder)


@of_each(MODELS)
def test_the_predictions_are_of_the_right_images(folders):
    for folder in folders:
        predictions = ModelRun(folder).predictions
        assert predictions["file"].is_unique, name(folder)
        counts = predictions.groupby(["split", predictions["file"].str.split("/").str[0]]).size()
        expected = {("test", "test"): 624, ("validation", "train"): 1044}
        assert counts.to_dict() == expected, name(folder)
        for row in predictions.itertuples():
            class3, series, number = parse_name(*row.file.split("/")[1:])
            ill = "normal" if class3 == "normal" else "pneumonia"
            assert row.true == (ill if "pneumonia" in predictions else class3), row.file
            assert row.patient == f"{series}-{number}", row.file


@of_each(FOLDERS)
def test_a_run_is_what_its_folder_says(folders, table):
    for folder in folders:
        info = ModelRun(folder).info
        images = info["images"]
        assert (images["label"], f"seed-{info['seed']}", info["run"]) == folder.parts[-3:]
        assert info["mode"] == "full" and images["count"] == sum(KAGGLE_COUNTS.values())
        assert images["preparation"] == KNOWN_TEST_IMAGES[images["test_fingerprint"][:12]]
        for path in folder.iterdir():
            text = path.read_text(encoding="utf-8")
            assert len(text) < 400_000 and not re.search(r"/(root|work|tmp|home|Users)/", text)
            assert path.name in {*info["files"], "run.json"}
        if folder in MODELS:
            row, settings = table.loc[name(folder)], info["settings"]
            assert settings["seed"] == info["seed"]
            assert settings["images"] == images["fingerprint"]
            patience = 3 if row["ablation"] == "past" else row["patience"]
            suffixes = [row["ablation"]] * bool(row["ablation"])
            suffixes += ["unstratified"] * (not row["stratified"])
            expected = runs.run_name(row["notebook"], dropout=row["dropout"], patience=patience)
            assert info["run"] == "-".join([expected, *suffixes])
            rates = [layer[2]["rate"] for layer in settings["layers"] if layer[0] == "Dropout"]
            assert set(rates) == {row["dropout"]}


@of_each(MODELS)
def test_the_layers_are_the_reports(folders):
    for folder in folders:
        info = ModelRun(folder).info
        notebook = next(notebook for notebook in REPORTED if folder.name.startswith(notebook))
        report = REPORTED[notebook].get("layers", REPORTED["02_cnn1_2class"]["layers"])
        wanted = [(layer, count) for layer, _, count in report]
        if notebook == "03_cnn1_3class":
            wanted[-1] = ("Dense", 3 * (86_528 + 1))
        if folder.name.endswith(("-zoom", "-contrast")):  # instead of the flip
            wanted[1] = ("Random" + folder.name.rsplit("-")[-1].title(), 0)
        layers = [tuple(layer[:2]) for layer in info["settings"]["layers"]]
        assert wanted[-len(layers) :] == layers and len(layers) >= 6, name(folder)
        assert info["parameters"] == REPORTED[notebook]["parameters"], name(folder)


def test_one_set_of_test_images_everywhere():
    found = {frozenset(of_split(folder, "test")["file"]) for folder in MODELS}
    assert len(found) == 1 and len(next(iter(found))) == 624


@pytest.mark.parametrize("key", ["fingerprint", "test_fingerprint"])
def test_a_label_is_one_fingerprint_and_a_fingerprint_one_label(key):
    pairs = {(folder.parts[-3], ModelRun(folder).info["images"][key]) for folder in FOLDERS}
    labels, fingerprints = zip(*pairs, strict=True)
    assert len(set(labels)) == len(set(fingerprints)) == len(pairs)


def test_seeds_differ_and_equal_seeds_have_equal_splits():
    sets = {}
    for folder in MODELS:
        key = folder.parts[-2], folder.name.endswith("-unstratified")
        sets.setdefault(key, set()).add(frozenset(of_split(folder, "validation")["file"]))
    assert all(len(found) == 1 for found in sets.values())
    assert len(set.union(*sets.values())) == len(sets)


def test_seeds_are_published_from_0_on_without_a_gap():
    seeds = {}
    for folder in FOLDERS:
        found = seeds.setdefault((folder.parts[-3], folder.name), [])
        found.append(int(folder.parts[-2].removeprefix("seed-")))
    assert all(sorted(found) == list(range(len(found))) for found in seeds.values()), seeds
    for notebook in ("01_data", *REPORTED):
        assert max(len(s) for (_, run), s in seeds.items() if run == notebook) >= 5, notebook


def test_a_larger_patience_goes_the_same_way():
    compared = 0
    for folder in MODELS:
        short = folder.with_name(folder.name.replace("-patience-10", "").replace("-past", ""))
        if short != folder and (short / "run.json").exists():
            short, long = ModelRun(short).history, ModelRun(folder).history
            same = short.columns.intersection(long.columns).drop("seconds")
            pd.testing.assert_frame_equal(short[same], long[same].head(len(short)))
            compared += 1
    assert compared >= 7


@pytest.mark.parametrize("folder", [f for f in FOLDERS if f.name == "01_data"], ids=name)
def test_the_facts_of_notebook_01_agree_with_each_other(folder):
    info = ModelRun(folder).info
    counts = pd.DataFrame(info["counts"])
    assert counts.sum().to_dict() == KAGGLE_COUNTS and set(counts.index) == set(CLASS_NAMES[3])
    assert info["validation_share"] == pytest.approx(1044 / 5216)
    baselines = pd.DataFrame(info["baselines"]) * 624
    most = [counts["test"].drop("normal").sum(), counts["test"]["bacterial"]]
    assert baselines.loc["majority class", ["2 classes", "3 classes"]].tolist() == most
    assert (baselines - baselines.round()).abs().max(axis=None) < 1e-6


def test_weights_are_those_of_the_published_runs_with_seed_0():
    main = RESULTS / MAIN_IMAGES / "seed-0"
    expected = {name for name in SHIPPED if (main / name / "run.json").exists()}
    assert {path.name.removesuffix(".weights.h5") for path in WEIGHTS.iterdir()} == expected
    assert all(ModelRun(main / name).has_weights for name in expected)
    assert all(path.stat().st_size < 2_000_000 for path in WEIGHTS.iterdir())
