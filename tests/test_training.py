"""Training: resumed as if never stopped, never from the wrong state, the same twice."""

import os
import signal
import subprocess
import sys

import keras
import numpy as np
import pandas as pd
import pytest

import utils

SCRIPT = """
import sys, keras, utils
kill_in = int(sys.argv[1])
run = utils.setup()
images = utils.open_images(run)
index = images.index.assign(part=utils.assign_parts(images.index, run.seed))
parts = [index[index["part"] == part] for part in ("train", "validation", "test")]
data = utils.make_dataset(images, parts[0], 2, 3, shuffle_seed=run.seed)
validation = utils.make_dataset(images, parts[1], 2, 3)
model = utils.build_cnn_1(2, 0.5, run.seed)
schedule = keras.optimizers.schedules.InverseTimeDecay(1e-3, 1, 1e-2)
model.compile(keras.optimizers.Adam(schedule), "categorical_crossentropy", metrics=["accuracy"])
early = keras.callbacks.EarlyStopping(patience=int(sys.argv[2]), restore_best_weights=True)
if kill_in >= 0:
    batch = utils._Resume.on_train_batch_end
    def wait(self, number, logs=None):
        batch(self, number, logs)
        if len(self.rows) == kill_in:
            print("KILL ME", flush=True)
            import time; time.sleep(60)
    utils._Resume.on_train_batch_end = wait
history, settings = utils.train(run, "x", images, model, data, validation, 4, early)
predictions = utils.predict(model, images, parts[2], 2)
utils.save_stage(run, "x", images, model, history, predictions, settings=settings, metrics={})
"""


@pytest.fixture
def train_script(tiny_set, tmp_path):
    """Trains CNN_1 on a tiny set in a process of its own, killed in an epoch if asked."""
    root = tiny_set()

    def start(out, kill_in=-1, patience=9, wait=True, **settings):
        environment = dict(
            os.environ, CXR_DATA=str(root), CXR_OUT=str(out), CXR_PROFILE="full", **settings
        )
        process = subprocess.Popen(
            [sys.executable, "-c", SCRIPT, str(kill_in), str(patience)],
            cwd=utils.PROJECT, env=environment, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        if kill_in < 0:
            printed, errors = process.communicate(timeout=300)
            assert process.returncode == 0, errors
            return printed
        while "KILL ME" not in process.stdout.readline():
            assert process.poll() is None, process.stderr.read()
        os.kill(process.pid, signal.SIGKILL)
        return process.communicate()[0]

    return start


def results(out):
    stage = utils.Stage(out / "seed-0" / "x")
    return stage.history.drop(columns="seconds"), stage.predictions, stage


def assert_same(left, right):
    pd.testing.assert_frame_equal(left[0], right[0], check_exact=True)
    pd.testing.assert_frame_equal(left[1], right[1], check_exact=True)


def test_killed_in_the_second_of_four_epochs_ends_as_if_it_never_stopped(train_script, tmp_path):
    train_script(tmp_path / "whole")
    train_script(tmp_path / "killed", kill_in=1)
    state = tmp_path / "killed" / "seed-0" / "x" / "training.npz"
    assert state.exists() and not state.with_name("run.json").exists()
    printed = train_script(tmp_path / "killed")
    assert "Going on after epoch 1" in printed
    whole, killed = results(tmp_path / "whole"), results(tmp_path / "killed")
    assert len(whole[0]) == 4
    assert_same(whole, killed)
    assert not state.exists()

    train_script(tmp_path / "again")  # and twice in a row is the same
    assert_same(whole, results(tmp_path / "again"))

    before = {p: p.stat().st_mtime_ns for p in state.parent.iterdir()}
    assert "is trained already" in train_script(tmp_path / "whole")
    assert before == {p: p.stat().st_mtime_ns for p in state.parent.iterdir()}


class Killed(BaseException):
    """Stands for the end of the process."""


@pytest.fixture
def small(tiny_set, make_run):
    """Trains a very small network; `at` says after which epochs the process ends."""
    run = make_run(tiny_set(), profile="full")
    images = utils.open_images(run)
    index = images.index.assign(part=utils.assign_parts(images.index, run.seed))

    def train(at=None, patience=1, rate=5e-2, stage="y", epochs=6, monkeypatch=None, **options):
        keras.utils.set_random_seed(0)
        rows = [index[index["part"] == part] for part in ("train", "validation")]
        data = utils.make_dataset(images, rows[0], 2, 3, shuffle_seed=0)
        validation = utils.make_dataset(images, rows[1], 2, 3)
        layers = keras.layers
        model = keras.Sequential(
            [keras.Input((224, 224, 3)), layers.RandomFlip("horizontal", seed=0),
             layers.AveragePooling2D(32), layers.Flatten(), layers.Dropout(0.5, seed=0),
             layers.Dense(2, activation="softmax")]
        )  # fmt: skip
        model.compile(keras.optimizers.Adam(rate), "categorical_crossentropy", metrics=["accuracy"])
        early = keras.callbacks.EarlyStopping(patience=patience, restore_best_weights=True)
        with pytest.MonkeyPatch.context() as patch:
            if at is not None:
                save = utils._Resume.save

                def save_and_die(self):
                    save(self)
                    if len(self.rows) == at:
                        raise Killed

                patch.setattr(utils._Resume, "save", save_and_die)
            history, settings = utils.train(
                run, stage, images, model, data, validation, epochs, early, **options
            )
        predictions = utils.predict(model, images, index[index["part"] == "test"], 2)
        utils.save_stage(run, stage, images, model, history, predictions, settings=settings)
        return history.drop(columns="seconds"), predictions

    train.run, train.images = run, images
    return train


def test_killed_after_any_epoch_early_stopping_included(small):
    whole = small(stage="whole")
    assert 1 < len(whole[0]) < 6, "early stopping should have ended this one"
    for at in range(1, len(whole[0]) + 1):
        with pytest.raises(Killed):
            small(at=at, stage=f"killed-{at}")
        assert_same(whole, small(stage=f"killed-{at}"))


def test_following_the_test_images_changes_nothing_and_survives_a_kill(small):
    images = small.images
    index = images.index.assign(part=utils.assign_parts(images.index, 0))
    test = utils.make_dataset(images, index[index["part"] == "test"], 2, 3)
    whole, followed = small(stage="whole"), small(stage="followed", follow=test)
    accuracies = followed[0].pop("test_accuracy")
    assert_same(whole, followed)
    assert accuracies.between(0, 1).all() and accuracies.notna().all()
    best = int(whole[0]["val_loss"].idxmin())
    measures = utils.evaluate(followed[1], 2)
    assert accuracies[best] == pytest.approx(measures["accuracy"])
    with pytest.raises(Killed):
        small(at=2, stage="killed", follow=test)
    assert small(stage="killed", follow=test)[0]["test_accuracy"].equals(accuracies)


@pytest.mark.parametrize("patience", [1, 2, 3])
def test_the_epoch_of_a_stop_is_keras_own(small, patience):
    history, _ = small(patience=patience, epochs=12, stage=f"stop-{patience}")
    longer, _ = small(patience=12, epochs=12, stage=f"long-{patience}")
    stop, best = utils.stopping_epoch(longer["val_loss"], patience)
    assert stop == len(history) and best == history["val_loss"].idxmin() + 1


def test_the_weights_are_those_of_the_best_epoch(small):
    history, predictions = small(patience=6)
    assert history["val_loss"].idxmin() < len(history) - 1
    upto = small(stage="z", patience=6, epochs=int(history["val_loss"].idxmin()) + 1)
    pd.testing.assert_frame_equal(predictions, upto[1])


def test_changed_settings_never_go_on_from_the_wrong_state(small, capsys):
    for change in ({"patience": 3}, {"rate": 1e-2}, {"warm_start": True}):
        with pytest.raises(Killed):
            small(at=2)
        fresh = small(stage="fresh-" + "-".join(change), **change)
        capsys.readouterr()
        assert_same(fresh, small(**change))
        said = capsys.readouterr().out
        assert "had other settings" in said and "starts anew" in said
        utils.shutil.rmtree(small.run.out / "y")


def test_a_finished_stage_with_other_settings_is_not_replaced_unless_asked(small):
    first = small()
    with pytest.raises(utils.CxrError, match="other settings .*optimizer.*RETRAIN"):
        small(rate=1e-2)
    assert_same(first, small())
    second = small(rate=1e-2, retrain=True)
    assert not first[0].equals(second[0])


def test_published_weights_never_replace_a_training_of_ones_own(small):
    with pytest.raises(Killed):
        small(at=1)
    with pytest.raises(utils.CxrError, match="of your own. Untick PUBLISHED"):
        small(published=True)
    first = small()
    with pytest.raises(utils.CxrError, match="of your own. Untick PUBLISHED"):
        small(published=True)
    assert_same(first, small())


@pytest.mark.parametrize(
    "damage",
    [
        lambda p: p.write_bytes(p.read_bytes()[:-50]),
        lambda p: p.write_bytes(b""),
        lambda p: p.write_bytes(p.read_bytes().replace(b"epoch", b"epoxh")),
    ],
)
def test_a_damaged_training_state_is_not_used(small, capsys, damage):
    whole = small(stage="whole")
    with pytest.raises(Killed):
        small(at=1)
    damage(small.run.out / "y" / "training.npz")
    assert_same(whole, small())
    assert "is damaged" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["model.weights.h5", "history.csv", "predictions.csv", "run.json"])
def test_a_damaged_stage_is_refused_by_name(small, name):
    small()
    path = small.run.out / "y" / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)
    with pytest.raises(utils.CxrError, match=name.replace(".", r"\.") + ".* damaged"):
        stage = utils.load_stage(small.run, "y", small.images)
        stage.history, stage.predictions, stage.load_weights(keras.Sequential())


def test_weights_of_another_model_are_refused(small):
    small()
    with pytest.raises(utils.CxrError, match="does not fit this model"):
        utils.load_stage(small.run, "y", small.images).load_weights(utils.build_cnn_1(2, 0.5, 0))


def test_a_missing_stage_says_which_notebook_to_run(small):
    with pytest.raises(utils.CxrError, match="Run notebook 02_cnn1_2class first.*PUBLISHED"):
        utils.load_stage(small.run, "02_cnn1_2class", small.images)


@pytest.mark.parametrize("other", ["seed", "profile", "data"])
def test_a_stage_of_another_run_is_refused(small, other):
    import dataclasses

    small(stage="02_small")
    run, images = small.run, small.images
    if other == "data":
        images = dataclasses.replace(images, fingerprint="0" * 64)
    else:
        changed = {"seed": 5} if other == "seed" else {"profile": "smoke"}
        run = dataclasses.replace(run, **changed)
    with pytest.raises(utils.CxrError, match=f"with {other} .*notebook 02_small again"):
        utils.load_stage(run, "02_small", images)


def test_weights_are_saved_without_the_optimizer(small):
    import h5py

    small()
    with h5py.File(small.run.out / "y" / "model.weights.h5") as file:
        assert "optimizer" not in file


@pytest.mark.parametrize("augmentation", ["flip", "zoom", "contrast", "none"])
def test_cnn_1_has_the_reports_parameters_and_stays_in_range(augmentation):
    model = utils.build_cnn_1(2, 0.5, 0, augmentation)
    assert model.count_params() == 266_306
    if augmentation == "none":
        assert len(model.layers) == 9
        return
    pixels = np.random.default_rng(0).random((4, 224, 224, 3), dtype="float32")
    changed = np.asarray(model.layers[0](pixels, training=True))
    assert changed.shape == pixels.shape and changed.min() >= 0 and changed.max() <= 1
    assert not np.array_equal(changed, pixels)
    np.testing.assert_array_equal(np.asarray(model.layers[0](pixels, training=False)), pixels)


def test_the_learning_rate_decays_as_keras_old_decay_did():
    schedule = keras.optimizers.schedules.InverseTimeDecay(1e-4, decay_steps=1, decay_rate=1e-5)
    for step in (0, 1, 1000, 100_000):
        assert float(schedule(step)) == pytest.approx(1e-4 / (1 + 1e-5 * step), rel=1e-5)


TWO_DEVICES = """
import numpy as np, tensorflow as tf, sys
tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2)
import keras, utils
run = utils.setup()
images = utils.open_images(run)
rows = images.index[images.index["split"] != "val"]
def train(strategy):
    with strategy.scope():
        model = utils.build_cnn_1(2, 0.0, 0, "none")
        model.compile(keras.optimizers.Adam(1e-4), "categorical_crossentropy", metrics=["accuracy"])
    data = utils.make_dataset(images, rows, 2, 8, shuffle_seed=0)
    early = keras.callbacks.EarlyStopping(patience=3, restore_best_weights=True)
    stage = f"on-{strategy.num_replicas_in_sync}"
    same = utils.make_dataset(images, rows, 2, 8)
    history, _ = utils.train(run, stage, images, model, data, same, 3, early)
    return history.drop(columns="seconds"), model.predict(same, verbose=0)
one, two = train(utils.strategy()), train(utils.strategy(["CPU:0", "CPU:1"]))
np.testing.assert_allclose(two[0], one[0], rtol=1e-3, atol=1e-4)
np.testing.assert_allclose(two[1], one[1], atol=1e-3)
print("SAME", two[0]["loss"].tolist(), one[0]["loss"].tolist())
"""


def test_two_devices_give_what_one_gives(tiny_set, tmp_path):
    environment = dict(os.environ, CXR_DATA=str(tiny_set()), CXR_OUT=str(tmp_path / "out"))
    environment["CXR_PROFILE"] = "full"
    done = subprocess.run([sys.executable, "-c", TWO_DEVICES], cwd=utils.PROJECT, text=True,
                          env=environment, capture_output=True)  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert "SAME" in done.stdout


def test_one_device_is_not_distributed():
    assert utils.strategy().num_replicas_in_sync == 1


def test_shown_progress_names_what_is_left(small, capsys):
    small(epochs=2)
    lines = [line for line in capsys.readouterr().out.replace("\r", "\n").splitlines()]
    epochs = [line for line in lines if line.startswith("epoch  ")]
    assert len(epochs) == 2 and "min left" in epochs[0] and epochs[1].endswith("stop")


def test_state_is_written_in_one_step(small, monkeypatch):
    """A kill while the state is written leaves the one before it."""
    whole = small(stage="whole")
    savez = np.savez
    calls = []

    def die_half_way(file, **arrays):
        calls.append(1)
        if len(calls) == 2:
            file.write(b"PK half")
            raise Killed
        savez(file, **arrays)

    monkeypatch.setattr(np, "savez", die_half_way)
    with pytest.raises(Killed):
        small()
    monkeypatch.setattr(np, "savez", savez)
    assert_same(whole, small())
