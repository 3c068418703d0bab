"""What is published can be recomputed from the predictions, without images or training."""

import json
import re

import ledger
import pandas as pd
import pytest
import run
from PIL import Image

import utils

STAGES = [path.parent for path in sorted(utils.RESULTS.glob("*/seed-*/*/run.json"))]
MODELS = [folder for folder in STAGES if (folder / "predictions.csv").exists()]


def name(folder):
    return folder.relative_to(utils.RESULTS).as_posix()


def test_every_stage_is_published_with_seed_0():
    published = {folder.name for folder in STAGES if folder.parent.name == "seed-0"}
    notebooks = {path.stem for path in (utils.PROJECT / "notebooks").glob("*.ipynb")}
    assert notebooks <= published


@pytest.mark.parametrize("folder", MODELS, ids=name)
def test_measures_follow_from_the_predictions(folder):
    stage = utils.Stage(folder)
    classes = len(stage.facts["classes"]) if "classes" in stage.facts else 2
    predictions, history = stage.predictions, stage.history
    for part, stored in (("test", "metrics"), ("validation", "validation")):
        found = utils.evaluate(predictions[predictions["part"] == part], classes)
        for measure, value in found.items():
            assert stage.facts[stored][measure] == pytest.approx(value, abs=1e-9), measure
    assert stage.facts["profile"] == "full" and stage.facts["data"]["images"] == 5856
    assert (predictions["part"] == "test").sum() == 624
    assert list(history["epoch"]) == list(range(1, len(history) + 1))
    best = int(history["val_loss"].idxmin())
    stop = stage.facts["settings"]["stop"]["patience"]
    assert len(history) in (best + 1 + stop, stage.facts["settings"]["epochs"])
    if "test_accuracy" in history:  # on float16 features in stages 04 and 05
        followed = history["test_accuracy"][best]
        assert followed == pytest.approx(stage.facts["metrics"]["accuracy"], abs=0.005)


def test_readme_ledger_and_results_say_the_same():
    for path, content in ledger.files().items():
        assert path.read_text(encoding="utf-8") == content, f"{path.name}: run make ledger"
    with Image.open(ledger.FIGURE) as drawn:
        assert drawn.text["Description"] == ledger.models(), "accuracy.png: run make ledger"


def test_every_claim_has_evidence_or_says_what_is_missing():
    table = pd.read_csv(utils.RESULTS / "claims.csv", keep_default_na=False)
    for _, of_data in table.groupby("data"):
        assert list(of_data["claim"]) == [f"C{number:02d}" for number in range(1, 30)]
        for row in of_data.itertuples():
            assert row.verdict.startswith("open: ") or row.ours, row.claim


def test_a_run_with_a_larger_patience_goes_the_same_way():
    compared = 0
    for folder in MODELS:
        if folder.name.endswith("-patience-10"):
            longer = utils.Stage(folder).history
            shorter = folder.with_name(folder.name.removesuffix("-patience-10"))
            if (shorter / "run.json").exists():
                shorter = utils.Stage(shorter).history
                same = shorter.columns.intersection(longer.columns).drop("seconds")
                pd.testing.assert_frame_equal(shorter[same], longer[same].head(len(shorter)))
                stop, _ = utils.stopping_epoch(longer["val_loss"], 3)
                assert stop == len(shorter)
                compared += 1
    assert compared


@pytest.mark.parametrize("folder", STAGES, ids=name)
def test_published_files_name_no_machine(folder):
    for path in folder.iterdir():
        assert not re.search(r"/(root|work|tmp|home|Users)/", path.read_text(encoding="utf-8"))
        assert path.stat().st_size < 400_000


class AnyXrays:
    source = "folder"


def test_the_small_weights_are_there_and_load():
    files = sorted(utils.WEIGHTS.glob("seed-0/*.weights.h5"))
    wanted = {*run.BUILT_ON, "05_cnn1_transfer"}
    assert {path.name.split(".")[0] for path in files} == wanted
    assert all(path.stat().st_size < 2_000_000 for path in files)
    for path in utils.WEIGHTS.rglob("*.h5"):  # each belongs to a run that is published
        stage = f"{path.parent.name}/{path.name.split('.')[0]}"
        found = [utils.Stage(run_.parent) for run_ in utils.RESULTS.glob(f"*/{stage}/run.json")]
        assert any(one.is_whole() for one in found), stage
    for stage, classes in (("02_cnn1_2class", 2), ("03_cnn1_3class", 3)):
        model = utils.build_cnn_1(classes, 0.2, 0)
        before = model.get_weights()[0].copy()
        utils.published_stage(stage, AnyXrays).load_weights(model)
        assert (model.get_weights()[0] != before).any()
    first = utils.build_cnn_1(3, 0.2, 0)
    frozen = utils.keras.Model(first.inputs[0], first.layers[-4].output)
    layers = [frozen, *utils.cnn_1_layers(3, 0.2, 0)]
    transfer = utils.keras.Sequential([utils.keras.Input((224, 224, 3)), *layers])
    utils.published_stage("05_cnn1_transfer", AnyXrays).load_weights(transfer)
    utils.published_stage("03_cnn1_3class", AnyXrays).load_weights(first)
    for ours, theirs in zip(frozen.get_weights(), first.get_weights(), strict=False):
        assert (ours == theirs).all()  # the frozen part is stage 03's


def test_the_choices_were_made_on_validation_images_alone():
    choices = pd.read_csv(utils.RESULTS / "choices.csv")
    assert not [column for column in choices if "test" in column]
    lowest = choices.groupby("dropout")["val_loss"].min()
    assert lowest.idxmin() == 0.2
    chosen = choices[choices["dropout"] == 0.2].set_index("epoch")["val_loss"]
    waits, wait, least = [], 0, float("inf")
    for value in chosen[: chosen.idxmin()]:
        wait = 0 if value < least else wait + 1
        least = min(least, value)
        waits.append(wait)
    assert max(waits) + 1 == 3  # the least patience that gets to the lowest loss
    for folder in MODELS:
        settings = json.loads((folder / "run.json").read_text())["settings"]
        if "-" not in folder.name:
            assert settings["stop"]["patience"] == 3


def test_a_study_goes_on_from_what_is_published(tmp_path):
    first = utils.Stage(next(folder for folder in STAGES if folder.name == "03_cnn1_3class"))
    run.take_published(tmp_path, "of other images")
    assert not list(tmp_path.iterdir())
    run.take_published(tmp_path, first.facts["data"]["fingerprint"])
    for folder in STAGES:
        taken = tmp_path / folder.parent.name / folder.name
        if folder.name in run.BUILT_ON:
            assert not taken.exists() or utils.Stage(taken).is_whole()
        else:
            assert utils.Stage(taken).facts == utils.Stage(folder).facts
    assert utils.Stage(tmp_path / "seed-0" / "03_cnn1_3class").is_whole()
    mine = tmp_path / "seed-0" / "05_cnn1_transfer" / "history.csv"
    mine.write_text("mine")
    run.take_published(tmp_path, first.facts["data"]["fingerprint"])
    assert mine.read_text() == "mine"  # what is there stays
