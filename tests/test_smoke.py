"""What all five notebooks leave in the smoke profile on phantoms, and that it is kept."""

import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

import utils

STAGES = ["01_data", "02_cnn1_2class", "03_cnn1_3class", "04_inceptionv3", "05_cnn1_transfer"]


@pytest.fixture(scope="module")
def out(pytestconfig):
    """The output folder of this test session: nbval has run the notebooks in it already."""
    return Path(pytestconfig.cxr_out)


def run_all(out, *arguments):
    """The lines printed by the runner; it sees no setting but those of `make run`."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("CXR_")}
    environment |= {"CXR_DATA": "phantom", "CXR_PROFILE": "smoke", "CXR_OUT": str(out)}
    done = subprocess.run([sys.executable, "tests/tools/run.py", *arguments], cwd=utils.PROJECT,
                          env=environment, capture_output=True, text=True)  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def stages(out):
    folder = out / "phantom-smoke" / "seed-0"
    if not (folder / STAGES[-1] / "run.json").exists():  # nbval was not part of this session
        run_all(out)
    return {name: utils.Stage(folder / name) for name in STAGES}


def test_every_stage_is_there(stages):
    for name, stage in stages.items():
        assert stage.facts["stage"] == name and stage.facts["data"]["source"] == "phantom"
        if name != "01_data":
            assert len(stage.history) == 2 and set(stage.predictions["part"]) == {
                "test", "validation"}  # fmt: skip
    assert stages["04_inceptionv3"].facts["inception"] == "random weights, never trained"


@pytest.mark.parametrize("name", ["02_cnn1_2class", "03_cnn1_3class", "05_cnn1_transfer"])
def test_the_phantoms_are_learned_better_than_chance(stages, name):
    assert stages[name].facts["metrics"]["auc"] > 0.58


def test_a_second_run_trains_and_computes_nothing_again(stages, out):
    kept = [p for p in out.rglob("*") if p.is_file() and "executed" not in p.parts]
    before = {p: p.stat().st_mtime_ns for p in kept if "01_data" not in p.parts}
    again = STAGES[1:]
    printed = run_all(out, *again)
    assert len(re.findall(r"is trained already \(", printed)) == 5
    assert len(re.findall("not needed", printed)) == 3
    assert before == {p: p.stat().st_mtime_ns for p in before}
    for name in again:
        notebook = nbformat.read(out / "executed" / f"{name}.ipynb", as_version=4)
        outputs = [o for cell in notebook.cells for o in cell.get("outputs", [])]
        assert "PHANTOMS: drawn stand-ins, not X-rays" in outputs[0]["text"]
        assert not [o["text"] for o in outputs if o.get("name") == "stderr"], name


def test_a_later_notebook_alone_says_what_to_run_first(tmp_path):
    environment = dict(os.environ, CXR_OUT=str(tmp_path))
    command = [sys.executable, "tests/tools/run.py", "03_cnn1_3class"]
    done = subprocess.run(
        command, cwd=utils.PROJECT, env=environment, capture_output=True, text=True
    )
    assert done.returncode and "Run notebook 02_cnn1_2class first" in done.stderr


def fields(*names):
    return [word for name in names for word in ("--field", name)]


@pytest.mark.parametrize("trial", ["contrast", "nadam"])
def test_a_trial_of_the_report_is_kept_apart(stages, out, trial):
    run_all(out, *fields(f"TRIAL={trial}"), "02_cnn1_2class")
    main = stages["02_cnn1_2class"]
    changed = utils.Stage(main.folder.with_name(f"02_cnn1_2class-{trial}"))
    theirs, ours = changed.facts["settings"], main.facts["settings"]
    differ = {key for key in theirs if theirs[key] != ours.get(key)} - {"trial"}
    assert differ == {"layers" if trial == "contrast" else "optimizer"}


def test_a_warm_start_begins_where_notebook_02_ended(stages, out):
    run_all(out, *fields("WARM_START=True"), "03_cnn1_3class")
    cold = stages["03_cnn1_3class"]
    warm = utils.Stage(cold.folder.with_name("03_cnn1_3class-warm"))
    assert warm.facts["settings"]["warm_start"] is True
    assert not warm.history["loss"].equals(cold.history["loss"])


def test_past_the_stop(stages, out):
    run_all(out, *fields("PAST_STOP=True"), "04_inceptionv3")
    assert utils.Stage(
        stages["04_inceptionv3"].folder.with_name("04_inceptionv3-past")
    ).history.size


def test_published_weights_are_not_for_phantoms(phantom_images):
    with pytest.raises(utils.CxrError, match="not phantoms: untick PUBLISHED"):
        utils.published_stage("02_cnn1_2class", phantom_images)
