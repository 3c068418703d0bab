"""Notebook 01 on the real images, where they are: CXR_TEST_REAL names their folder."""

import json
import os
import subprocess
import sys

import pytest

import utils

REAL = os.environ.get("CXR_TEST_REAL", "")
pytestmark = pytest.mark.skipif(not REAL, reason="CXR_TEST_REAL does not name the real set")


def test_notebook_01_counts_the_real_set(tmp_path):
    environment = dict(os.environ, CXR_DATA=REAL, CXR_PROFILE="full", CXR_OUT=str(tmp_path))
    command = [sys.executable, "tests/tools/run.py", "01_data"]
    done = subprocess.run(command, cwd=utils.PROJECT, env=environment, text=True,
                          capture_output=True)  # fmt: skip
    assert done.returncode == 0, done.stderr
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
        assert said in done.stdout
