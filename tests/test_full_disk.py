"""Writes that fail because the disk is full: one clear error, nothing half-written, and the
same results once there is room."""

import contextlib
import errno
import os
import re

import numpy as np
import pytest
import tiny

import utils

resource = pytest.importorskip("resource", reason="limits of Unix")
FILES = (  # what a run writes in one step each, in this order
    ".uint8", "normal.jpeg", "bacterial.jpeg", "images-.json", "features-.json", "features-.json",
    "features-.json", "training.npz", "training.npz", "model.weights.h5", "history.csv",
    "predictions.csv", "run.json",
)  # fmt: skip


@contextlib.contextmanager
def file_limit(size):
    """No file grows beyond `size` bytes: the kernel refuses as it does on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(size), before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@contextlib.contextmanager
def around_writes(block):
    """Puts the context manager `block(number)` around the number-th write of a file."""
    real, written = utils.atomic, []

    @contextlib.contextmanager
    def atomic(path):
        if path.name == ".writable":
            with real(path) as part:
                yield part
            return
        written.append([path.name, 0])
        with block(len(written) - 1), real(path) as part:
            yield part
        written[-1][1] = path.stat().st_size

    utils.atomic = atomic
    try:
        yield written
    finally:
        utils.atomic = real


@pytest.fixture(scope="module")
def known():
    """Filled by the first test: an undisturbed run's results, and its files' sizes."""
    return {}


@pytest.fixture
def undisturbed(known, tiny_set, make_run, tmp_path, capsys):
    if not known:
        run = make_run(tiny_set(), out=tmp_path / "whole", profile="full")
        with around_writes(lambda number: contextlib.nullcontext()) as written:
            known["results"] = tiny.whole_run(run)
        names = [re.sub(r"^(images|features)-.*\.json", r"\1-.json", n) for n, _ in written]
        assert [n if n in FILES else n[-6:] for n in names] == list(FILES)
        known["sizes"] = [size for _, size in written]
    return known


def refused(run, path_end, kept):
    with pytest.raises(utils.CxrError, match="No space left while writing .*CXR_OUT") as error:
        tiny.whole_run(run)
    assert path_end in str(error.value) and kept in str(error.value)
    assert not list(run.out.parent.rglob(".*.part*"))


@pytest.mark.parametrize("number", range(len(FILES)), ids=[f"{n}{f}" for n, f in enumerate(FILES)])
def test_full_at_any_write(undisturbed, tiny_set, make_run, number):
    run = make_run(tiny_set(), profile="full")
    share = np.random.default_rng(number).uniform(0, 0.95)

    def block(now):
        size = undisturbed["sizes"][number] * share
        return file_limit(size) if now == number else contextlib.nullcontext()

    with around_writes(block) as written:
        refused(run, FILES[number].split("-")[0].split(".j")[0], "Nothing half-written")
    assert len(written) == number + 1
    tiny.assert_same(undisturbed["results"], tiny.whole_run(run))


@pytest.mark.parametrize("call", ["fsync", "replace"])
@pytest.mark.parametrize("number", [0, 7, 9, 12])
def test_full_when_the_system_writes_or_renames(
    undisturbed, tiny_set, make_run, monkeypatch, call, number
):
    """Some disks, and Drive, say that they are full only then."""
    run = make_run(tiny_set(), profile="full")

    def fail(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    @contextlib.contextmanager
    def block(now):
        with monkeypatch.context() as patch:
            if now == number:
                patch.setattr(os, call, fail)
            yield

    with around_writes(block):
        refused(run, FILES[number], "Nothing half-written")
    tiny.assert_same(undisturbed["results"], tiny.whole_run(run))


def test_full_while_features_are_written(undisturbed, tiny_set, make_run, monkeypatch, capsys):
    run = make_run(tiny_set(), profile="full")
    extract = utils._extract

    def limited(*args):
        with file_limit(7000):  # of 11 kB
            extract(*args)

    with monkeypatch.context() as patch:
        patch.setattr(utils, "_extract", limited)
        refused(run, ".float16", "What is computed so far was kept")
    tiny.assert_same(undisturbed["results"], tiny.whole_run(run))


def test_full_while_phantoms_are_drawn(make_run, capsys):
    run = make_run("phantom")
    with file_limit(9000), pytest.raises(utils.CxrError, match="phantoms.*Free some"):
        utils.find_images(run)
    assert not list(run.cache.iterdir())


def test_room_for_the_weights_is_seen_to_before_hdf5_needs_it(monkeypatch, tmp_path):
    """HDF5 can crash the process on a full disk, so it must never be the one to find out."""
    model = utils.build_cnn_1(3, 0.2, 0)
    room = []
    save = utils.keras.Model.save_weights

    def watched(self, path, *args, **kwargs):
        room.append(os.path.getsize(path))
        save(self, path, *args, **kwargs)

    monkeypatch.setattr(utils.keras.Model, "save_weights", watched)
    utils.save_weights(model, tmp_path / "part")
    assert room[0] >= (tmp_path / "part").stat().st_size > 1_000_000
