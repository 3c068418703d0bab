"""Batches from the packed file."""

import numpy as np
import pytest

import utils


@pytest.fixture
def images(tiny_set, make_run):
    return utils.open_images(make_run(tiny_set()))


def epoch(dataset):
    batches = list(dataset.as_numpy_iterator())
    return [np.concatenate(parts) for parts in zip(*batches, strict=True)]


def test_batches_are_the_packed_pixels_scaled(images):
    rows = images.index.iloc[::2]
    pixels, labels = epoch(utils.make_dataset(images, rows, classes=3, batch_size=5))
    assert pixels.dtype == labels.dtype == np.float32
    assert pixels.shape == (len(rows), 224, 224, 3) and labels.shape == (len(rows), 3)
    expected = images.pixels[rows.index][..., None] / np.float32(255)
    np.testing.assert_array_equal(pixels, np.repeat(expected, 3, axis=-1))
    names = np.array(utils.CLASSES[3])[labels.argmax(axis=1)]
    assert (names == rows["class3"]).all() and (labels.sum(axis=1) == 1).all()


def test_two_classes(images):
    _, labels = epoch(utils.make_dataset(images, images.index, classes=2, batch_size=7))
    assert ((labels.argmax(axis=1) == 1) == (images.index["class2"] == "pneumonia")).all()


def test_every_epoch_has_each_image_once_in_an_order_of_its_own(images):
    dataset = utils.make_dataset(images, images.index, 3, batch_size=5, shuffle_seed=3)
    assert int(dataset.cardinality()) == 5
    (first, _), (second, _) = epoch(dataset), epoch(dataset)
    assert not np.array_equal(first, second)
    order = np.lexsort(first.reshape(24, -1).T[:50]), np.lexsort(second.reshape(24, -1).T[:50])
    np.testing.assert_array_equal(first[order[0]], second[order[1]])


def test_the_order_depends_on_seed_and_epoch_alone(images):
    def third_epoch(seed):
        dataset = utils.make_dataset(images, images.index, 3, batch_size=5, shuffle_seed=seed)
        dataset.order.epoch = 2
        return epoch(dataset)[0]

    whole = utils.make_dataset(images, images.index, 3, batch_size=5, shuffle_seed=3)
    for _ in range(3):
        last = epoch(whole)[0]
    np.testing.assert_array_equal(third_epoch(3), last)
    assert not np.array_equal(third_epoch(4), last)
