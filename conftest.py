"""Tests and nbval run on phantoms in the smoke profile, in a folder of their own."""

import os
import shutil
import sys
import tempfile
from pathlib import Path

import pytest

PROJECT = Path(__file__).parent
sys.path.insert(0, str(PROJECT))


def pytest_configure(config):
    config.cxr_out = tempfile.mkdtemp(prefix="cxr-test-")
    for name in [name for name in os.environ if name.startswith("CXR_")]:
        if not name.startswith("CXR_TEST_"):
            del os.environ[name]
    os.environ.update(CXR_DATA="phantom", CXR_PROFILE="smoke", CXR_OUT=config.cxr_out)
    os.environ.setdefault("MPLBACKEND", "agg")  # notebooks' kernels choose their own


def pytest_unconfigure(config):
    shutil.rmtree(config.cxr_out, ignore_errors=True)


@pytest.fixture(scope="session")
def phantom_run():
    """The `Run` of phantoms in the smoke profile, as the notebooks have it."""
    import utils

    return utils.setup()


@pytest.fixture(scope="session")
def phantom_images(phantom_run):
    import utils

    return utils.open_images(phantom_run)
