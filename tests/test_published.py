"""What is published can be recomputed from the predictions, without images or training."""

import json
import re

import pandas as pd
import pytest

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


@pytest.mark.parametrize("folder", STAGES, ids=name)
def test_published_files_name_no_machine(folder):
    for path in folder.iterdir():
        assert not re.search(r"/(root|work|tmp|home|Users)/", path.read_text(encoding="utf-8"))
        assert path.stat().st_size < 400_000


class AnyXrays:
    source = "folder"


def test_the_small_weights_are_there_and_load():
    files = sorted(utils.WEIGHTS.glob("*.weights.h5"))
    wanted = ["02_cnn1_2class", "03_cnn1_3class", "05_cnn1_transfer"]
    assert [path.name.split(".")[0] for path in files] == wanted
    assert all(path.stat().st_size < 2_000_000 for path in files)
    for stage, classes in (("02_cnn1_2class", 2), ("03_cnn1_3class", 3)):
        model = utils.build_cnn_1(classes, 0.2, 0)
        before = model.get_weights()[0].copy()
        utils.published_stage(stage, AnyXrays).load_weights(model)
        assert (model.get_weights()[0] != before).any()


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
