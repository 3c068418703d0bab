"""Notebook 06's own: crops, thresholds, calibration, stress, images of one's own; explanations."""

import re
from pathlib import Path

import keras
import numpy as np
import pandas as pd
import pytest
import tensorflow as tf
from PIL import Image
from sklearn.datasets import load_sample_image

import beyond
import utils
from cxr.explain import hires_cam

NAMES = list(utils.CLASS_NAMES[3])


def drawn(count, shares, sharpness=1.0, seed=0):
    """Predictions of three classes that are calibrated at a temperature of `sharpness`."""
    rng = np.random.default_rng(seed)
    true = rng.choice(3, count, p=shares)
    logits = np.eye(3)[true] + rng.normal(size=(count, 3))
    sharp = (np.exp(logits) * shares) ** sharpness  # what Bayes makes of equal normal noise
    table = pd.DataFrame(sharp / sharp.sum(axis=1, keepdims=True), columns=NAMES)
    return table.assign(true=np.array(NAMES)[true], split="test")


def test_crops_are_windows_of_the_right_size_and_only_in_training():
    ramp = np.linspace(0, 1, 224, dtype="float32")
    x = np.stack(np.broadcast_arrays(ramp[:, None], ramp[None], 0), axis=-1)[None].repeat(64, 0)
    crop = beyond.RandomResizedCrop(size=32, area=(0.08, 0.5))
    assert np.array_equal(crop(x), x)
    y = np.asarray(crop(x, training=True))
    assert y.shape == (64, 32, 32, 3)
    height, width = y[:, -1, 0, 0] - y[:, 0, 0, 0], y[:, 0, -1, 1] - y[:, 0, 0, 1]
    area, ratio = height * width, width / height
    assert 0.07 < area.min() < 0.13 and 0.4 < area.max() < 0.51
    assert 0.74 < ratio.min() < 0.85 and 1.2 < ratio.max() < 1.35
    assert y[:, 0, 0, 0].std() > 0.1 and y[:, 0, 0, 1].std() > 0.1, "the windows are elsewhere"
    assert (again := crop.from_config(crop.get_config())).size == 32 and again.area == (0.08, 0.5)


def test_two_classes_and_thresholds_by_hand():
    table = pd.DataFrame(
        {"normal": [0.9, 0.4, 0.3, 0.2], "bacterial": [0.05, 0.4, 0.3, 0.1],
         "viral": [0.05, 0.2, 0.4, 0.7], "true": ["normal", "normal", "bacterial", "viral"]}
    )  # fmt: skip
    two = beyond.two_classes(pd.concat([table.assign(split=s) for s in ("validation", "test")]))
    assert list(two["true"][:4]) == ["normal", "normal", "pneumonia", "pneumonia"]
    assert np.allclose(two["pneumonia"][:4], [0.1, 0.6, 0.7, 0.8])
    assert beyond.two_classes(two) is two
    rows = beyond.threshold_table(two).loc[["50%", "chosen on validation"]]
    assert rows.to_numpy().tolist() == [[0.5, 1, 0.5, 0.75], [0.7, 1, 1, 1]]
    assert (beyond.threshold_table(two.assign(pneumonia=0.5))["threshold"] == 0.5).all()


def test_a_temperature_mends_what_is_too_sure():
    shares = np.full(3, 1 / 3)
    validation, test = (drawn(4000, shares, 3.0, seed).assign(split=split)
                        for seed, split in enumerate(("validation", "test")))  # fmt: skip
    assert (temperature := beyond.fit_temperature(validation)) == pytest.approx(3, rel=0.1)
    is_ill, ill = beyond.binary(test)
    mended = 1 - beyond.at_temperature(test, temperature)[:, 0]
    before, after = (beyond.calibration_error(is_ill, values) for values in (ill, mended))
    assert before > 3 * after and after < 0.03
    found = beyond.summary(pd.concat([validation, test]))
    assert found["ece"] == pytest.approx(before, abs=1e-5) and found["ece_scaled"] < 0.03
    assert found["two_accuracy"] == pytest.approx(np.mean((ill > 0.5) == is_ill), abs=1e-5)
    two = beyond.two_classes(test[:400].assign(patient=range(400)))
    low, high = beyond.auc_interval(two)
    assert low < found["two_auc"] < high and 0.02 < high - low < 0.1
    assert beyond.auc_interval(pd.concat([two] * 9)) == pytest.approx([low, high])  # no narrower


def test_other_shares_are_found_without_labels():
    equal, shares = np.full(3, 1 / 3), np.array([0.7, 0.1, 0.2])
    test = drawn(5000, shares)
    seen = test[NAMES].to_numpy() / shares  # what a model trained on equal shares would say
    corrected, estimated = beyond.adapt_to_shares(seen, equal)
    assert np.abs(estimated - shares).max() < 0.02
    assert np.abs(corrected - test[NAMES].to_numpy()).max() < 0.05


def test_stresses_change_what_they_say(sample_images):
    rgb = utils.to_rgb(sample_images.read([0, 700]))
    table = beyond.stress_table(utils.build_cnn_1(3, 0.0, 0), rgb, np.array([False, True]))
    assert list(table.index) == list(beyond.STRESSES) and table["changed"]["unchanged"] == 0
    for name, change in beyond.STRESSES.items():
        result = np.asarray(change(rgb))
        assert result.shape == rgb.shape and result.dtype == np.uint8
        assert (name == "unchanged") == np.array_equal(result, rgb)
    numbers = beyond.image_numbers(np.stack([np.full((224, 224), 9, np.uint8)] * 2))
    assert numbers["roughness"].eq(0).all() and numbers["brightness"].eq(9).all()


def test_a_folder_of_ones_own(tmp_path):
    with pytest.raises(utils.UserError, match="NORMAL and PNEUMONIA"):
        beyond.score_folder(None, tmp_path)
    paths = {tmp_path / "NORMAL" / "a.png": 30, tmp_path / "PNEUMONIA" / "a.png": 220}
    for path in paths:
        path.parent.mkdir()
        path.touch()
    with pytest.raises(utils.UserError, match=r"(?s)move .*NORMAL/a.png.*PNEUMONIA/a.png"):
        beyond.score_folder(None, tmp_path)
    for path, grey in paths.items():
        Image.fromarray(np.full((300, 280), grey, np.uint8)).save(path)
    mean = keras.layers.Lambda(lambda x: 1 - keras.ops.mean(x, axis=(1, 2)))
    words = beyond.score_folder(keras.Sequential([keras.Input((224, 224, 3)), mean]), tmp_path)
    assert re.findall(r"[\d.]+", words) == ["2", "100.0", "100.0", "100.0", "1.000"]


def test_pictures_of_no_chest_are_doubted_and_test_images_hardly_ever(tmp_path, sample_images):
    for make in (bool, Path.touch):
        make(path := tmp_path / "mine.jpeg")
        with pytest.raises(utils.UserError, match=r"mine\.jpeg cannot be used .* Files pane"):
            beyond.load_user_image(path)

    def warnings(pixels):
        train = sample_images.metadata.query("source_split == 'train'")
        return beyond.out_of_distribution_warnings(pixels, sample_images, train)

    flower = Image.fromarray(load_sample_image("flower.jpg"))
    for picture, wanted in (
        (flower, ["it is in colour", "no training image"]),
        (flower.convert("L"), ["no training image"]),
        (Image.new("L", (300, 200), 128), ["it is nearly blank"]),
    ):
        picture.save(tmp_path / "mine.png")
        found = warnings(beyond.load_user_image(tmp_path / "mine.png"))
        assert len(found) == len(wanted) and all(map(str.startswith, found, wanted)), found
    test = sample_images.metadata.query("source_split == 'test'").sample(4, random_state=0)
    assert sum(bool(warnings(sample_images.pixels[number])) for number in test.index) <= 1


def test_an_explanation_is_of_what_sets_a_class_apart_place_by_place():
    """What speaks for all classes alike explains nothing. The head's gradients are its weights."""
    keras.utils.set_random_seed(0)
    layers, inputs = keras.layers, keras.Input((224, 224, 3))
    frozen = keras.Model(inputs, layers.AveragePooling2D(32)(inputs))
    head = [layers.Flatten(), layers.Dropout(0.5), layers.Dense(3, "softmax")]
    model = keras.Sequential([inputs, frozen, *head])
    picture = np.random.default_rng(0).random((224, 224, 3), dtype="float32")
    maps = picture.reshape(7, 32, 7, 32, 3).mean((1, 3))
    kernel, _ = model.layers[-1].get_weights()
    shares = model.predict(picture[None], verbose=0)[0]
    for number in range(3):
        others = np.delete(np.arange(3), number)
        rival = kernel[:, others] @ shares[others] / shares[others].sum()
        apart = (kernel[:, number] - rival).reshape(7, 7, 3)
        wanted = tf.image.resize(np.maximum((maps * apart).sum(-1), 0)[..., None], (224, 224))
        heat = hires_cam(model, picture, number)
        np.testing.assert_allclose(heat, wanted[..., 0] / np.max(wanted), atol=1e-3)
    assert np.isnan(beyond.heat_outside(model, np.zeros((224, 224), np.uint8)))  # nothing speaks
