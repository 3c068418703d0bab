"""kill -9 at the moments that matter: the next run finishes with the same results."""

import multiprocessing
import os
import signal
import sys

import pytest
import tiny

import utils

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="kill -9 and forked processes")
MOMENTS = {
    "in the middle of packing": ("read", "", 11),
    "packed file written": ("rename", ".uint8", 1),
    "packed file named, example not": ("rename", "examples", 1),
    "second example": ("rename", "examples", 2),
    "sidecar written": ("rename", "images-", 3),
    "second block of features": ("block", "", 2),
    "record of features": ("rename", "features-", 1),
    "state of the first epoch": ("rename", "training.npz", 1),
    "state of the second epoch": ("rename", "training.npz", 2),
    "weights half-way": ("h5", "model", 1),
    "weights written": ("rename", "model.weights.h5", 2),
    "history written": ("rename", "history.csv", 1),
    "predictions written": ("rename", "predictions.csv", 1),
    "run.json written": ("rename", "run.json", 1),
    "run.json named, state not deleted": ("renamed", "run.json", 1),
}


@pytest.fixture(scope="module")
def server():
    """Processes that need not load TensorFlow again: forked from one that has."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["utils", "tiny"])
    return context


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Filled by the first test: what an undisturbed run left, and the names of its files."""
    return {}


def run_in(server, *arguments):
    process = server.Process(target=tiny.killed_run, args=arguments)
    process.start()
    process.join(120)
    return process.exitcode


@pytest.mark.parametrize("moment", MOMENTS)
def test_killed_at_any_moment_it_ends_as_if_it_never_was(
    server, whole, moment, tiny_set, make_run, tmp_path
):
    root = tiny_set()
    if not whole:
        run = make_run(root, out=tmp_path / "whole", profile="full")
        whole["results"], whole["files"] = tiny.whole_run(run), tiny.files(run.out)
    out = tmp_path / "out"
    assert run_in(server, str(root), str(out), *MOMENTS[moment]) == -signal.SIGKILL
    run = make_run(root, profile="full")
    tiny.assert_same(whole["results"], tiny.whole_run(run))
    for part in out.rglob(".*.part*"):  # what nobody writes any more is tidied up at a set-up
        os.utime(part, (0, 0))
    make_run(root, profile="full")
    assert tiny.files(run.out) == whole["files"]
    kept = sorted(p.suffix for p in run.cache.rglob("*") if p.is_file())
    assert kept == [".float16", ".jpeg", ".jpeg", ".json", ".json", ".uint8"]
    assert not utils.re.search("part", " ".join(tiny.files(out)))
