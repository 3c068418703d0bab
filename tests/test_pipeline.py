"""The splits, the batches, and the features that stand for a frozen network."""

import dataclasses
import hashlib
import types
from unittest import mock

import keras
import numpy as np
import pandas as pd
import pytest
import small

import cxr
import utils


def kaggles_metadata():
    """What a split goes by, with Kaggle's counts and two images per patient, without any file."""
    kaggles = {"train": (1341, 2530, 1345), "val": (8, 8, 0), "test": (234, 242, 148)}
    series = ("IM", "bacteria", "virus")
    rows = [(f"{split}/{label}/{n:05d}.jpeg", split, label, f"{kind}-{split}-{n // 2}")
            for split, counts in kaggles.items()
            for label, kind, count in zip(utils.CLASS_NAMES[3], series, counts, strict=True)
            for n in range(count)]  # fmt: skip
    return pd.DataFrame(sorted(rows), columns=["file", "source_split", "class3", "patient"])


def assign(seed=0, quick=False, **options):
    config = types.SimpleNamespace(mode="quick" if quick else "full", quick=quick, seed=seed)
    return utils.assign_splits(kaggles_metadata(), config, **options)


def test_the_split_is_the_same_on_any_machine():
    for fingerprint, options in (  # a change here changes every published number
        ("dc21adc5008973f1", {}), ("29c7db09a70bd299", {"seed": 1}),
        ("abfedf8b37b1b4c1", {"by": "patient"}), ("e45c04f6ea62b0b0", {"quick": True}),
    ):  # fmt: skip
        split = assign(**options)["split"]
        assert hashlib.sha256(",".join(split).encode()).hexdigest()[:16] == fingerprint, options


def test_a_fifth_of_kaggles_training_images_by_class_or_by_patient():
    for options in ({}, {"by": "patient"}, {"stratify": False}, {"quick": True}):
        metadata = assign(**options)
        assert (metadata["split"] == "test").equals(metadata["source_split"] == "test")
        train = metadata[metadata["split"].isin(["train", "validation"])]
        assert set(train["source_split"]) == {"train"}
        assert len(train) == (640 if "quick" in options else 5216)
        shares = (train["split"] == "validation").groupby(train["class3"]).mean()
        assert shares.between(0.19, 0.21).all() == ("stratify" not in options), options
        assert (train["split"] == "validation").mean() == pytest.approx(0.2, abs=0.005)
        patients = train.groupby("split")["patient"].agg(set)
        assert (patients["train"] & patients["validation"] == set()) == ("by" in options), options


def epoch(dataset):
    batches = list(dataset.as_numpy_iterator())
    return [np.concatenate(parts) for parts in zip(*batches, strict=True)]


def test_batches_are_the_cached_pixels_scaled_and_the_classes_one_hot(images):
    rows = images.metadata.iloc[::2]
    for classes in (2, 3):
        pixels, labels = epoch(utils.make_dataset(images, rows, classes, batch_size=5))
        assert pixels.dtype == labels.dtype == np.float32
        expected = images.pixels[rows.index][..., None] / np.float32(255)
        np.testing.assert_array_equal(pixels, np.repeat(expected, 3, axis=-1))
        names = np.array(utils.CLASS_NAMES[classes])[labels.argmax(axis=1)]
        assert (names == rows[f"class{classes}"]).all()
        assert (labels.sum(axis=1) == 1).all() and labels.shape == (len(rows), classes)


def test_the_order_depends_on_seed_and_epoch_alone_and_has_each_image_once(images):
    def order(seed, number):
        shuffle = utils.EpochShuffle(seed)
        dataset = utils.make_dataset(images, images.metadata, 3, 5, shuffle)
        assert int(dataset.cardinality()) == 5
        shuffle.epoch = number  # after the dataset is made, as the callback does
        return epoch(dataset)[0][:, :3, :3, 0].reshape(24, -1)

    first, second = order(3, 0), order(3, 1)
    np.testing.assert_array_equal(second, order(3, 1))
    assert not np.array_equal(first, second) and not np.array_equal(second, order(4, 1))
    np.testing.assert_array_equal(first[np.lexsort(first.T)], second[np.lexsort(second.T)])


def frozen_part(seed=0, scale=None):
    """A small frozen network with a flip inside, as notebook 05's."""
    keras.utils.set_random_seed(seed)
    layers, inputs = keras.layers, keras.Input((224, 224, 3))
    flipped = layers.RandomFlip("horizontal", seed=1)(inputs)
    scaled = layers.Rescaling(scale)(flipped) if scale else flipped
    convolved = layers.Conv2D(4, 5, strides=9, activation="relu")(scaled)
    return keras.Model(inputs, layers.MaxPooling2D()(convolved))


@pytest.fixture
def setting(config, images):
    rows = images.metadata[images.metadata["source_split"] != "val"]
    return config, images, rows.assign(split="test")


def extract(setting, frozen):
    features = utils.FrozenFeatures(*setting, frozen, "small")
    features.compute()
    return features


def test_features_are_what_the_frozen_part_inside_would_make_of_every_batch(setting):
    _, images, rows = setting
    frozen, shuffle, seen = frozen_part(), utils.EpochShuffle(0), []
    features = extract(setting, frozen)
    dataset = utils.make_dataset(features, rows, 3, 16, shuffle)
    for shuffle.epoch in range(3):
        [(values, labels)] = dataset
        order, flips = shuffle.draw(len(rows))
        pixels = small.floats(images, rows)
        pixels[flips] = pixels[flips][:, :, ::-1]
        expected = frozen.predict(pixels[order], verbose=0)
        np.testing.assert_allclose(values, expected, rtol=1e-3, atol=1e-3)
        np.testing.assert_array_equal(labels, utils.one_hot(rows, 3)[order])
        seen.append(flips)
    assert 0.2 < np.mean(seen) < 0.8 and not (seen[0] == seen[1]).all()
    assert features.read(rows.index).dtype == np.float16
    unflipped = epoch(utils.make_dataset(features, rows, 3, 7))[0]
    np.testing.assert_array_equal(unflipped, features.read(rows.index))
    with pytest.raises(KeyError, match="not in index"):
        features.read(images.metadata.index)


def test_features_are_computed_once_and_anew_where_anything_changes(setting, monkeypatch):
    config, images, rows = setting
    frozen, predict, computed = frozen_part(), keras.Model.predict_on_batch, []

    def counted(self, batch):
        computed.append(1)
        if len(computed) == die_at:
            raise KeyboardInterrupt
        return predict(self, batch)

    die_at = 2
    monkeypatch.setattr(keras.Model, "predict_on_batch", counted)
    monkeypatch.setattr(cxr.pipeline, "BATCH", 8)
    with pytest.raises(KeyboardInterrupt):
        extract(setting, frozen)
    assert not list(config.cache_dir.glob("*features*")), "taken for whole, or litter"
    path = extract(setting, frozen).path
    content = path.read_bytes()
    assert len(computed) == 4
    extract(setting, frozen)
    assert len(computed) == 4
    for damaged in (content[:-7], b""):
        path.write_bytes(damaged)
        assert extract(setting, frozen).path.read_bytes() == content
    assert extract((config, images, rows.iloc[::-1]), frozen).path == path, "another seed's split"
    others = [(setting, frozen_part(seed=1)), (setting, frozen_part(scale=2.0)),
              (setting, frozen_part(scale=3.0)), ((config, images, rows.iloc[1:]), frozen),
              ((config, dataclasses.replace(images, fingerprint="0"), rows), frozen)]  # fmt: skip
    paths = {utils.FrozenFeatures(*part, model, "small").path for part, model in others}
    assert len(paths | {path}) == 6


def test_missing_pretrained_weights_are_named_and_quick_mode_goes_on(make_config, monkeypatch):
    application = mock.Mock(side_effect=OSError, __name__="InceptionV3")
    monkeypatch.setenv("CXR_INCEPTION_WEIGHTS", "/nowhere/x.h5")
    with pytest.raises(utils.UserError, match="/nowhere/x.h5: no such file"):
        utils.pretrained_weights(make_config("sample"), application)
    monkeypatch.delenv("CXR_INCEPTION_WEIGHTS")
    with pytest.raises(utils.UserError, match=r"downloaded \(OSError\).*CXR_INCEPTION_WEIGHTS"):
        utils.pretrained_weights(make_config("sample"), application)
    quick = make_config("sample", mode="quick")
    assert utils.pretrained_weights(quick, application)[2].startswith("random")
