import pytest
import small

import utils


@pytest.fixture
def tiny_set(tmp_path):
    """Makes a set of 24 small noisy pictures in Kaggle's layout; returns its folder."""
    return lambda folder=tmp_path / "set": small.make_tiny_set(folder)


@pytest.fixture
def make_config(tmp_path):
    """Sets up on a folder, in full mode, with an output folder of its own."""

    def make(data, out=None, mode="full", **settings):
        return utils.setup(data=str(data), out=str(out or tmp_path / "out"), mode=mode, **settings)

    return make


@pytest.fixture
def config(tiny_set, make_config):
    return make_config(tiny_set())


@pytest.fixture
def images(config):
    return utils.load_images(config)


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """(config, images, an undisturbed training on them, which early stopping ends)."""
    folder = tmp_path_factory.mktemp("finished")
    data = str(small.make_tiny_set(folder / "set"))
    config = utils.setup(data=data, out=str(folder / "out"), mode="full")
    return config, utils.load_images(config), small.train(config)


@pytest.fixture
def whole(finished):
    return finished[2]


@pytest.fixture(scope="session")
def sample_images():
    return utils.load_images(utils.setup())
