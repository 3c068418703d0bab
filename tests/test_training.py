"""Training: resumed as if it had never stopped, never from a wrong state, like Keras' own."""

import contextlib
import itertools
import os
import resource
import signal

import keras
import numpy as np
import pytest
import small
import tensorflow as tf
from small import NAME, Killed, assert_same, in_a_process

import utils
from cxr import reference, training


@pytest.fixture
def killed(config):
    def train(epoch, **options):
        with pytest.raises(Killed):
            small.train(config, killed_after=epoch, **options)
        return config.output_dir / options.get("name", NAME) / "training.npz"

    return train


def test_killed_after_any_epoch_it_ends_as_if_never_disturbed(whole, config, killed, capsys):
    epochs = len(whole[0])
    assert 1 < epochs < 6, "early stopping should have ended this one"
    for epoch in range(1, epochs + 1):
        name = f"02_killed-{epoch}"
        state = killed(epoch, name=name)
        assert state.exists() and not state.with_name("run.json").exists()
        capsys.readouterr()
        assert_same(whole, small.train(config, name))
        assert f"Going on after epoch {epoch}" in capsys.readouterr().out
        assert not state.exists()


def test_a_finished_run_is_loaded_or_refused_and_nothing_is_written_again(whole, config, capsys):
    small.train(config)
    before = {p: p.stat().st_mtime_ns for p in config.output_dir.rglob("*")}
    assert_same(whole, small.train(config))
    assert f"{NAME}: trained before" in capsys.readouterr().out
    with pytest.raises(utils.UserError, match=r"other settings \(optimizer\).*RETRAIN.*CXR_OUT"):
        small.train(config, rate=5e-2)
    assert before == {p: p.stat().st_mtime_ns for p in config.output_dir.rglob("*")}


def test_cells_run_twice_give_what_they_gave_or_refuse_to_learn_on(whole, config, killed):
    killed(1)
    assert_same(whole, small.train(config, times=2))
    for ticked in ({"retrain": True}, {"tick": True}):  # before and after a run was loaded
        with pytest.raises(utils.UserError, match="already, .*run the cell that builds it"):
            small.train(config, times=2, **ticked)


def test_it_is_the_training_that_keras_does_without_us(config, whole):
    for patience, ours in (1, whole), (2, small.train(config, patience=2)):
        plain = small.train(config, plain=True, patience=patience)
        assert_same(plain, ours)
        losses = plain[0]["val_loss"].tolist()
        expected = {"best": np.argmin(losses) + 1, "last": len(losses)}
        assert reference.stopping_epochs([*losses, *[0.0] * 5], patience) == expected


def test_weights_are_of_the_best_epoch_and_following_the_test_changes_nothing(config, killed):
    history, predictions, weights = small.train(config, "02_long", patience=6, epochs=4)
    assert (best := int(history["val_loss"].idxmin()) + 1) < len(history)
    killed(1, patience=6, epochs=best, follow=True)
    followed, *rest = small.train(config, patience=6, epochs=best, follow=True)
    assert_same((history.head(best), predictions, weights), (followed, *rest))
    test = predictions[predictions["split"] == "test"]
    assert followed["test_accuracy"].tolist()[-1] == utils.evaluate(test)["accuracy"]


def test_an_unfinished_training_with_other_settings_starts_anew(whole, config, killed, capsys):
    killed(1)
    killed(1, patience=3, warm_start=True)
    said = "training.npz cannot be used (of a training with other settings: {}): training starts"
    assert said.format("early_stopping, warm_start") in capsys.readouterr().out
    killed(1, rate=5e-2)
    assert_same(whole, small.train(config))
    assert said.format("optimizer") in capsys.readouterr().out
    assert not training._differences({"a": [{"b": None, "data_format": "x"}]}, {"a": [{}]})


def test_what_learns_is_a_setting(config, images):
    stop, shuffle = keras.callbacks.EarlyStopping(), utils.EpochShuffle(0)
    checkpoint = utils.TrainingCheckpoint(config, NAME, images, stop, shuffle)
    inputs, inner = keras.Input((224, 224, 3)), small.build_model(0.1)
    model = keras.Sequential([inputs, inner])
    model.compile("adam", lambda true, predicted: predicted)
    with pytest.raises(utils.UserError, match="restore_best_weights here"):
        checkpoint.restore(model)
    before, inner.trainable = checkpoint._describe(model), False
    assert training._differences(before, checkpoint._describe(model)) == "layers"
    before["layers"][-1][2] = None  # as it was before version 4
    assert not training._differences(before, checkpoint._describe(model))


def test_retrain_keeps_the_old_run_until_the_new_one_is_complete(whole, config, killed, capsys):
    """A killed retraining goes on, with RETRAIN still ticked; a killed first training does not."""
    small.train(config, epochs=1)
    folder = config.output_dir / NAME
    old = small.contents(folder)
    state = killed(2, retrain=True)
    assert {**old, state.relative_to(folder): state.read_bytes()} == small.contents(folder)
    capsys.readouterr()
    assert_same(whole, small.train(config, retrain=True))
    assert "Going on after epoch 2" in capsys.readouterr().out
    assert {path.name for path in folder.iterdir()} == small.FILES
    killed(1, name="02_first")
    assert_same(whole, small.train(config, "02_first", retrain=True))
    assert "Going on" not in capsys.readouterr().out


def test_a_damaged_state_is_said_and_not_used(config, killed, capsys):
    content = killed(1).read_bytes()  # below: 147 becomes 143, the state, zip's own records
    places = map(content.index, (b"7, 2), ", b"epoch", b"PK\x01\x02"))
    flipped = [content[:at] + bytes([content[at] ^ 4]) + content[at + 1 :] for at in places]
    capsys.readouterr()
    for number, damaged in enumerate((content, content[:-50], b"", *flipped)):
        state = config.output_dir / f"02_{number}" / "training.npz"
        state.parent.mkdir()
        state.write_bytes(damaged)
        small.train(config, f"02_{number}", epochs=1)
        assert ("Going on after epoch 1" in (said := capsys.readouterr().out)) == (number == 0)
        assert ("training.npz cannot be used" in said) == (number > 0)


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
    assert_same(whole, small.train(config))


FSYNC = (False, 5), (True, 4), (True, 7)  # the second state; retrained: written, named
EVERY = [pytest.param(*case, marks=[pytest.mark.slow] * (case not in FSYNC))
         for case in itertools.product((False, True), range(1, 12))]  # fmt: skip


def die(data, out, number, retrain):
    """Trains in a process of its own, which SIGKILL ends before a file gets its name."""
    original, calls = os.fsync, itertools.count(1)

    def watched(file):
        if next(calls) == number:
            os.kill(os.getpid(), signal.SIGKILL)
        original(file)

    os.fsync = watched
    small.train(utils.setup(data=data, out=out, mode="full"), retrain=retrain)


@pytest.mark.parametrize(("retrain", "number"), EVERY)
def test_sigkill_before_a_file_has_its_name(whole, config, retrain, number, capsys):
    out, folder = config.cache_dir.parent, config.output_dir / NAME
    if retrain:
        small.train(config, epochs=1)
    ended = in_a_process(die, config.data, str(out), number, retrain)
    if (retrain, number) in FSYNC:
        assert ended == -signal.SIGKILL and (folder / "training.npz").exists()
        assert (folder / "run.json").exists() == (number == 4)  # the old run is there till then
        assert any(folder.glob(".*.part*"))
    assert_same(whole, small.train(config, retrain=retrain))
    if (retrain, number) in FSYNC:
        epochs = len(whole[0]) if retrain else 1
        assert f"Going on after epoch {epochs}" in capsys.readouterr().out
        assert not any(folder.glob(".*.part*")), "left by a dead process"


def train_on_two_devices(data, out):
    """Fails unless two devices give what one gives, also where the training was interrupted."""
    devices = [tf.config.LogicalDeviceConfiguration()] * 2
    tf.config.set_logical_device_configuration(tf.config.list_physical_devices("CPU")[0], devices)
    config, layers, results = utils.setup(data=data, out=out, mode="full"), keras.layers, []
    images = utils.load_images(config)
    for strategy in (utils.strategy(), tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])):
        for epochs in (1, 2):  # each in a session of its own
            with strategy.scope():
                keras.utils.set_random_seed(0)
                inputs, pooling = keras.Input((224, 224, 3)), layers.GlobalAveragePooling2D()
                model = keras.Sequential([inputs, pooling, layers.Dense(2, "softmax")])
                model.compile("adam", "categorical_crossentropy", metrics=["accuracy"])
            shuffle = utils.EpochShuffle(0)
            data = utils.make_dataset(images, images.metadata, 2, 8, shuffle)
            stop = keras.callbacks.EarlyStopping(patience=3, restore_best_weights=True)
            name = f"on-{strategy.num_replicas_in_sync}"
            checkpoint = utils.TrainingCheckpoint(config, name, images, stop, shuffle)
            model.fit(data, validation_data=data, initial_epoch=checkpoint.restore(model),
                      epochs=epochs, callbacks=[stop, checkpoint], verbose=0)  # fmt: skip
        results.append((checkpoint.history.drop(columns="seconds"), *model.get_weights()))
    assert strategy.num_replicas_in_sync == 2 and results[1][0]["epoch"].tolist() == [1, 2]
    for one, two in zip(*results, strict=True):
        np.testing.assert_allclose(two, one, rtol=1e-3, atol=1e-4)


def test_two_devices_give_what_one_gives(config, tmp_path):
    assert in_a_process(train_on_two_devices, config.data, str(tmp_path)) == 0
    assert utils.strategy().num_replicas_in_sync == 1


def test_cnn_1_flips_sideways_and_the_learning_rate_decays_as_keras_old_decay_did():
    assert utils.build_cnn_1(2, 0.2, 0).layers[0].get_config()["mode"] == "horizontal"
    optimizer = utils.build_optimizer()
    for step in (0, 1, 1000, 100_000):
        optimizer.iterations.assign(step)
        assert float(optimizer.learning_rate) == pytest.approx(1e-4 / (1 + 1e-5 * step), rel=1e-5)
