"""Splits, batches, the features that stand for a frozen network; measures against known values."""

import dataclasses
import hashlib
import json
import types
from unittest import mock

import keras
import matplotlib.pyplot as plt
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
    with pytest.raises(utils.UserError, match="'patients': say image or patient"):
        assign(by="patients")


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


def predictions(true, predicted, classes):
    """A table as `predict` gives, with as sure a prediction for every image."""
    names = list(utils.CLASS_NAMES[classes])
    scores = np.where([[name == one for name in names] for one in predicted], 0.8, 0.1)
    table = pd.DataFrame(scores, columns=names).assign(true=true, split="test")
    return table.assign(patient=table.index, file=table.index)


def test_the_reports_own_matrix():
    """388 of 390 pneumonia and 123 of 234 normals give the report's 82%."""
    true = ["pneumonia"] * 390 + ["normal"] * 234
    predicted = ["pneumonia"] * 388 + ["normal"] * 2 + ["normal"] * 123 + ["pneumonia"] * 111
    found = utils.evaluate(predictions(true, predicted, 2))
    assert found["accuracy"] == pytest.approx(511 / 624)
    assert found["sensitivity"] == found["recall"]["pneumonia"] == pytest.approx(388 / 390)
    assert found["specificity"] == found["recall"]["normal"] == pytest.approx(123 / 234)
    assert found["precision"]["normal"] == pytest.approx(123 / 125)
    assert found["auc"] == pytest.approx((388 / 390 + 123 / 234) / 2)  # of two scores alone
    half = 1.96 * np.sqrt(0.819 * 0.181 / 624)  # binomial, as patients are independent here
    assert found["accuracy_low"] < found["accuracy"] < found["accuracy_high"]
    assert found["accuracy_high"] - found["accuracy_low"] == pytest.approx(2 * half, rel=0.15)


def test_the_interval_resamples_patients_not_images():
    values = [True] * 100 + [False] * 100
    width = np.diff(utils.cluster_bootstrap_interval(values, range(200)))
    assert np.diff(utils.cluster_bootstrap_interval(values, np.arange(200) // 20)) > 3 * width


def test_three_classes():
    true = ["normal", "normal", "bacterial", "viral", "viral", "viral"]
    predicted = ["normal", "viral", "bacterial", "viral", "viral", "normal"]
    found = utils.evaluate(predictions(true, predicted, 3))
    assert found["accuracy"] == pytest.approx(4 / 6)
    assert found["recall"] == {"normal": 0.5, "bacterial": 1.0, "viral": pytest.approx(2 / 3)}
    assert found["precision"]["viral"] == pytest.approx(2 / 3)
    assert found["auc"] == pytest.approx((5 / 8 + 1 + 6 / 9) / 3)  # pairs; ties count one half
    assert "sensitivity" not in found


def test_a_class_without_images_is_not_measured_and_the_run_is_saved(config, images):
    for classes, missing in (2, "pneumonia"), (3, "viral"):
        true = [name for name in utils.CLASS_NAMES[classes] if name != missing] * 3
        table = predictions(true, ["normal", *true[1:]], classes)
        found = utils.evaluate(table)
        assert found["recall"].pop(missing) is None and found["auc"] is None
        assert None not in found["recall"].values()
        row = utils.metrics_table({"a": table}).loc["a"]
        assert row["ROC AUC"] == row[f"recall {missing}"] == "-" and row["accuracy"].endswith("%")
        plt.close(utils.plot_confusion(table, "title"))
        checkpoint = utils.TrainingCheckpoint(config, missing, images, None, None)
        vars(checkpoint).update(settings={}, rows=[], is_new=True, ended=True)
        utils.save_run(checkpoint, small.build_model(0.1), table)
        content = (config.output_dir / missing / "run.json").read_text()
        metrics = json.loads(content, parse_constant=lambda name: 1 / 0)["metrics"]["test"]
        assert metrics["auc"] is None and metrics["accuracy"] == found["accuracy"]


def test_baselines_do_not_know_the_true_classes_and_neighbours_vote(sample_images):
    metadata = sample_images.metadata.sample(160, random_state=0).assign(split="test")
    train, test = metadata[::2], metadata[1::2]
    found = utils.baselines(sample_images, train, test, 3)
    again = utils.baselines(sample_images, train, test.assign(class3="normal"), 3)
    names = list(utils.CLASS_NAMES[3])
    for name in found:
        pd.testing.assert_frame_equal(found[name][names], again[name][names])
    assert (found["majority class"][train["class3"].mode()[0]] == 1).all()
    votes = found["11 nearest neighbours"][names] * 11
    np.testing.assert_allclose(votes, votes.round(), atol=1e-4)
    accuracy = {name: utils.evaluate(table)["accuracy"] for name, table in found.items()}
    assert accuracy["11 nearest neighbours"] > accuracy["majority class"]


def test_predictions_name_file_split_patient_and_class(images):
    rows, model = images.metadata[::-2].assign(split="test"), small.build_model(0.1)
    table = utils.predict(model, images, rows, 2, batch_size=5)
    assert [*table] == ["file", "split", "patient", "true", "normal", "pneumonia"]
    copied = ["file", "split", "patient"]
    assert table[copied].equals(rows[copied]) and table["true"].equals(rows["class2"])
    expected = model.predict(small.floats(images, rows), verbose=0)
    np.testing.assert_allclose(table[["normal", "pneumonia"]], expected, atol=1e-5)


def test_figures_say_what_they_show():
    history = pd.DataFrame({"epoch": [1, 2, 3], "loss": [3, 2, 1.0], "accuracy": [0.5, 0.6, 0.7],
                            "val_loss": [2, 1, 1.5], "val_accuracy": [0.5, 0.6, 0.6]})  # fmt: skip
    figure = utils.plot_history(history, 8, "Figure 4: x")
    words = {text.get_text() for legend in figure.legends for text in legend.get_texts()}
    assert words == {"training", "validation", "weights kept: epoch 2", "this run stopped: epoch 3",
                     "report stopped: epoch 8"}  # fmt: skip
    table = predictions(["normal"] * 4 + ["pneumonia"], ["normal"] + ["pneumonia"] * 4, 2)
    figure = utils.plot_confusion(table, "Figure 5: x", report=((9, 1), (0, 10)))
    texts = [text.get_text().split() for axis in figure.axes for text in axis.texts]
    assert texts[:4] == [["1", "25.0%"], ["3", "75.0%"], ["0", "0.0%"], ["1", "100.0%"]]
    assert [count for count, _ in texts[4:]] == ["9", "1", "0", "10"]
    plt.close("all")
