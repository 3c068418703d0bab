"""An image of one's own: read, doubted where it is no chest, explained at the right place."""

import keras
import matplotlib.pyplot as plt
import numpy as np
import pytest
import synthetic
from PIL import Image
from scipy import stats
from sklearn.datasets import load_sample_image

import utils

LABELS = utils.CLASS_NAMES[3]


def draw(count, seed):
    """Float pictures, class numbers, and where the opacities are."""
    rng = np.random.default_rng(seed)
    numbers = np.arange(count) % 3
    pixels, opacities = zip(*(synthetic.draw_chest(LABELS[n], rng) for n in numbers), strict=True)
    return utils.to_rgb(np.stack(pixels)).astype("float32") / 255, numbers, np.stack(opacities)


@pytest.fixture(scope="module")
def model():
    """As notebook 05's, but small: a frozen network and a head, trained on drawn chests."""
    keras.utils.set_random_seed(0)
    layers = keras.layers
    inputs = keras.Input((224, 224, 3))
    small = layers.Conv2D(24, 3, activation="relu")(layers.AveragePooling2D(4)(inputs))
    frozen = keras.Model(inputs, layers.MaxPooling2D()(small))
    frozen.trainable = False
    head = [layers.Conv2D(24, 3, activation="relu"), layers.MaxPooling2D(), layers.Flatten(),
            layers.Dropout(0.2), layers.Dense(3, "softmax")]  # fmt: skip
    model = keras.Sequential([keras.Input((224, 224, 3)), frozen, *head])
    model.compile("adam", "sparse_categorical_crossentropy")
    pixels, numbers, _ = draw(150, seed=1)
    model.fit(pixels, numbers, epochs=16, batch_size=16, verbose=0)
    return model


@pytest.fixture(scope="module")
def drawn():
    return draw(90, seed=2)


@pytest.mark.parametrize("label", ["bacterial", "viral"])
def test_the_peak_of_the_explanation_lies_in_the_opacity(model, drawn, label):
    hits = []
    pixels, numbers, opacities = (part[drawn[1] == LABELS.index(label)] for part in drawn)
    for picture, number, inside in zip(pixels, numbers, opacities, strict=True):
        heat = utils.hires_cam(model, picture, number)
        assert heat.shape == (224, 224) and heat.min() >= 0 and heat.max() <= 1
        hits.append(bool(inside[np.unravel_index(heat.argmax(), heat.shape)]))
    chance = opacities.mean()
    assert stats.binomtest(sum(hits), len(hits), chance, "greater").pvalue < 1e-4


def test_an_explanation_is_of_what_sets_a_class_apart(model, drawn):
    """What speaks for all classes alike changes no probability, and no explanation."""
    kernel, bias = model.layers[-1].get_weights()
    picture = drawn[0][1]
    before = [utils.hires_cam(model, picture, number) for number in range(3)]
    common = np.random.default_rng(0).normal(size=(len(kernel), 1)).astype("float32")
    model.layers[-1].set_weights([kernel + common, bias])
    after = [utils.hires_cam(model, picture, number) for number in range(3)]
    model.layers[-1].set_weights([kernel, bias])
    np.testing.assert_allclose(after, before, atol=1e-2)
    assert np.abs(before[0] - before[1]).max() > 0.5


def test_the_figure_of_a_prediction(model, drawn):
    pixels = (drawn[0][2, ..., 0] * 255).astype(np.uint8)
    figure = utils.plot_prediction(model, pixels, 3, "title")
    floats = utils.to_rgb(pixels)[None] / np.float32(255)
    wanted = model.predict(floats, verbose=0)[0]
    assert [text.get_text() for text in figure.axes[2].texts] == [f"{v:.1%}" for v in wanted[::-1]]
    assert LABELS[wanted.argmax()] in figure.axes[1].get_title()
    plt.close(figure)


@pytest.fixture(scope="module")
def train(sample_images):
    metadata = sample_images.metadata
    return metadata[metadata["source_split"] == "train"]


def test_pictures_that_are_no_chests_are_doubted(tmp_path, sample_images, train):
    flower = Image.fromarray(load_sample_image("flower.jpg"))
    temple = Image.fromarray(load_sample_image("china.jpg"))
    noise = np.random.default_rng(0).integers(0, 256, (300, 300), np.uint8)
    for picture, wanted in (
        (flower, ["colours", "no training image"]),
        (flower.convert("L"), ["no training image"]),
        (temple.convert("L"), ["no training image"]),
        (Image.new("L", (300, 200), 128), ["nearly blank"]),
        (Image.fromarray(noise), ["no training image"]),
    ):
        picture.save(tmp_path / "mine.png")
        pixels = utils.load_user_image(tmp_path / "mine.png")
        found = utils.out_of_distribution_warnings(pixels, sample_images, train)
        assert len(found) == len(wanted)
        assert all(words in line for words, line in zip(wanted, found, strict=True)), found


def test_test_images_are_hardly_ever_doubted(sample_images, train):
    test = sample_images.metadata.query("source_split == 'test'").sample(8, random_state=0)
    doubted = [
        utils.out_of_distribution_warnings(sample_images.pixels[number], sample_images, train)
        for number in test.index
    ]
    assert sum(map(bool, doubted)) <= 1


@pytest.mark.parametrize("content", [None, b"", b"no picture"])
def test_a_file_that_is_no_picture_is_named(tmp_path, content):
    path = tmp_path / "mine.jpeg"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(utils.UserError, match=r"mine\.jpeg cannot be used .* Files pane"):
        utils.load_user_image(path)
