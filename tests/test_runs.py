"""Settings, and what a finished run leaves: complete, checked as it is read, never confused."""

import dataclasses
import shutil
import sys

import h5py
import pandas as pd
import pytest
import small
from small import FILES, NAME

import cxr
import utils


@pytest.fixture
def run(finished, tmp_path):
    """(config, images) with a copy of the finished run, which may be damaged."""
    config, images, _ = finished
    shutil.copytree(config.output_dir, tmp_path / "seed-0")
    return dataclasses.replace(config, output_dir=tmp_path / "seed-0"), images


@pytest.fixture
def publish(run, monkeypatch, tmp_path):
    """Publishes the run, with its weights."""
    for name in ("RESULTS", "WEIGHTS"):
        for module in (cxr.files, cxr.runs):
            monkeypatch.setattr(module, name, tmp_path / name.lower())

    def publish():
        folder = tmp_path / "results" / cxr.runs.MAIN_IMAGES / "seed-0" / NAME
        shutil.copytree(run[0].output_dir / NAME, folder)
        (tmp_path / "weights").mkdir()
        (folder / "model.weights.h5").rename(tmp_path / "weights" / f"{NAME}.weights.h5")
        return folder

    return publish


def test_a_run_holds_all_that_later_notebooks_need(whole, run):
    (config, images), (history, predictions, weights) = run, whole
    found, model = utils.load_run(config, NAME, images), small.build_model(0.1)
    assert {path.name for path in found.folder.iterdir()} == FILES
    pd.testing.assert_frame_equal(found.history, history)
    pd.testing.assert_frame_equal(found.predictions, predictions.reset_index(drop=True))
    found.load_weights(model)
    assert all((a == b).all() for a, b in zip(model.get_weights(), weights, strict=True))
    info = found.info
    assert (info["run"], info["seed"], info["mode"]) == (NAME, 0, "full")
    assert (info["parameters"], info["trainable"]) == (296, 296)
    assert info["images"]["fingerprint"] == images.fingerprint and info["images"]["count"] == 24
    test = predictions[predictions["split"] == "test"]
    assert info["metrics"]["test"] == utils.evaluate(test)
    assert set(info["metrics"]) == {"test", "validation"}
    with h5py.File(found.folder / "model.weights.h5") as file:
        assert "optimizer" not in file, "which would triple the file"


def test_a_damaged_file_is_refused_by_name_with_what_helps(run, publish):
    published = publish()
    for name in sorted(FILES):
        theirs = cxr.runs.WEIGHTS / f"{NAME}.weights.h5" if "weights" in name else published / name
        ours = run[0].output_dir / NAME / name
        for path, words in (theirs, "fetch the project again"), (ours, f"delete .*{NAME} and run"):
            good = path.read_bytes()
            small.flip_a_bit(path)
            with pytest.raises(utils.UserError, match=f"{path.name}.* damaged: .*{words}"):
                found = utils.ModelRun(published if path == theirs else path.parent)
                assert len(found.history) and len(found.predictions)
                found.load_weights(small.build_model(0.1))
            path.write_bytes(good)


def test_a_run_that_does_not_fit_is_refused_and_a_missing_one_named(run):
    config, images = run
    with pytest.raises(utils.UserError, match="(?s)does not fit this model.*RETRAIN"):
        utils.load_run(config, NAME, images).load_weights(utils.build_cnn_1(2, 0.5, 0))
    others = dataclasses.replace(images, fingerprint="0" * 64)
    with pytest.raises(utils.UserError, match="was trained on the folder set.*RETRAIN"):
        utils.load_run(config, NAME, others)
    with pytest.raises(utils.UserError, match="09_none is not in .*, nor published: run its"):
        utils.load_run(config, "09_none", images)


def test_ones_own_run_comes_first_and_the_published_one_may_be_of_other_images(
    run, publish, capsys
):
    (config, images), published = run, publish()
    elsewhere = dataclasses.replace(config, output_dir=config.output_dir / "none")
    for prepared in ("nearest neighbours", "a smoothed copy"):
        mine = dataclasses.replace(images, preparation=prepared)
        found, said = utils.load_run(elsewhere, NAME, mine), capsys.readouterr().out
        assert found.folder == published and found.has_weights and "(you have none of" in said
        assert ("NOTE: trained on images resized by nearest" in said) == ("copy" in prepared)
    assert utils.load_run(config, NAME, images).folder == config.output_dir / NAME
    assert "your own run" in capsys.readouterr().out


def test_the_published_run_never_replaces_ones_own(whole, run, publish, capsys):
    config, _ = run
    with pytest.raises(utils.UserError, match="02_small: no weights are published"):
        small.train(config, use_published=True)
    publish()
    small.train(config, epochs=1, retrain=True)
    mine = small.contents(config.output_dir)
    small.assert_same(whole, small.train(config, use_published=True, rate=5e-2))
    assert "the published run, not trained here" in capsys.readouterr().out
    assert small.contents(config.output_dir) == mine


def test_a_field_beats_the_environment_and_settings_share_no_folder(make_config, monkeypatch):
    monkeypatch.setenv("CXR_SEED", "7")
    assert make_config("").seed == 7 and make_config("", seed="3").seed == 3
    assert make_config("").data == "" and make_config("", mode="quick").data == "sample"
    pairs = [(mode, seed) for mode in ("quick", "full") for seed in ("0", "1", "01")]
    folders = {make_config("", mode=mode, seed=seed).output_dir for mode, seed in pairs}
    assert sorted(folder.name for folder in folders) == ["seed-0", "seed-0", "seed-1", "seed-1"]


def test_a_setting_that_cannot_be_is_named(make_config, tmp_path):
    for setting, value in ("mode", "smoke"), ("seed", "-1"), ("seed", "one"), ("seed", "1.5"):
        with pytest.raises(utils.UserError, match=rf"\(CXR_{setting.upper()}\) is '{value}'"):
            make_config("sample", **{setting: value})
    (tmp_path / "file").touch()
    with pytest.raises(utils.UserError, match=r"Cannot write in .*file.*CXR_OUT"):
        make_config("", out=tmp_path / "file")


def test_a_missing_gpu_is_said_with_the_hosts_switch(make_config, monkeypatch, tmp_path, capsys):
    def said(mode):
        make_config("", mode=mode)
        return capsys.readouterr().out

    monkeypatch.setattr(cxr.config, "accelerators", list)
    monkeypatch.setattr(cxr.config, "KAGGLE_WORKING", tmp_path / "kaggle")
    assert "MODE = quick" in said("full") and "no GPU" not in said("quick")
    (tmp_path / "kaggle").mkdir()
    assert "> Accelerator" in said("full")
    with monkeypatch.context() as patch:
        patch.delenv("CXR_OUT")
        assert utils.setup().output_dir.is_relative_to(tmp_path / "kaggle" / "artifacts")
    monkeypatch.setitem(sys.modules, "google.colab", None)
    assert "Change runtime type > T4" in said("full")
