"""Published measures can be recomputed from predictions, these from weights and pixels."""

import functools
import json
import os
import re

import bench
import cross_test
import keras
import numpy as np
import pandas as pd
import pytest
import run_notebooks

import beyond
import utils
from cxr import runs
from cxr.cache import KNOWN_TEST_IMAGES
from cxr.reference import MAIN_IMAGES, REPORT, REPORTED
from cxr.runs import RESULTS, WEIGHTS

FOLDERS = sorted(path.parent for path in RESULTS.glob("*/seed-*/*/run.json"))
MODELS = [folder for folder in FOLDERS if (folder / "predictions.csv").exists()]
REPORTS = [folder for folder in MODELS if folder.name[:2] != "06"]  # on notebook 01's split

name = functools.cache(lambda folder: folder.relative_to(RESULTS).as_posix())
info = functools.cache(lambda folder: utils.ModelRun(folder).info)
history = functools.cache(lambda folder: utils.ModelRun(folder).history)
predictions = functools.cache(lambda folder: utils.ModelRun(folder).predictions)
of_split = functools.cache(lambda folder, split: predictions(folder).query("split == @split"))


@pytest.fixture(scope="module")
def table():
    found = pd.read_csv(RESULTS / "runs.csv").fillna({"ablation": ""})
    folders = found["images"] + "/seed-" + found["seed"].astype(str) + "/" + found["run"]
    return found.set_index(folders)


def test_measures_follow_from_the_predictions(table, monkeypatch):
    for folder in MODELS:
        for split, prefix in (("test", ""), ("validation", "validation_")):
            stored = info(folder)["metrics"][split]
            with monkeypatch.context() as patch:
                if folder.name not in (*REPORTED, "06_beyond"):  # main runs alone: they take time
                    ends = stored["accuracy_low"], stored["accuracy_high"]
                    patch.setattr(utils, "cluster_bootstrap_interval", lambda *_, e=ends: e)
                found = utils.evaluate(of_split(folder, split))
            [flat] = pd.json_normalize(found, sep="_").to_dict("records")
            [known] = pd.json_normalize(stored, sep="_").to_dict("records")
            assert known == pytest.approx(flat, abs=1e-9), name(folder)
            listed = {measure: table.loc[name(folder), prefix + measure] for measure in flat}
            assert listed == pytest.approx(flat, abs=1e-6), name(folder)
        if folder not in REPORTS:
            found = beyond.summary(predictions(folder))
            assert info(folder)["beyond"] == pytest.approx(found, abs=1e-5), name(folder)
            assert table.loc[name(folder), list(found)].to_dict() == pytest.approx(found, abs=1e-5)


def test_the_best_epoch_follows_from_the_predictions(table):
    for folder in REPORTS:
        epochs, row, correct = history(folder), table.loc[name(folder)], {}
        best = epochs.loc[epochs["val_loss"].idxmin()]
        for split in ("test", "validation"):
            rows = of_split(folder, split)
            shares = rows[names := utils.class_names(rows)].to_numpy()
            true = pd.Categorical(rows["true"], names).codes
            correct[split] = (shares.argmax(axis=1) == true).mean()
        right = (shares / shares.sum(axis=1, keepdims=True))[np.arange(len(true)), true]
        six_digits = np.minimum(1e-6 / right.clip(1e-7), 2).mean()  # predictions.csv rounds
        rounded = 5e-5 if "04" in folder.name else 5e-6  # 04 trains on features of 16 bits
        loss = pytest.approx(-np.log(right.clip(1e-7)).mean(), abs=rounded + six_digits)
        assert best["val_loss"] == loss and row["best_val_loss"] == loss, name(folder)
        assert best["val_accuracy"] == pytest.approx(correct["validation"], abs=1e-6), name(folder)
        followed = best.get("test_accuracy", correct["test"])
        assert followed == pytest.approx(correct["test"], abs=1e-6), name(folder)
        assert (row["best_epoch"], row["epochs"]) == (best["epoch"], len(epochs)), name(folder)


def test_a_training_ends_by_its_patience_or_by_its_cap(table):
    for folder in MODELS:
        settings, row = info(folder)["settings"], table.loc[name(folder)]
        epochs, patience = len(history(folder)), settings["early_stopping"]["patience"]
        assert list(history(folder)["epoch"]) == list(range(1, epochs + 1)), name(folder)
        waited = epochs - 1 - history(folder)["val_loss"].idxmin()
        assert row["capped"] == (waited < patience) and waited <= patience, name(folder)
        cap = settings.get("max_epochs")  # only the oldest runs had one that binds
        fixed = row["ablation"] == "unstopped" or folder not in REPORTS  # their number of epochs
        assert not row["capped"] or cap == epochs or fixed, name(folder)


def test_the_predictions_are_of_the_right_images_and_the_same_test_images_everywhere():
    for folder in MODELS:
        table = predictions(folder)
        assert table["file"].is_unique, name(folder)
        counts = table.groupby(["split", table["file"].str.split("/").str[0]]).size()
        expected = {("test", "test"): 624, ("validation", "train"): 1044}
        if folder not in REPORTS:  # a tenth, of the patients or of the images
            expected["validation", "train"] = pytest.approx(5216 / 10, rel=0.15)
        assert counts.to_dict() == expected, name(folder)
        for row in table.itertuples():
            class3, series, number = utils.parse_name(*row.file.split("/")[1:])
            ill = "normal" if class3 == "normal" else "pneumonia"
            assert row.true == (ill if "pneumonia" in table else class3), row.file
            assert row.patient == f"{series}-{number}", row.file
    assert len({frozenset(of_split(folder, "test")["file"]) for folder in MODELS}) == 1
    published = predictions(RESULTS / MAIN_IMAGES / "seed-0" / "06_beyond")
    card = (RESULTS / "model_card.md").read_text(encoding="utf-8")
    for split, patients in published.groupby("split")["patient"]:
        assert f"{len(patients)} ({patients.nunique()} patients) for {split}" in card


def test_a_run_is_what_its_folder_says_and_a_label_one_fingerprint(table):
    for folder in FOLDERS:
        images = (found := info(folder))["images"]
        assert (images["label"], f"seed-{found['seed']}", found["run"]) == folder.parts[-3:]
        assert found["mode"] == "full" and images["count"] == sum(REPORT["kaggle_counts"].values())
        assert images["preparation"] == KNOWN_TEST_IMAGES[images["test_fingerprint"][:12]]
        for path in folder.iterdir():
            text = path.read_text(encoding="utf-8")
            assert len(text) < 400_000 and not re.search(r"/(root|work|tmp|home|Users)/", text)
            assert path.name in {*found["files"], "run.json"}
        if folder in MODELS:
            row, settings = table.loc[name(folder)], found["settings"]
            assert settings["seed"] == found["seed"]
            assert settings["images"] == images["fingerprint"]
            rates = [layer[2]["rate"] for layer in settings["layers"] if layer[0] == "Dropout"]
            patience = 3 if row["ablation"] == "unstopped" else row["patience"]
            expected = runs.run_name(row["notebook"], dropout=row["dropout"], patience=patience)
            expected = expected if folder in REPORTS else row["notebook"]
            assert found["run"] in (expected, f"{expected}-{row['ablation'] or 'unstratified'}")
            assert set(rates) == {row["dropout"]}
    for key in ("fingerprint", "test_fingerprint"):
        pairs = {(folder.parts[-3], info(folder)["images"][key]) for folder in FOLDERS}
        labels, fingerprints = zip(*pairs, strict=True)
        assert len(set(labels)) == len(set(fingerprints)) == len(pairs), key


def test_the_layers_are_the_reports():
    for folder in REPORTS:
        notebook = next(notebook for notebook in REPORTED if folder.name.startswith(notebook))
        report = REPORTED[notebook].get("layers", REPORTED["02_cnn1_2class"]["layers"])
        wanted = [(layer, count) for layer, _, count in report]
        if notebook == "03_cnn1_3class":
            wanted[-1] = ("Dense", 3 * (86_528 + 1))
        if folder.name.endswith(("-zoom", "-contrast")):  # instead of the flip
            wanted[1] = ("Random" + folder.name.rsplit("-")[-1].title(), 0)
        layers = [tuple(layer[:2]) for layer in info(folder)["settings"]["layers"]]
        assert wanted[-len(layers) :] == layers and len(layers) >= 6, name(folder)
        assert info(folder)["parameters"] == REPORTED[notebook]["parameters"], name(folder)


def test_an_ablation_is_what_its_name_says(table):
    for folder in (folder for folder in MODELS if MAIN_IMAGES in folder.parts):
        found, ours, is_06 = info(folder), table.loc[name(folder)], folder not in REPORTS
        settings, main = found["settings"], info(folder.with_name(ours["notebook"]))["settings"]
        crop = next((layer[2] for layer in settings["layers"] if "Crop" in layer[0]), {})
        for ablation, holds in {
            "nadam": settings["optimizer"][0] == "Nadam", "unshuffled": not settings["train"],
            "rescaled": "04" in folder.name and settings["train"] != main["train"],
            "unstopped": "04" in folder.name and settings["early_stopping"]["patience"] == 25,
            "crops": crop.get("area") == [0.3, 1.0], "weak": is_06 and not crop,
            "frozen": is_06 and found["trainable"] == 3 * (2048 + 1),
            "image": is_06 and settings["train"] != main["train"],
            "random": is_06 and found["trainable"] == found["parameters"] - 54_528,
            "scratch": is_06 and found["parameters"] < 3_000_000,
        }.items():  # fmt: skip
            assert holds == (ours["ablation"] == ablation), (name(folder), ablation)


def test_each_seed_has_a_split_of_its_own_and_none_is_missing():
    sets, seeds = {}, {}
    for folder in REPORTS:
        key = folder.parts[-2], folder.name.endswith("-unstratified")
        sets.setdefault(key, set()).add(frozenset(of_split(folder, "validation")["file"]))
    assert all(len(found) == 1 for found in sets.values())
    assert len(set.union(*sets.values())) == len(sets)
    for folder in FOLDERS:
        seeds.setdefault((folder.parts[-3], folder.name), []).append(folder.parts[-2])
    assert all(set(s) == {f"seed-{n}" for n in range(len(s))} for s in seeds.values()), seeds
    assert all(len(seeds[MAIN_IMAGES, notebook]) >= 5 for notebook in ("01_data", *REPORTED))


def test_a_larger_patience_goes_the_same_way(table):
    compared = 0
    for folder in MODELS:
        run = folder.name.removesuffix("-patience-10").removesuffix("-unstopped")
        if run in REPORTED and run != folder.name:
            short, long = history(folder.with_name(run)), history(folder)
            same = short.columns.intersection(long.columns).drop("seconds")
            apart = 0.02 if MAIN_IMAGES in folder.parts else 1e-6  # made on another machine
            pd.testing.assert_frame_equal(short[same], long[same].head(len(short)), atol=apart)
            compared += 1
    assert compared >= 13
    own = "patience == 3 and stratified and weights == 'best' and dropout == 0.2"
    assert len(readings := utils.sensitivity_table("05_cnn1_transfer").query(own)) == 5
    for row in readings.itertuples():
        known = table.loc[f"{MAIN_IMAGES}/seed-{row.seed}/05_cnn1_transfer"]
        assert (known["best_epoch"], known["accuracy"]) == (row.epoch, round(row.accuracy, 6))


def test_the_cross_test_gives_each_run_the_accuracy_that_is_published(table):
    crossed = pd.read_csv(RESULTS / "cross_test.csv")
    assert np.allclose(crossed["accuracy"] * 624, (crossed["accuracy"] * 624).round(), atol=1e-3)
    for row in crossed.query("trained_on == tested_on").itertuples():
        folder = f"chest_xray_{row.trained_on}/seed-{row.seed}/{row.run}"
        assert row.accuracy == table.loc[folder, "accuracy"], folder


def test_times_are_of_one_run_and_no_kill_has_changed_anything(table):
    times, kills = (json.loads((RESULTS / f"{name}.json").read_text())
                    for name in ("times", "kill_and_resume"))  # fmt: skip
    for run in (f"{r}-rescaled" if r[:2] == "04" else r for r in REPORTED):  # its last
        assert 0 < times[run[:2]] - table.loc[f"{MAIN_IMAGES}/seed-4/{run}", "minutes"] < 1, run
    assert times["whole"] == pytest.approx(sum(times[run[:2]] for run in REPORTED), abs=2)
    assert all(kills["killed in second"].values()) and kills["differ"] == []
    assert sum(map(len, kills["killed in second"].values())) == kills["kills"] >= 50


def test_what_is_said_of_the_runs_without_a_number_holds(table):
    main = table[table["images"] == MAIN_IMAGES].set_index(["run", "seed"]).sort_index()
    two, three, inception, transfer = (main.loc[run] for run in REPORTED)
    assert 0.45 < transfer["normal_share"].mean() < 0.6  # README: about half
    late = [history(f).set_index("epoch")["test_accuracy"].round(3) for f in REPORTS
            if MAIN_IMAGES in f.parts and f.name == "02_cnn1_2class"]  # fmt: skip
    assert [*pd.concat([r[r > 0.82] for r in late]).items()] == [(2, 0.821), (1, 0.891)]  # 05
    assert all(history(f)["test_accuracy"].max() < 0.84 for f in REPORTS
               if MAIN_IMAGES in f.parts and f.name.startswith("05"))  # fmt: skip
    beyond_ = table[(table["images"] == MAIN_IMAGES) & (table["notebook"] == "06_beyond")]
    [flips] = beyond_.index[beyond_["ablation"] == "weak"]  # 06: the figure of Part 3
    assert beyond_["validation_two_auc"].idxmax() == beyond_["two_accuracy"].idxmin() == flips
    of_0 = beyond_[beyond_["seed"] == 0]
    assert of_0["validation_accuracy"].idxmax() == of_0["best_val_loss"].idxmin() == flips
    nadam, contrast, zoom = (main.loc[f"02_cnn1_2class-{n}"] for n in ("nadam", "contrast", "zoom"))
    for changed, better in (zoom, [1, 1, 0, 1, 1]), (contrast, [1, 1, 1, 0, 0]):  # 02
        assert (changed["accuracy"] > two["accuracy"]).tolist() == better
    excess, long = three["viral_excess"], main.loc["05_cnn1_transfer-patience-10"]
    assert (excess > 30).sum() == 2 and (excess.abs() < 15).sum() == 3  # 03: larger, about equal
    assert (three["epochs"] > REPORTED["03_cnn1_3class"]["epochs"]).all()
    assert 3.5 < long["epochs"].mean() / transfer["epochs"].mean() < 4.5  # 05: about four times
    for more, less, column in (
        (transfer, three, "accuracy"), (inception, transfer, "auc"), (transfer, long, "accuracy"),
        (long, transfer, "validation_accuracy"), (nadam, two, "rises"), (two, nadam, "accuracy"),
    ):  # fmt: skip
        assert (more[column] - less[column]).dropna().gt(0).all(), column
    for other in (zoom, contrast):
        assert abs((other["validation_accuracy"] - two["validation_accuracy"]).mean()) < 0.005


def test_smooth_normal_images_and_the_errors_that_seeds_share(sample_images):  # 06
    def ill(run, seed):  # by test file
        folder = RESULTS / MAIN_IMAGES / f"seed-{seed}" / run
        return 1 - of_split(folder, "test").set_index("file")["normal"]

    test = sample_images.metadata.query("source_split == 'test'")
    is_normal = (test["class3"] == "normal").to_numpy()
    normal, pneumonia = test["file"][is_normal], test["file"][~is_normal]
    rough = beyond.image_numbers(sample_images.read(normal.index)).iloc[:, :2].set_axis(normal)
    for run, low, high in (
        ("02_cnn1_2class", -0.15, 0.15), ("03_cnn1_3class", -0.15, 0.15),
        ("05_cnn1_transfer", -0.6, -0.25), ("06_beyond", -0.6, -0.3),
    ):  # fmt: skip
        for seed in range(3 if run == "06_beyond" else 5):
            found = rough.corrwith(ill(run, seed)[normal], method="spearman")
            assert found.between(low, high).all(), (run, seed)
    answers = [ill("06_beyond", seed) for seed in range(3)] + [ill("02_cnn1_2class", 0)]
    first, *others = (set(normal[a[normal].to_numpy() > 0.5]) for a in answers)
    assert len(first) == 20 and all(first <= other for other in others)
    by_seed = pd.DataFrame([a[pneumonia] for a in answers[:3]], range(3)).T.sort_values(0)
    times = (by_seed[by_seed[0] < 0.5] < 0.5).sum(axis=1)  # missed by seed 0, the surest first
    assert (times[:3] == 3).all() and (times[3:] == 1).mean() > 0.5


def test_weights_are_those_of_the_published_runs_with_seed_0():
    main = RESULTS / MAIN_IMAGES / "seed-0"
    expected = {name for name in run_notebooks.WITH_WEIGHTS if (main / name / "run.json").exists()}
    assert {path.name.removesuffix(".weights.h5") for path in WEIGHTS.iterdir()} == expected
    assert all(utils.ModelRun(main / name).has_weights for name in expected)
    assert all(path.stat().st_size < 30_000_000 for path in WEIGHTS.iterdir())


XCEPTION = os.environ.get("CXR_TEST_XCEPTION")
OF_06 = [pytest.mark.slow, pytest.mark.skipif(not XCEPTION, reason="CXR_TEST_XCEPTION: no file")]
WITH_06 = [*run_notebooks.WITH_WEIGHTS[:3], pytest.param("06_beyond", marks=OF_06)]


@pytest.mark.parametrize("name", WITH_06)
def test_published_weights_give_the_published_predictions(sample_images, name, monkeypatch):
    run = utils.find_published_run(name, need_weights=True)
    assert run.info["images"]["test_fingerprint"] == sample_images.test_fingerprint
    assert len(sample_images.metadata) == 1280 and sample_images.preparation == "nearest neighbours"
    classes = len((metrics := run.info["metrics"]["test"])["recall"])
    model = kept = utils.build_cnn_1(classes, 0.2, 0)
    if name == "06_beyond":
        monkeypatch.setenv("CXR_XCEPTION_WEIGHTS", XCEPTION)
        model, kept = cross_test.build_xception(utils.setup())
    elif "transfer" in name:
        frozen, second = bench.frozen_and_layers(name)
        model = kept = keras.Sequential([keras.Input((224, 224, 3)), frozen, *second])
    run.load_weights(kept)
    test = sample_images.metadata.query("source_split == 'test'").assign(split="test")
    ours = utils.predict(model, sample_images, test, classes).sort_values("file")
    theirs = run.predictions.query("split == 'test'").sort_values("file")
    assert len(ours) == 624 and ours["file"].tolist() == theirs["file"].tolist()
    names = list(utils.CLASS_NAMES[classes])
    np.testing.assert_allclose(ours[names], theirs[names], atol=1e-4)
    assert utils.evaluate(ours)["accuracy"] == pytest.approx(metrics["accuracy"], abs=1e-9)
