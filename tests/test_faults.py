"""Full disks, wherever a run writes: one clear error, nothing half-written, and afterwards the
same results."""

import contextlib

import keras
import pytest
import small

import utils

resource = pytest.importorskip("resource", reason="limits of Unix")


@contextlib.contextmanager
def full_disk(config, name, size):
    """No file grows beyond `size` bytes: the kernel refuses as on a full disk. Expects the one
    error, about a file of this name, and nothing half-written."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        with pytest.raises(utils.UserError, match=f"No space left while writing .*{name}.*CXR_OUT"):
            yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list(config.cache_dir.parent.rglob("*.part.*"))


def test_a_disk_that_is_full_in_the_middle_of_a_file(whole, config):
    with full_disk(config, "pixels.npy", 20 * 224 * 224):
        utils.load_images(config)
    images, inputs = utils.load_images(config), keras.Input((224, 224, 3))
    frozen = keras.Model(inputs, keras.layers.AveragePooling2D(32)(inputs))
    features = utils.FrozenFeatures(config, images, images.metadata, frozen, "small")
    with full_disk(config, "features-small", 9000):
        features.compute()
    features.compute()
    with full_disk(config, "training.npz", 5000):
        small.train(config)
    small.assert_same(whole, small.train(config))
