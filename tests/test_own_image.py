"""An image of one's own: read, doubted where it is no chest, explained at the right place."""

import keras
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scipy import stats
from sklearn.datasets import load_sample_image

import utils


@pytest.fixture(scope="module")
def parts(phantom_run, phantom_images):
    index = phantom_images.index
    index = index.assign(part=utils.assign_parts(index, 0, smoke=True))
    return {part: index[index["part"] == part] for part in ("train", "validation", "test")}


@pytest.fixture(scope="module")
def model(phantom_run, phantom_images, parts):
    """Stage 05's model: the published CNN_1 frozen, its second CNN trained on phantoms."""
    cnn_1 = utils.build_cnn_1(3, 0.2, seed=0)
    cnn_1.load_weights(utils.WEIGHTS / "seed-0" / "03_cnn1_3class.weights.h5")
    frozen = keras.Model(cnn_1.inputs[0], cnn_1.layers[-4].output)
    frozen.trainable = False
    assert frozen.output_shape[1:] == (26, 26, 128)
    features = utils.frozen_features(phantom_run, phantom_images, parts["train"], frozen, "own")
    data = utils.make_feature_dataset(features, parts["train"], 3, 32, shuffle_seed=0)
    keras.utils.set_random_seed(0)
    head = keras.Sequential([keras.Input((26, 26, 128)), *utils.cnn_1_layers(3, 0.2, 0)])
    head.compile(keras.optimizers.Adam(1e-3), "categorical_crossentropy", metrics=["accuracy"])
    head.fit(data, epochs=15, verbose=0)
    return keras.Sequential([keras.Input((224, 224, 3)), frozen, *head.layers])


def peaks_inside(model, images, rows, **options):
    """Which overlays have their peak in an opacity, and the share of the picture these cover."""
    truth = pd.read_csv(images.root / "opacities.csv")
    grid = (np.arange(224) + 0.5) / 224
    hits, shares = [], []
    for number, row in rows.iterrows():
        pixels = utils.three_channels(images.read(number)).astype("float32") / 255
        heat = utils.grad_cam(model, pixels, utils.CLASSES[3].index(row["class3"]), **options)
        assert heat.shape == (224, 224) and heat.min() >= 0 and heat.max() <= 1
        inside = np.any([
            ((grid[None] - o.x) / o.rx) ** 2 + ((grid[:, None] - o.y) / o.ry) ** 2 <= 1
            for o in truth[truth["file"] == row["file"]].itertuples()
        ], axis=0)  # fmt: skip
        hits.append(bool(inside[np.unravel_index(heat.argmax(), heat.shape)]))
        shares.append(inside.mean())
    return np.array(hits), np.mean(shares)


@pytest.mark.parametrize("label", ["bacterial", "viral"])
def test_the_overlays_peak_lies_in_the_opacity(model, phantom_images, parts, label):
    rows = parts["test"].query("class3 == @label").head(50)
    hits, chance = peaks_inside(model, phantom_images, rows)
    assert stats.binomtest(int(hits.sum()), len(hits), chance, "greater").pvalue < 1e-4
    assert hits.mean() > 2 * chance
    averaged, _ = peaks_inside(model, phantom_images, rows, averaged=True)
    assert averaged.mean() < hits.mean()  # why the gradient is not averaged


def test_the_overlay_speaks_against_the_other_classes(model, phantom_images, parts):
    number = parts["test"].query("class3 == 'viral'").index[0]
    pixels = utils.three_channels(phantom_images.read(number)).astype("float32") / 255
    heats = [utils.grad_cam(model, pixels, c) for c in range(3)]
    assert np.corrcoef(heats[0].ravel(), heats[2].ravel())[0, 1] < 0.5


def test_a_figure_of_an_answer(model, phantom_images, parts):
    number = parts["test"].index[0]
    pixels = phantom_images.read(number)
    figure = utils.plot_answer(model, pixels, 3, "title")
    said = [text.get_text() for text in figure.axes[2].texts]
    wanted = model.predict(utils.three_channels(pixels)[None] / 255.0, verbose=0)[0][::-1]
    assert said == [f"{value:.1%}" for value in wanted]
    plt.close(figure)


def test_pictures_that_are_no_chests_are_doubted(tmp_path, phantom_images, parts):
    flower = Image.fromarray(load_sample_image("flower.jpg"))
    rng = np.random.default_rng(0)
    pictures = {
        "flower": (flower, ["colours", "no training image"]),
        "grey flower": (flower.convert("L"), ["no training image"]),
        "grey temple": (Image.fromarray(load_sample_image("china.jpg")).convert("L"), ["no train"]),
        "blank": (Image.new("L", (300, 200), 128), ["nearly blank"]),
        "noise": (Image.fromarray(rng.integers(0, 256, (300, 300), np.uint8)), ["no training"]),
    }
    for name, (picture, wanted) in pictures.items():
        path = tmp_path / f"{name}.png"
        picture.save(path)
        found = utils.unlike_training(utils.own_image(path), phantom_images, parts["train"])
        assert len(found) == len(wanted), name
        assert all(word in text for word, text in zip(wanted, found, strict=True)), name


def test_test_images_are_hardly_ever_doubted(phantom_images, parts):
    some = parts["test"].sample(40, random_state=0)
    doubted = [
        bool(utils.unlike_training(phantom_images.read(n), phantom_images, parts["train"]))
        for n in some.index
    ]
    assert sum(doubted) <= 4


@pytest.mark.parametrize("content", [None, b"", b"no picture"])
def test_a_file_that_is_no_picture_is_named(tmp_path, content):
    path = tmp_path / "mine.jpeg"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(utils.CxrError, match=r"mine\.jpeg cannot be used .* Files pane"):
        utils.own_image(path)
