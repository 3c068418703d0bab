"""Colab's Drive: a copy of what is worked on locally, which may refuse, fill up, vanish or lie."""

import errno
import json
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

import keras
import numpy as np
import pandas as pd
import pytest

import utils

STAGE = "02_small"


class Killed(Exception):
    pass


class Colab:
    """A Colab session in this process, with Drive in a folder."""

    def __init__(self, monkeypatch, content, data):
        self.patch, self.data = monkeypatch, data
        monkeypatch.syspath_prepend(str(Path(__file__).parent / "tools" / "colab"))
        import google.colab

        self.api = google.colab
        self.api.drive.calls.clear()
        for name in [name for name in sys.modules if name.startswith("google.colab")]:
            monkeypatch.setitem(sys.modules, name, sys.modules.pop(name))  # gone afterwards
        monkeypatch.delenv("CXR_OUT")
        monkeypatch.setattr(utils, "DRIVE", content / "drive")
        monkeypatch.setattr(utils, "LOCAL", content / "cxr_local")
        self.my_drive, self.hidden = content / "drive" / "MyDrive", content / "drive is away"
        self.out = self.my_drive / "chest_xray_pneumonia" / "seed-0"
        self.new_kernel()

    def new_kernel(self):
        self.patch.setattr(utils, "SESSION", utils.uuid.uuid4().hex[:8])

    def new_machine(self):
        shutil.rmtree(utils.LOCAL)
        self.new_kernel()

    def setup(self, **settings):
        self.run = utils.setup(data=str(self.data), profile="full", **settings)
        return self.run

    def vanish(self):
        self.my_drive.rename(self.hidden)

    def come_back(self):
        self.hidden.rename(self.my_drive)

    def train(self, hook=None, epochs=4, **options):
        """Trains a very small network and saves it; `hook(n)` is called before epoch n is kept."""
        images = utils.open_images(self.run)
        index = images.index.assign(part=utils.assign_parts(images.index, 0))
        rows = {part: index[index["part"] == part] for part in ("train", "validation", "test")}
        data = utils.make_dataset(images, rows["train"], 2, 3, shuffle_seed=0)
        validation = utils.make_dataset(images, rows["validation"], 2, 3)
        keras.utils.set_random_seed(0)
        layers = keras.layers
        model = keras.Sequential(
            [keras.Input((224, 224, 3)), layers.AveragePooling2D(32), layers.Flatten(),
             layers.Dense(2, activation="softmax")]
        )  # fmt: skip
        model.compile(keras.optimizers.Adam(1e-2), "categorical_crossentropy", metrics=["accuracy"])
        early = keras.callbacks.EarlyStopping(patience=9, restore_best_weights=True)
        with pytest.MonkeyPatch.context() as patch:
            save = utils._Resume.save

            def hooked(state):
                if state.mirror:
                    state.mirror.next = 0  # tiny epochs are shorter than a tenth of a copy
                if hook:
                    hook(len(state.rows))
                save(state)

            patch.setattr(utils._Resume, "save", hooked)
            history, settings = utils.train(
                self.run, STAGE, images, model, data, validation, epochs, early, **options
            )
        predictions = utils.predict(model, images, rows["test"], 2)
        utils.save_stage(self.run, STAGE, images, model, history, predictions, settings=settings)
        return history.drop(columns="seconds"), predictions


@pytest.fixture
def colab(monkeypatch, tmp_path, tiny_set):
    return Colab(monkeypatch, tmp_path / "content", tiny_set())


def assert_same(left, right):
    pd.testing.assert_frame_equal(left[0], right[0])
    pd.testing.assert_frame_equal(left[1], right[1])


def content(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def assert_on_drive(colab):
    """The stage is on Drive, whole and as it is here, with nothing else beside it."""
    assert content(colab.out) == content(colab.run.out)
    stage = utils.Stage(colab.out / STAGE)
    assert len(stage.history) and len(stage.predictions) and stage._file("model.weights.h5")
    assert set(os.listdir(colab.out / STAGE)) == {*utils.STAGE_FILES, "run.json"}


def flip_a_bit(path):
    changed = bytearray(path.read_bytes())
    changed[len(changed) // 2] ^= 1
    path.write_bytes(changed)


def never(*_):
    raise AssertionError("this should not have been done again")


def test_everything_worth_keeping_is_copied_and_a_new_machine_goes_on(colab, monkeypatch, capsys):
    run = colab.setup()
    said = capsys.readouterr().out
    assert f"results  {colab.out} (Drive; worked on in {run.out})" in said
    assert run.out.is_relative_to(utils.LOCAL) and "Another session" not in said
    first = colab.train()
    assert f"saved in {colab.out / STAGE} (Drive" in capsys.readouterr().out
    assert_on_drive(colab)
    assert content(colab.out.parent / "cache") == content(run.cache)
    before = content(colab.my_drive)
    colab.new_machine()
    colab.setup()
    monkeypatch.setattr(utils, "_pack", never)
    monkeypatch.setattr(keras.Sequential, "fit", never)
    assert_same(first, colab.train())
    said = capsys.readouterr().out
    assert "is trained already (4 epochs)" in said and "Another session" not in said
    assert content(colab.my_drive) == before
    times = {p: p.stat().st_mtime_ns for p in colab.my_drive.rglob("*.*") if p.is_file()}
    colab.new_kernel()
    colab.setup()  # what was fetched is not news to Drive
    assert "Drive has a finished" not in capsys.readouterr().out
    assert times == {p: p.stat().st_mtime_ns for p in times}


def killed_in_the_third_epoch(colab):
    """A training whose process ends before that epoch is kept."""

    def die(epoch):
        if epoch == 3:
            raise Killed

    with pytest.raises(Killed):
        colab.train(die, retrain=True)


def test_a_lost_session_is_continued_after_its_last_epoch(colab, capsys):
    colab.setup()
    whole = colab.train()
    killed_in_the_third_epoch(colab)
    colab.new_machine()
    colab.setup()
    assert "Another session" in capsys.readouterr().out
    assert_same(whole, colab.train())
    assert "Going on after epoch 2" in capsys.readouterr().out
    assert_on_drive(colab)


REFUSALS = ["ValueError", "MessageError", "NotImplementedError", "AssertionError"]


@pytest.mark.parametrize("kind", REFUSALS)
def test_a_mount_that_fails_is_said_and_the_next_try_copies_what_was_made(colab, kind, capsys):
    from google.colab import _message

    error = getattr(_message, kind, None) or getattr(__import__("builtins"), kind)
    with pytest.MonkeyPatch.context() as patch:

        def refuse(*args, **kwargs):
            raise error("mount failed: timeout during initial read of root folder")

        patch.setattr(colab.api.drive, "mount", refuse)
        run = colab.setup()
    said = capsys.readouterr().out
    assert f"Drive was not mounted ({kind}: mount failed: timeout" in said
    assert f"results  {run.out}\n" in said and run.mirror is None
    assert not utils.DRIVE.exists()
    if kind == "MessageError":
        utils.open_images(run)
        utils.write_json(run.out / STAGE / "run.json", {"files": {}})
        colab.setup()
        assert (colab.out / STAGE / "run.json").exists()
        assert content(colab.out.parent / "cache") == content(run.cache)


def test_drive_is_mounted_only_where_it_is_used(colab, make_run, tmp_path):
    assert colab.setup(out=str(tmp_path / "elsewhere")).mirror is None
    assert not colab.api.drive.calls
    other = utils.DRIVE / "MyDrive" / "other"
    assert colab.setup(out=str(other)).mirror.drive == other
    assert colab.api.drive.calls == [str(utils.DRIVE)]
    assert colab.run.out != colab.setup().out


def test_outside_colab_there_is_no_mirror(make_run, monkeypatch):
    monkeypatch.delitem(sys.modules, "google.colab", raising=False)
    assert make_run("phantom").mirror is None


def test_drive_vanishes_in_the_middle_and_comes_back(colab, capsys):
    colab.setup()
    whole = colab.train()

    def hook(epoch):
        if epoch == 2:
            colab.vanish()
        if epoch == 4:
            assert not colab.my_drive.exists(), "a folder that pretends to be Drive"
            colab.come_back()

    capsys.readouterr()
    assert_same(whole, colab.train(hook, retrain=True))
    said = capsys.readouterr().out
    assert said.count("Drive does not take or give files (it is not mounted any more)") == 1
    assert said.count("Drive takes files again") == 1
    assert_on_drive(colab)


def test_drive_stays_away_and_the_local_folder_is_named(colab, capsys):
    run = colab.setup()
    colab.train(lambda epoch: colab.vanish() if epoch == 2 else None)
    said = capsys.readouterr().out
    assert f"saved in {run.out / STAGE}, not on Drive (it is not mounted" in said
    assert not colab.my_drive.exists()
    assert len(utils.Stage(run.out / STAGE).history) == 4
    colab.come_back()
    assert not (colab.out / STAGE / "run.json").exists()
    colab.new_kernel()
    colab.setup()  # the same machine: the set-up cell is run again
    assert (colab.out / STAGE / "run.json").exists()
    assert len(utils.Stage(colab.out / STAGE).predictions)


def test_drive_vanishes_between_two_files(colab, monkeypatch):
    colab.setup()
    replace = os.replace

    def then_vanish(source, target):
        replace(source, target)
        if target == colab.out / STAGE / "model.weights.h5":
            colab.vanish()

    monkeypatch.setattr(utils.os, "replace", then_vanish)
    colab.train()
    assert not colab.my_drive.exists(), "a folder that pretends to be Drive"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ENOTCONN])
def test_a_drive_that_fails_in_the_middle_stops_nothing(colab, number, capsys):
    run = colab.setup()
    copy, failed = shutil.copyfile, []

    def half(source, target):
        if Path(target).is_relative_to(utils.DRIVE):
            failed.append(target)
            Path(target).write_bytes(Path(source).read_bytes()[:100])
            raise OSError(number, os.strerror(number), str(target))
        return copy(source, target)

    def hook(epoch):
        if epoch == 3:
            colab.patch.setattr(utils.shutil, "copyfile", half)

    colab.train(hook)
    said = capsys.readouterr().out
    assert len(failed) >= 2 and said.count("Drive does not take or give files") == 1
    assert f"not on Drive ({os.strerror(number)})" in said
    assert not list(colab.my_drive.rglob("*.part"))
    state = colab.out / STAGE / "training.npz"  # of the second epoch, whole
    with np.load(state, allow_pickle=False) as state:
        assert len(json.loads(state["meta"].tobytes())["history"]) == 2
    assert len(utils.Stage(run.out / STAGE).history) == 4


@pytest.mark.skipif(sys.platform == "win32", reason="needs Unix permissions")
def test_a_read_only_drive_folder_is_read_and_said(monkeypatch, tiny_set, capsys):
    with tempfile.TemporaryDirectory() as folder:  # pytest's own folders shut others out
        folder = Path(folder)
        folder.chmod(0o755)
        colab = Colab(monkeypatch, folder / "content", tiny_set(folder / "set"))
        colab.setup()
        first = colab.train()
        colab.new_machine()
        utils.LOCAL.mkdir()
        utils.LOCAL.chmod(0o777)
        kept = [p for p in (colab.my_drive, *colab.my_drive.rglob("*")) if p.is_dir()]
        for path in kept:
            path.chmod(0o555)
        capsys.readouterr()
        if os.geteuid() == 0:  # root writes everywhere: be somebody else for a moment
            os.seteuid(65534)
        try:
            colab.setup()
            said = capsys.readouterr().out
            assert "Drive does not take or give files (Permission denied)" in said
            assert "not on Drive (Permission denied)" in said
            assert_same(first, colab.train())
            assert "is trained already" in capsys.readouterr().out
        finally:
            if os.getuid() == 0:
                os.seteuid(0)
            for path in kept:
                path.chmod(0o755)


@pytest.mark.parametrize(
    ("name", "damage"),
    [(name, flip_a_bit) for name in (*utils.STAGE_FILES, "run.json")]
    + [("model.weights.h5", Path.unlink)],
)
def test_a_damaged_stage_on_drive_is_not_used(colab, name, damage, capsys, monkeypatch):
    run = colab.setup()
    first = colab.train()
    good = (run.out / STAGE / "history.csv").read_bytes()
    damage(colab.out / STAGE / name)
    colab.new_machine()
    colab.setup()
    if name == "history.csv":  # a good local file: Drive's bad one must not replace it
        (run.out / STAGE).mkdir()
        (run.out / STAGE / name).write_bytes(good)
        os.utime(run.out / STAGE / name, (0, 0))
    capsys.readouterr()
    assert not utils.finished(colab.run, STAGE)
    said = capsys.readouterr().out
    assert f"{colab.out / STAGE / name} is missing or damaged" in said
    if name == "history.csv":
        assert (run.out / STAGE / name).read_bytes() == good
    assert_same(first, colab.train())
    assert_on_drive(colab)


@pytest.mark.parametrize("suffix", [".uint8", ".json"])
def test_a_damaged_pack_on_drive_is_not_used(colab, suffix, capsys):
    first = utils.open_images(colab.setup())
    [path] = (colab.out.parent / "cache").glob(f"images-*{suffix}")
    flip_a_bit(path)
    colab.new_machine()
    again = utils.open_images(colab.setup())
    assert f"{path} is missing or damaged" in capsys.readouterr().out
    assert again.fingerprint == first.fingerprint
    assert content(colab.out.parent / "cache") == content(colab.run.cache)


def test_a_damaged_training_state_on_drive_is_not_used(colab, capsys):
    colab.setup()
    whole = colab.train()
    killed_in_the_third_epoch(colab)
    flip_a_bit(colab.out / STAGE / "training.npz")
    colab.new_machine()
    colab.setup()
    assert_same(whole, colab.train())
    assert "training.npz is damaged" in capsys.readouterr().out


def test_this_machines_full_disk_is_not_taken_for_drives_fault(colab, monkeypatch):
    colab.setup()
    colab.train()
    colab.new_machine()
    colab.setup()
    copy = shutil.copyfile

    def full(source, target):
        if Path(target).is_relative_to(utils.LOCAL):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(target))
        return copy(source, target)

    monkeypatch.setattr(utils.shutil, "copyfile", full)
    with pytest.raises(utils.CxrError, match="No space left while writing .*cxr_local"):
        utils.finished(colab.run, STAGE)


def test_retrain_forgets_the_old_stage_on_drive_even_while_drive_is_away(colab):
    colab.setup()
    colab.train()
    colab.vanish()

    def hook(epoch):
        if epoch == 2:
            colab.come_back()
            assert (colab.out / STAGE / "run.json").exists()
        if epoch == 3:
            assert os.listdir(colab.out / STAGE) == ["training.npz"]
            raise Killed

    with pytest.raises(Killed):
        colab.train(hook, retrain=True)
    colab.new_machine()
    colab.setup()
    assert not utils.finished(colab.run, STAGE)


def test_retrain_while_drive_blinks_does_not_fetch_the_old_stage(colab, monkeypatch):
    run = colab.setup()
    colab.train()
    forget = run.mirror.forget

    def blink(folder):
        colab.vanish()
        forget(folder)
        colab.come_back()

    monkeypatch.setattr(run.mirror, "forget", blink)
    assert len(colab.train(epochs=2, retrain=True)[0]) == 2
    assert_on_drive(colab)


def test_a_finished_stage_on_drive_is_replaced_only_by_retrain(colab, capsys):
    """A session that could not look at Drive trains on its own; then Drive is there."""
    colab.setup()
    colab.train()
    kept = content(colab.out / STAGE)
    colab.new_machine()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(colab.api.drive, "mount", never)
        colab.setup()
    assert len(colab.train(epochs=2)[0]) == 2
    capsys.readouterr()
    run = colab.setup()
    said = capsys.readouterr().out
    assert "Drive has a finished 02_small which this session has not read" in said
    assert f"stays in {run.out / STAGE}" in said
    assert content(colab.out / STAGE) == kept
    again = colab.train(epochs=3, retrain=True)
    assert len(again[0]) == 3
    assert_on_drive(colab)


def test_a_drive_that_was_away_when_asked_keeps_its_stage(colab, capsys):
    colab.setup()
    colab.train()
    kept = content(colab.out / STAGE)
    colab.new_machine()
    colab.setup()
    colab.vanish()
    colab.train(lambda epoch: colab.come_back() if epoch == 2 else None, epochs=3)
    said = capsys.readouterr().out
    assert "Drive has a finished 02_small" in said
    assert f"saved in {colab.run.out / STAGE}, not on Drive, which has another" in said
    assert content(colab.out / STAGE) == kept


def test_a_second_session_is_told_and_the_first_too(colab, capsys):
    first = colab.setup()
    assert "Another session" not in capsys.readouterr().out
    colab.setup()  # the set-up cell run twice is no second session
    assert "Another session" not in capsys.readouterr().out
    colab.new_kernel()
    colab.setup()
    said = capsys.readouterr().out
    assert f"Another session wrote in {colab.out} 0 min ago" in said and "stop one" in said
    colab.run.mirror.put()
    assert "Another session" not in capsys.readouterr().out  # once is enough
    colab.new_kernel()  # the first one's next epoch, with an id that is not the last writer's
    first.mirror.put()
    assert "Another session" in capsys.readouterr().out
    first.mirror.put(ended=True)
    colab.new_kernel()
    colab.setup()
    assert "Another session" not in capsys.readouterr().out


def test_a_session_of_long_ago_is_not_worth_a_word(colab, capsys):
    colab.setup()
    beat = colab.out / "session.json"
    utils.write_json(beat, {"session": "another", "time": time.time() - 3600})
    colab.setup()
    flip_a_bit(beat)
    colab.setup()
    assert "Another session" not in capsys.readouterr().out
    assert utils.read_json(beat)["session"] == utils.SESSION


def test_two_sessions_that_save_at_the_same_moment_leave_one_whole_stage(colab, monkeypatch):
    colab.setup()
    copy = shutil.copyfile

    def interleaved(source, target):
        copy(source, target)
        if Path(source).name == "predictions.csv":  # the other one's weights arrive in between
            weights = colab.out / STAGE / "model.weights.h5"
            weights.write_bytes(b"of another training")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(utils.shutil, "copyfile", interleaved)
        colab.train()
    assert_on_drive(colab)


def test_a_slow_drive_takes_a_tenth_of_the_time(colab, monkeypatch):
    run = colab.setup()
    path = run.out / STAGE / "training.npz"
    path.parent.mkdir()
    copy = shutil.copyfile

    def slow(source, target):
        time.sleep(0.3)
        copy(source, target)

    monkeypatch.setattr(utils.shutil, "copyfile", slow)
    for text in ("one", "two"):
        path.write_text(text)
        run.mirror.put(path, soon=False)
    twin = run.mirror.twin(path)
    assert twin.read_text() == "one"
    assert 2.5 < run.mirror.next - time.monotonic() < 9
    run.mirror.put()
    assert twin.read_text() == "two"
