"""Notebook 01 on the real images, where they are: CXR_TEST_REAL names their folder."""

import json
import os
import subprocess
import sys

import pytest

import utils

REAL = os.environ.get("CXR_TEST_REAL", "")
pytestmark = pytest.mark.skipif(not REAL, reason="CXR_TEST_REAL does not name the real set")


def run_full(out, *arguments):
    environment = dict(os.environ, CXR_DATA=REAL, CXR_PROFILE="full", CXR_OUT=str(out))
    command = [sys.executable, "tests/tools/run.py", *arguments]
    done = subprocess.run(
        command, cwd=utils.PROJECT, env=environment, text=True, capture_output=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_notebook_01_counts_the_real_set(tmp_path):
    printed = run_full(tmp_path, "01_data")
    facts = json.loads((tmp_path / "seed-0" / "01_data" / "run.json").read_text())
    assert facts["data"]["images"] == 5856
    claims = {claim["claim"]: claim for claim in facts["claims"]}
    assert claims["C01"]["this run"] == "5,856" and claims["C01"]["verdict"] == "reproduced"
    assert facts["counts"] == {
        "train": {"normal": 1341, "bacterial": 2530, "viral": 1345},
        "val": {"normal": 8, "bacterial": 8, "viral": 0},
        "test": {"normal": 234, "bacterial": 242, "viral": 148},
    }
    assert facts["patients"] == 4097 and facts["patients in several folders"] == 0
    assert facts["identical groups"] == 30 and facts["identical groups across train and test"] == 0
    for said in ("validation: 20.0% of the 5,216", "100 images compared, 0 differ"):
        assert said in printed
    assert facts["peak_mb"] < 1500
    [published] = utils.RESULTS.glob("*/seed-0/01_data")
    published = utils.Stage(published).facts
    assert facts["data"]["fingerprint"] == published["data"]["fingerprint"]
    assert facts["yardsticks"] == published["yardsticks"]


def test_published_weights_give_the_published_numbers_without_training(tmp_path):
    names = ("02_cnn1_2class", "03_cnn1_3class", "05_cnn1_transfer")
    printed = run_full(tmp_path, "--field", "PUBLISHED=True", *names)
    assert "epoch  1" not in printed
    for name in names:
        stage = utils.Stage(tmp_path / "seed-0" / name)
        [folder] = utils.RESULTS.glob(f"*/seed-0/{name}")
        published = utils.Stage(folder)
        assert stage.facts["data"]["fingerprint"] == published.facts["data"]["fingerprint"]
        ours, theirs = stage.facts["metrics"], published.facts["metrics"]
        assert ours["accuracy"] == pytest.approx(theirs["accuracy"], abs=0.005)
        assert ours["auc"] == pytest.approx(theirs["auc"], abs=0.002)
