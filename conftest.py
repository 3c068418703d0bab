"""Tests and nbval run in quick mode on data/sample, in a folder of their own."""

import os
import shutil
import tempfile


def pytest_configure(config):
    if hasattr(config, "workerinput"):
        return  # of pytest-xdist: it shares the folder
    for name in [name for name in os.environ if name.startswith("CXR_")]:
        if not name.startswith("CXR_TEST_"):
            del os.environ[name]
    config.cxr_out = tempfile.mkdtemp(prefix="cxr-test-")
    os.environ.update(CXR_MODE="quick", CXR_OUT=config.cxr_out)
    os.environ.update(CXR_INCEPTION_WEIGHTS="random", CXR_XCEPTION_WEIGHTS="random")  # no download
    os.environ.setdefault("MPLBACKEND", "agg")  # also in notebooks' kernels


def pytest_unconfigure(config):
    if not hasattr(config, "workerinput"):
        shutil.rmtree(config.cxr_out, ignore_errors=True)


def pytest_collection_modifyitems(items):
    """The longest files right after the notebooks: no worker is to wait for them in the end."""
    long = ("test_training", "test_results")
    items.sort(key=lambda item: item.path.suffix == ".py" and item.path.stem not in long)
