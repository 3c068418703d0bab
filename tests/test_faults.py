"""Full disks and flipped bits, wherever a run writes: one clear error, nothing half-written, and
afterwards the same results."""

import contextlib
import errno
import os
import re

import keras
import numpy as np
import pytest
import small
from small import NAME, Killed, assert_same

import utils

resource = pytest.importorskip("resource", reason="limits of Unix")


def limit(size=None):
    """No file grows beyond `size` bytes: the kernel refuses as it does on a full disk."""
    most = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (most if size is None else size, most))


@contextlib.contextmanager
def refused(config, name):
    """Expects the one error, about a file of this name, and nothing half-written."""
    try:
        with pytest.raises(utils.UserError, match=f"No space left while writing .*{name}.*CXR_OUT"):
            yield
    finally:
        limit()
    assert not list(config.cache_dir.parent.rglob("*.part.*"))


def test_a_disk_that_is_full_in_the_middle_of_a_file(whole, config):
    with refused(config, "pixels.npy"):
        limit(20 * 224 * 224)
        utils.load_images(config)
    images, inputs = utils.load_images(config), keras.Input((224, 224, 3))
    frozen = keras.Model(inputs, keras.layers.AveragePooling2D(32)(inputs))
    features = utils.FrozenFeatures(config, images, images.metadata, frozen, "small")
    with refused(config, "features-small"):
        limit(9000)
        features.compute()
    features.compute()
    with refused(config, "training.npz"):
        small.train(config, hook=lambda epoch: epoch == 2 and limit(5000))
    assert_same(whole, small.train(config))


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["pixels.npy", "info.json", "training.npz", "history.csv", "weights.h5", "run.json"]
)
def test_a_disk_that_says_only_at_the_end_that_it_is_full(whole, config, monkeypatch, name):
    replace = os.replace

    def full(part, path):
        if path.name.endswith(name):
            raise OSError(errno.ENOSPC, "No space left on device")
        replace(part, path)

    with monkeypatch.context() as patch, refused(config, name):
        patch.setattr(os, "replace", full)
        small.train(config)
    assert_same(whole, small.train(config))


@pytest.mark.slow
def test_no_flipped_bit_of_a_state_is_used(config, capsys):
    """Anywhere in the file: in its arrays, in numpy's headers, in zip's own records."""
    with pytest.raises(Killed):
        small.train(config, killed_after=1)
    path = config.output_dir / NAME / "training.npz"
    content, rng = path.read_bytes(), np.random.default_rng(0)
    places = [*rng.integers(len(content), size=20), *range(len(content) - 30, len(content))]
    for entry in re.finditer(b"PK\x01\x02", content):  # of zip's directory: lengths of its fields
        places += range(entry.start() + 28, entry.start() + 34)
    good, refusals = small.train(config, epochs=1), 0
    for number, place in enumerate(places):
        damaged = bytearray(content)
        damaged[place] ^= 1 << rng.integers(8)
        state = config.output_dir / f"02_{number}" / "training.npz"
        state.parent.mkdir()
        state.write_bytes(damaged)
        found = small.train(config, f"02_{number}", epochs=0)
        if len(found[0]):
            assert_same(good, found)
        refusals += not len(found[0])
    assert refusals > len(places) / 2 and capsys.readouterr().out.count("is damaged") == refusals
