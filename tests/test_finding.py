"""Where the images come from, and what is said when they are not there."""

import shutil
import sys
import types

import pytest

import utils


@pytest.fixture
def nowhere(monkeypatch, tmp_path):
    """No Kaggle input, no data/chest_xray, and a download that fails."""
    monkeypatch.delenv("CXR_DATA")
    monkeypatch.setattr(utils, "KAGGLE_INPUT", tmp_path / "kaggle" / "input")
    monkeypatch.setattr(utils, "LOCAL_SET", tmp_path / "data" / "chest_xray")
    download = types.SimpleNamespace(calls=[], result=OSError("no route to host"))

    def dataset_download(handle, path=None, *, force_download=False, output_dir=None):
        download.calls.append(handle)
        if isinstance(download.result, Exception):
            raise download.result
        return str(download.result)

    stand_in = types.ModuleType("kagglehub")
    stand_in.dataset_download = dataset_download
    monkeypatch.setitem(sys.modules, "kagglehub", stand_in)
    return download


def test_stand_in_has_kagglehubs_signature():
    import inspect

    import kagglehub

    parameters = list(inspect.signature(kagglehub.dataset_download).parameters)
    assert parameters[:3] == ["handle", "path", "force_download"]


@pytest.mark.parametrize("nested", ["", "chest_xray", "chest_xray/chest_xray"])
def test_named_folder_with_and_without_nesting(tiny_set, tmp_path, make_run, nested):
    tiny_set(tmp_path / "given" / nested)
    (tmp_path / "given" / "__MACOSX" / "train").mkdir(parents=True)
    root, source = utils.find_images(make_run(tmp_path / "given"))
    assert (root, source) == (tmp_path / "given" / nested, "folder")


def test_kaggles_inner_copy_is_counted_once(tiny_set, tmp_path, make_run):
    outer = tiny_set(tmp_path / "given" / "chest_xray")
    shutil.copytree(outer, tmp_path / "copy")
    shutil.move(tmp_path / "copy", outer / "chest_xray")
    (outer / "__MACOSX" / "chest_xray").mkdir(parents=True)
    (outer / "train" / "NORMAL" / ".DS_Store").write_bytes(b"x")
    (outer / "train" / "NORMAL" / "._IM-0001-0001.jpeg").write_bytes(b"x")
    assert len(utils.open_images(make_run(tmp_path / "given")).index) == 24


@pytest.mark.parametrize("mounted", ["{name}", "{name}/chest_xray", "datasets/{owner}/{name}"])
def test_kaggles_input_comes_before_the_local_set(tiny_set, nowhere, make_run, mounted):
    owner, name = utils.KAGGLE_SET.split("/")
    tiny_set(utils.LOCAL_SET)
    root = tiny_set(utils.KAGGLE_INPUT / mounted.format(owner=owner, name=name))
    assert utils.find_images(make_run("")) == (root, "folder")
    shutil.rmtree(utils.KAGGLE_INPUT)
    assert utils.find_images(make_run("")) == (utils.LOCAL_SET, "folder")
    assert nowhere.calls == []


def test_download_is_pinned_and_not_repeated(tiny_set, nowhere, make_run, tmp_path):
    nowhere.result = tmp_path / "kagglehub"
    tiny_set(nowhere.result / "chest_xray")
    images = utils.open_images(make_run(""))
    assert images.source == "kaggle" and images.root == nowhere.result / "chest_xray"
    assert nowhere.calls == ["paultimothymooney/chest-xray-pneumonia/versions/2"]
    shutil.rmtree(nowhere.result)  # as in a new Colab session
    again = utils.open_images(make_run("kaggle"))
    assert len(nowhere.calls) == 1
    assert again.fingerprint == images.fingerprint and again.root is None
    assert utils.original_file(again, "normal").parent == again.examples


def test_nothing_found_lists_what_was_tried_and_never_draws_phantoms(nowhere, make_run):
    with pytest.raises(utils.CxrError) as error:
        utils.open_images(make_run(""))
    message = str(error.value)
    for word in (
        "CXR_DATA: not set",
        "kaggle/input",
        "data/chest_xray: no such folder",
        "OSError: no route to host",
        "Ways out",
        "data/README.md",
        "CXR_DATA=phantom",
    ):
        assert word in message


def test_a_named_folder_that_is_not_there_is_an_error_of_its_own(nowhere, make_run, tmp_path):
    with pytest.raises(utils.CxrError, match="wrong: no such folder"):
        utils.open_images(make_run(tmp_path / "wrong"))
    assert nowhere.calls == []


@pytest.mark.parametrize(
    ("setting", "value"), [("profile", "quick"), ("seed", "-1"), ("seed", "one")]
)
def test_settings_that_cannot_be(make_run, setting, value):
    with pytest.raises(utils.CxrError, match=f"CXR_{setting.upper()} is '{value}'"):
        make_run("phantom", **{setting: value})


def test_a_form_field_beats_the_environment_and_an_empty_one_does_not(monkeypatch, make_run):
    monkeypatch.setenv("CXR_SEED", "7")
    assert make_run("phantom").seed == 7
    assert make_run("phantom", seed="3").seed == 3


def test_real_smoke_and_phantom_results_never_share_a_folder(make_run, tmp_path):
    outs = {
        make_run(data, profile=profile, seed=seed).out
        for data in ("phantom", tmp_path)
        for profile in ("smoke", "full")
        for seed in ("0", "1")
    }
    assert len(outs) == 8
    assert make_run(tmp_path, profile="full").out == tmp_path / "out" / "seed-0"
