"""Colab's Drive: a copy of what is worked on locally, which may refuse, fill up, vanish or lie."""

import errno
import json
import os
import shutil
import sys
import types
from pathlib import Path
from unittest import mock

import keras
import numpy as np
import pandas as pd
import pytest
import small
from small import FILES, NAME, Killed, assert_same, contents, flip_a_bit

import cxr
import utils


class Colab:
    """A Colab session in this process, with Drive in a folder."""

    def __init__(self, patch, content, data):
        self.data = data
        patch.syspath_prepend(str(Path(__file__).parent / "colab"))
        from google.colab import drive

        self.api = drive
        for name in [name for name in sys.modules if name.startswith("google.colab")]:
            patch.setitem(sys.modules, name, sys.modules.pop(name))  # gone afterwards
        patch.delenv("CXR_OUT")
        patch.setattr(cxr.drive, "DRIVE", content / "drive")
        patch.setattr(cxr.config, "DRIVE", content / "drive")
        self.my_drive, self.hidden = content / "drive" / "MyDrive", content / "drive is away"
        patch.setattr(cxr.config, "DRIVE_OUTPUT", self.my_drive / "chest_xray_pneumonia")
        patch.setattr(cxr.config, "COLAB_OUTPUT", content / "cxr_output")
        self.folder = self.my_drive / "chest_xray_pneumonia" / "seed-0" / NAME  # of the run

    def setup(self, **settings):
        self.config = utils.setup(data=str(self.data), mode="full", **settings)
        return self.config

    def setup_unmounted(self):
        refuse = mock.Mock(side_effect=ValueError("mount failed: timeout"))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(self.api, "mount", refuse)
            return self.setup()

    def new_machine(self):
        shutil.rmtree(cxr.config.COLAB_OUTPUT)
        return self.setup()

    def finish_run(self, value=1.0, name=NAME, retrain=False):
        """Saves a run as at the end of a training, without one."""
        table = pd.DataFrame({"epoch": [1], "loss": [value]})
        model = keras.Sequential([keras.Input((500,)), keras.layers.Dense(2)])
        images = utils.load_images(self.config)
        tables = {"history.csv": table, "predictions.csv": table}
        utils.runs.save_run(self.config, name, images, model, tables, replace=retrain,
                            settings={"value": value})  # fmt: skip

    def loss(self):
        run = utils.runs.find_own_run(self.config, NAME)
        return run and run.history["loss"].item()

    def assert_same_everywhere(self):
        assert contents(self.folder.parents[1]) == contents(self.config.cache_dir.parent)

    def assert_on_drive(self):
        assert contents(self.folder) == contents(self.config.output_dir / NAME)
        assert {path.name for path in self.folder.iterdir()} == FILES


@pytest.fixture
def colab(monkeypatch, tmp_path, tiny_set):
    return Colab(monkeypatch, tmp_path / "content", tiny_set())


@pytest.fixture
def refuse(monkeypatch):
    """Makes Drive fail at copies that `wanted(source, target)` chooses, half-way."""
    copy = shutil.copyfile

    def choose(wanted, number=errno.ENOSPC):
        def copyfile(source, target, **_):
            if wanted(Path(source), Path(target)):
                Path(target).write_bytes(Path(source).read_bytes()[:100])
                raise OSError(number, os.strerror(number), str(target))
            return copy(source, target)

        monkeypatch.setattr(shutil, "copyfile", copyfile)

    return choose


def test_a_new_machine_finds_everything_and_makes_nothing_again(colab, monkeypatch, capsys):
    config = colab.setup()
    said = capsys.readouterr().out
    assert f"results  {colab.folder.parent} (Drive; a copy of {config.output_dir})" in said
    first = small.train(config)
    colab.assert_same_everywhere()
    before = contents(colab.my_drive)
    config = colab.new_machine()
    monkeypatch.setattr(cxr.cache, "read_image", lambda _: 1 / 0)
    assert_same(first, small.train(config))
    assert "trained before" in capsys.readouterr().out
    assert contents(colab.my_drive) == before


def test_a_kernel_restart_on_the_same_machine_is_no_news(colab, monkeypatch, capsys):
    colab.setup()
    colab.finish_run()
    monkeypatch.setattr(shutil, "copyfile", lambda *_, **__: 1 / 0)
    for times in (0, 0), None:  # Drive may keep times as it likes, older or newer
        for path in colab.my_drive.rglob("*"):
            os.utime(path, times)
        before = {p: p.stat().st_mtime_ns for p in colab.my_drive.rglob("*")}
        capsys.readouterr()
        colab.setup()
        assert colab.loss() == 1 and "Drive has" not in capsys.readouterr().out
        assert before == {p: p.stat().st_mtime_ns for p in colab.my_drive.rglob("*")}


def test_what_does_not_fit_holds_no_other_back_and_run_json_comes_last(colab, refuse, capsys):
    refuse(lambda _, target: "pixels.npy" in target.name or "model.weights.h5" in target.name)
    colab.setup()
    colab.finish_run()
    taken = {path.name for path in contents(colab.my_drive)}
    assert taken == {"metadata.csv", "history.csv", "predictions.csv"}
    said = capsys.readouterr().out
    assert said.count("Not copied to or from Google Drive (No space left on device)") == 1
    assert "which is lost with this session, and trying again later" in said
    config = colab.setup()
    said = capsys.readouterr().out
    assert "Not copied" in said and f"results  {config.output_dir}\n" in said
    refuse(lambda _, target: "pixels.npy" in target.name)
    colab.finish_run(name="03_other")  # brings what was pending
    colab.assert_on_drive()
    assert not list(colab.my_drive.rglob("info.json"))
    refuse(lambda *_: False)
    colab.finish_run(name="04_other")
    colab.assert_same_everywhere()
    assert capsys.readouterr().out.count("Google Drive works again") == 1
    colab.setup()
    assert "(Drive; a copy" in capsys.readouterr().out


def test_what_waits_for_drive_waits_through_another_set_up(colab, refuse, capsys):
    for value in (1.0, 2.0):  # the second is a retraining
        colab.setup()
        refuse(lambda _, target: target.is_relative_to(colab.my_drive))
        colab.finish_run(value, retrain=value > 1)
        colab.folder.mkdir(parents=True, exist_ok=True)
        (colab.folder / "training.npz").touch()  # which the training had left there
        refuse(lambda *_: False)
        colab.setup()
        colab.assert_on_drive()
    assert "keeps it" not in capsys.readouterr().out


def test_a_refused_mount_is_said_and_a_later_one_uploads_what_was_made(colab, capsys):
    config = colab.setup_unmounted()
    said = capsys.readouterr().out
    assert "Drive was not mounted (ValueError: mount failed: timeout" in said
    assert config.drive is None and f"results  {config.output_dir}\n" in said
    assert not colab.my_drive.exists()
    colab.finish_run()
    colab.setup()
    colab.assert_same_everywhere()


def test_drive_is_mounted_only_where_it_is_used(colab, tmp_path, monkeypatch):
    assert colab.setup(out=str(tmp_path / "elsewhere")).drive is None
    assert not colab.api.calls
    other = colab.my_drive / "other"
    assert colab.setup(out=str(other)).drive.remote == other
    assert colab.api.calls == [str(cxr.drive.DRIVE)]
    assert colab.config.output_dir != colab.setup().output_dir
    monkeypatch.delitem(sys.modules, "google.colab")
    assert colab.setup(out=str(tmp_path / "elsewhere")).drive is None


def test_drive_vanishes_between_two_files_and_comes_back(colab, monkeypatch, capsys):
    def then_vanish(source, target):
        replace(source, target)
        if target == colab.folder / "history.csv":
            monkeypatch.setattr(os, "replace", replace)
            colab.my_drive.rename(colab.hidden)

    colab.setup()
    replace = os.replace
    monkeypatch.setattr(os, "replace", then_vanish)
    monkeypatch.setattr(cxr.drive, "STATE_INTERVAL", 0)
    colab.finish_run()
    small.train(colab.config, "03_other", epochs=1)
    assert not colab.my_drive.exists(), "a folder that pretends to be Drive"
    colab.hidden.rename(colab.my_drive)
    colab.finish_run(3.0, "05_other")
    said = capsys.readouterr().out
    assert said.count("Not copied to or from Google Drive (it is not mounted any more)") == 1
    assert said.count("Google Drive works again") == 1
    colab.assert_same_everywhere()


def test_a_drive_that_takes_nothing_is_read_and_not_blamed_for_a_full_disk(colab, refuse, capsys):
    colab.setup()
    colab.finish_run()
    refuse(lambda _, target: target.is_relative_to(colab.my_drive), errno.EIO)
    config = colab.new_machine()
    assert colab.loss() == 1
    colab.finish_run(2.0, "03_other")
    assert f"Google Drive ({os.strerror(errno.EIO)})" in capsys.readouterr().out
    assert utils.ModelRun(config.output_dir / "03_other").has_weights
    assert not list(colab.my_drive.rglob("*.part*"))
    colab.assert_on_drive()
    colab.new_machine()
    refuse(lambda _, target: not target.is_relative_to(colab.my_drive))
    with pytest.raises(utils.UserError, match="No space left while writing .*cxr_output"):
        colab.loss()


def test_what_is_damaged_on_drive_is_not_used_and_is_replaced(colab, capsys):
    colab.setup()
    colab.finish_run()
    for name, damage in (("history.csv", flip_a_bit), ("model.weights.h5", Path.unlink),
                         ("run.json", flip_a_bit), ("pixels.npy", Path.unlink),
                         ("info.json", flip_a_bit)):  # fmt: skip
        [path] = colab.my_drive.rglob(name)
        damage(path)
        colab.new_machine()
        assert colab.loss() == (None if name in FILES else 1), name
        utils.load_images(colab.config)
        assert f"{path.parent} is damaged" in capsys.readouterr().out, name
        if name in FILES:
            colab.finish_run()
        colab.assert_same_everywhere()


def test_another_finished_run_on_drive_is_kept_unless_retrain(colab, refuse, capsys):
    colab.setup()
    colab.finish_run(1.0)
    kept = contents(colab.folder)
    shutil.rmtree(cxr.config.COLAB_OUTPUT)
    colab.setup_unmounted()
    colab.finish_run(2.0)  # a session that could not look at Drive
    colab.setup()
    said = capsys.readouterr().out
    assert f"Drive has another finished {NAME} and keeps it" in said and "RETRAIN" in said
    assert contents(colab.folder) == kept and colab.loss() == 2
    colab.new_machine()
    colab.my_drive.rename(colab.hidden)  # nor where it is away when the training looks for it
    small.train(colab.config, epochs=1, hook=lambda _: colab.hidden.rename(colab.my_drive))
    assert contents(colab.folder) == kept
    refuse(lambda _, target: "model.weights.h5" in target.name)
    colab.finish_run(3.0, retrain=True)
    assert contents(colab.folder) == kept, "until the new one has arrived whole"
    refuse(lambda *_: False)
    colab.finish_run(name="03_other")  # brings what was pending
    colab.assert_on_drive()
    colab.new_machine()
    assert colab.loss() == 3


def test_a_lost_session_goes_on_after_the_last_state_on_drive(colab, monkeypatch, capsys):
    colab.setup()
    clock, seen = [0.0], []
    monkeypatch.setattr(cxr.drive, "time", types.SimpleNamespace(monotonic=lambda: clock[0]))
    colab.new_machine()

    def pass_time(epoch):
        clock[0] += 0.7 * cxr.drive.STATE_INTERVAL
        if (state := colab.folder / "training.npz").exists():
            history = json.loads(np.load(state)["state"].tobytes())["history"]
            seen.append((epoch, len(history), state.stat().st_ino))

    whole = small.train(colab.config, hook=pass_time, patience=9)
    assert [row[:2] for row in seen] == [(3, 2), (4, 2), (5, 4), (6, 4)]
    assert len({row[2] for row in seen}) == 1
    colab.assert_on_drive()
    with pytest.raises(Killed):
        small.train(colab.config, "02_lost", hook=pass_time, killed_after=3, patience=9)
    capsys.readouterr()
    assert_same(whole, small.train(colab.new_machine(), "02_lost", patience=9))
    assert "Going on after epoch 2" in capsys.readouterr().out


def test_the_state_stays_on_drive_until_the_run_is_there(colab, refuse, monkeypatch, capsys):
    monkeypatch.setattr(cxr.drive, "STATE_INTERVAL", 0)
    refuse(lambda _, target: "model.weights.h5" in target.name)
    run = small.train(colab.setup(), epochs=2)
    taken = {path.name for path in colab.folder.iterdir()}
    assert taken == {"history.csv", "predictions.csv", "training.npz"}
    refuse(lambda *_: False)
    assert_same(run, small.train(colab.new_machine(), epochs=2))
    assert "Going on after epoch 2" in capsys.readouterr().out
    colab.assert_on_drive()
