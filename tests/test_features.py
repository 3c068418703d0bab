"""Frozen features: the same training as with the frozen part inside, and hard to damage."""

import dataclasses

import keras
import numpy as np
import pytest
import tensorflow as tf

import utils

layers = keras.layers


def frozen_part(seed=0, scale=None):
    """A small frozen network with a flip inside, as stage 5's."""
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((224, 224, 3))
    flipped = layers.RandomFlip("horizontal", seed=1)(inputs)
    scaled = layers.Rescaling(scale)(flipped) if scale else flipped
    convolved = layers.Conv2D(4, 5, strides=9, activation="relu")(scaled)
    model = keras.Model(inputs, layers.MaxPooling2D()(convolved))
    model.trainable = False
    return model


def new_head(shape):
    keras.utils.set_random_seed(1)
    return keras.Sequential(
        [keras.Input(shape), layers.Flatten(), layers.Dense(8, activation="relu"),
         layers.Dense(3, activation="softmax")]
    )  # fmt: skip


@pytest.fixture
def setting(tiny_set, make_run):
    run = make_run(tiny_set())
    images = utils.open_images(run)
    return run, images, images.index[images.index["split"] != "val"].assign(part="test")


def extract(setting, frozen=None, **changes):
    run, images, rows = setting
    run = dataclasses.replace(run, **changes)
    run.cache.mkdir(exist_ok=True)
    return utils.frozen_features(run, images, rows, frozen or frozen_part(), "x")


def test_both_versions_of_every_image(setting):
    _, images, rows = setting
    frozen = frozen_part()
    features = extract(setting, frozen)
    pixels = np.repeat(images.pixels[rows.index][..., None] / np.float32(255), 3, axis=-1)
    everything = np.arange(len(rows))
    for version, seen in ((0, pixels), (1, pixels[:, :, ::-1])):
        expected = frozen.predict(seen, verbose=0)
        found = features.read(everything, np.full(len(rows), version))
        assert found.dtype == np.float16
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3)


class Losses(keras.callbacks.Callback):
    def on_train_begin(self, logs=None):
        self.seen = []

    def on_train_batch_end(self, batch, logs=None):
        self.seen.append(logs["loss"])


def test_training_on_features_is_training_with_the_frozen_part_inside(setting):
    """The same flips, the same order: the same losses, within float16's rounding."""
    run, images, rows = setting
    frozen = frozen_part()
    features = extract(setting, frozen)

    def fit(model, data, epochs=3):
        model.compile(keras.optimizers.Adam(1e-2), "categorical_crossentropy", metrics=["accuracy"])
        losses = Losses()
        model.fit(data, epochs=epochs, callbacks=[losses], shuffle=False, verbose=0)
        return losses.seen

    head = new_head(features.shape)
    on_features = fit(head, utils.make_feature_dataset(features, rows, 3, 4, shuffle_seed=0))

    def flipped_pixels():  # the flips and the order that the features' epochs draw
        order = utils.EpochOrder(len(rows), 0)
        for _ in range(3):
            flips, chosen = order.flips(), order.next()
            for start in range(0, len(chosen), 4):
                batch = chosen[start : start + 4]
                pixels = images.pixels[rows.index.to_numpy()[batch]] / np.float32(255)
                pixels[flips[batch] == 1] = pixels[flips[batch] == 1][:, :, ::-1]
                yield np.repeat(pixels[..., None], 3, axis=-1), utils.one_hot(rows, 3)[batch]

    second = new_head(features.shape)
    inside = keras.Sequential([keras.Input((224, 224, 3)), still(frozen), *second.layers])
    seen = []
    inside.compile(keras.optimizers.Adam(1e-2), "categorical_crossentropy", metrics=["accuracy"])
    for pixels, labels in flipped_pixels():
        inside.reset_metrics()
        seen.append(float(inside.train_on_batch(pixels, labels)[0]))
    per_epoch = len(seen) // 3
    running = np.concatenate(  # fit reports the mean over the epoch so far
        [np.cumsum(part) / np.arange(1, per_epoch + 1) for part in np.reshape(seen, (3, -1))]
    )
    assert len(set(np.round(on_features, 4))) > 6
    np.testing.assert_allclose(on_features, running, rtol=5e-3)


def still(frozen):
    """The frozen part without its random flip: the test gives it images that are flipped."""
    inputs = keras.Input((224, 224, 3))
    outputs = inputs
    for layer in frozen.layers[2:]:
        outputs = layer(outputs)
    model = keras.Model(inputs, outputs)
    model.trainable = False
    return model


def test_the_assembled_model_predicts_what_its_head_does(setting):
    _, images, rows = setting
    frozen = frozen_part()
    features = extract(setting, frozen)
    head = new_head(features.shape)
    whole = keras.Sequential([keras.Input((224, 224, 3)), frozen, *head.layers])
    from_pixels = utils.predict(whole, images, rows, 3)[list(utils.CLASSES[3])].to_numpy()
    data = utils.make_feature_dataset(features, rows, 3, 7)
    from_features = head.predict(data, verbose=0)
    np.testing.assert_allclose(from_pixels, from_features, atol=1e-2)
    clear = np.sort(from_features, axis=1)[:, -1] - np.sort(from_features, axis=1)[:, -2] > 1e-2
    same = from_pixels.argmax(1) == from_features.argmax(1)
    assert clear.any() and same[clear].all()


def test_every_epoch_draws_new_flips_about_half_of_the_time():
    order = utils.EpochOrder(1000, 0)
    first, again = order.flips(), order.flips()
    order.next()
    second = order.flips()
    assert (first == again).all() and (first != second).mean() > 0.4
    assert 0.45 < first.mean() < 0.55
    assert not utils.EpochOrder(1000, None).flips().any()


def count_batches(monkeypatch, die_at=None):
    """Counts what the frozen part computes; ends the process at a batch, if asked."""
    calls = []
    predict = keras.Model.predict_on_batch

    def counted(self, batch):
        calls.append(len(batch))
        if len(calls) == die_at:
            raise KeyboardInterrupt
        return predict(self, batch)

    monkeypatch.setattr(keras.Model, "predict_on_batch", counted)
    return calls


def test_computed_once_and_found_again(setting, monkeypatch):
    calls = count_batches(monkeypatch)
    extract(setting)
    assert sum(calls) == 2 * 16
    extract(setting)
    assert sum(calls) == 2 * 16


@pytest.mark.parametrize("change", ["weights", "scaling", "images", "rows"])
def test_anything_that_changes_the_features_has_features_of_its_own(setting, change):
    run, images, rows = setting
    before = extract(setting).key
    frozen = frozen_part(seed=int(change == "weights"), scale=2.0 if change == "scaling" else None)
    if change == "images":
        images = dataclasses.replace(images, fingerprint="1" * 64)
    if change == "rows":
        rows = rows.iloc[::-1]
    after = utils.frozen_features(run, images, rows, frozen, "x")
    assert after.key != before


@pytest.mark.parametrize("recorded_every", [1, 10])
def test_interrupted_in_the_middle_it_goes_on(setting, monkeypatch, tmp_path, recorded_every):
    monkeypatch.setattr(utils, "FEATURE_BLOCK", 3)
    monkeypatch.setattr(utils, "FEATURE_RECORD", recorded_every)
    whole = extract(setting, cache=tmp_path / "whole")
    with monkeypatch.context() as patch:
        count_batches(patch, die_at=4)
        with pytest.raises(KeyboardInterrupt):
            extract(setting)
    calls = count_batches(monkeypatch)
    resumed = extract(setting)
    assert sum(calls) == 2 * (16 - (9 if recorded_every == 1 else 0))
    assert resumed.path.read_bytes() == whole.path.read_bytes()


@pytest.mark.parametrize("damage", ["bit", "truncated", "record", "gone"])
def test_damage_is_found_and_computed_anew(setting, monkeypatch, damage, capsys):
    monkeypatch.setattr(utils, "FEATURE_BLOCK", 3)
    features = extract(setting)
    content = features.path.read_bytes()
    record = features.path.with_suffix(".json")
    if damage == "bit":
        changed = bytearray(content)
        changed[len(changed) // 2] ^= 1
        features.path.write_bytes(changed)
    elif damage == "truncated":
        features.path.write_bytes(content[:-7])
    elif damage == "record":
        record.write_text(record.read_text()[:-9])
    else:
        features.path.unlink()
    extract(setting)
    assert features.path.read_bytes() == content
    assert ("damaged" in capsys.readouterr().out) == (damage != "gone")


def test_the_disk_is_looked_at_first(setting, monkeypatch):
    usage = utils.shutil.disk_usage(setting[0].cache)._replace(free=1000)
    monkeypatch.setattr(utils.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(utils.CxrError, match="The features of x take .* GB"):
        extract(setting)


def test_inceptions_weights_are_named_or_the_error_says_what_to_set(make_run, tmp_path):
    with pytest.raises(utils.CxrError, match="the weights file no.h5 .*CXR_INCEPTION_WEIGHTS"):
        utils.build_inception(make_run("phantom", inception=str(tmp_path / "no.h5")))


def test_a_failed_download_of_imagenets_weights_says_what_to_set(make_run, monkeypatch):
    def fail(*args, **kwargs):
        raise OSError("URL fetch failure")

    monkeypatch.setattr(keras.applications, "InceptionV3", fail)
    with pytest.raises(utils.CxrError, match="ImageNet's weights .*URL fetch.*INCEPTION_WEIGHTS"):
        utils.build_inception(make_run("phantom", inception="imagenet"))


def test_phantoms_never_download_weights(make_run):
    assert make_run("phantom").inception == "random"
    assert make_run("phantom", inception="imagenet").inception == "imagenet"


def test_inception_is_frozen_and_in_inference_mode(make_run):
    run = make_run("phantom")
    model, said = utils.build_inception(run)
    rescaled, _ = utils.build_inception(run, rescale=True)
    assert said == "random weights, never trained"
    assert utils.parameter_counts(model) == (21_802_784, 0, 21_802_784)
    pixels = tf.random.stateless_uniform((2, 224, 224, 3), (0, 1))
    np.testing.assert_array_equal(model(pixels, training=True), model(pixels, training=False))
    base = model.layers[-1]
    np.testing.assert_allclose(rescaled(pixels), base(pixels * 2 - 1), atol=1e-4)
