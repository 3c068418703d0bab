"""An image of one's own: read, doubted where it is no chest, explained at the right place."""

from pathlib import Path

import keras
import matplotlib.pyplot as plt
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from sklearn.datasets import load_sample_image

import beyond
import utils


@pytest.fixture(scope="module")
def model():
    """As notebook 05's, but a frozen network of 7 x 7 means of 3 colours, and a head of one layer,
    whose gradients are its weights."""
    keras.utils.set_random_seed(0)
    layers, inputs = keras.layers, keras.Input((224, 224, 3))
    frozen = keras.Model(inputs, layers.AveragePooling2D(32)(inputs))
    head = [layers.Flatten(), layers.Dropout(0.5), layers.Dense(3, "softmax")]
    return keras.Sequential([inputs, frozen, *head])


def test_an_explanation_is_of_what_sets_a_class_apart_place_by_place(model):
    """What speaks for all classes alike changes no probability, and no explanation."""
    picture = np.random.default_rng(0).random((224, 224, 3), dtype="float32")
    maps = picture.reshape(7, 32, 7, 32, 3).mean((1, 3))
    kernel, _ = model.layers[-1].get_weights()
    shares = model.predict(picture[None], verbose=0)[0]
    for number in range(3):
        others = np.delete(np.arange(3), number)
        rival = kernel[:, others] @ shares[others] / shares[others].sum()
        apart = (kernel[:, number] - rival).reshape(7, 7, 3)
        wanted = tf.image.resize(np.maximum((maps * apart).sum(-1), 0)[..., None], (224, 224))
        heat = utils.hires_cam(model, picture, number)
        np.testing.assert_allclose(heat, wanted[..., 0] / np.max(wanted), atol=1e-3)
        assert np.ptp(heat) == 1


def test_the_figure_of_a_prediction(model):
    pixels = np.random.default_rng(1).integers(0, 256, (224, 224), np.uint8)
    figure = utils.plot_prediction(model, pixels, 3, "title")
    wanted = model.predict(utils.to_rgb(pixels)[None] / np.float32(255), verbose=0)[0]
    assert [text.get_text() for text in figure.axes[2].texts] == [f"{v:.1%}" for v in wanted[::-1]]
    assert utils.CLASS_NAMES[3][wanted.argmax()] in figure.axes[1].get_title()
    plt.close(figure)


def test_pictures_of_no_chest_are_doubted_and_test_images_hardly_ever(tmp_path, sample_images):
    def warnings(pixels):
        train = sample_images.metadata.query("source_split == 'train'")
        return beyond.out_of_distribution_warnings(pixels, sample_images, train)

    flower = Image.fromarray(load_sample_image("flower.jpg"))
    for picture, wanted in (
        (flower, ["it has colours", "no training image"]),
        (flower.convert("L"), ["no training image"]),
        (Image.new("L", (300, 200), 128), ["it is nearly blank"]),
    ):
        picture.save(tmp_path / "mine.png")
        found = warnings(beyond.load_user_image(tmp_path / "mine.png"))
        assert len(found) == len(wanted) and all(map(str.startswith, found, wanted)), found
    test = sample_images.metadata.query("source_split == 'test'").sample(8, random_state=0)
    assert sum(bool(warnings(sample_images.pixels[number])) for number in test.index) <= 1


def test_a_file_that_is_no_picture_is_named(tmp_path):
    path = tmp_path / "mine.jpeg"
    for make in (bool, Path.touch):
        make(path)
        with pytest.raises(utils.UserError, match=r"mine\.jpeg cannot be used .* Files pane"):
            beyond.load_user_image(path)
