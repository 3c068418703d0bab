"""Where the images come from, what their names say, and what is said when they are not there."""

import shutil
import sys
from unittest import mock

import kagglehub.exceptions
import pandas as pd
import pytest
import requests

import cxr
import utils
from cxr.source import KAGGLE_NAME, find_images

MARK = "t0ken-mark"  # no message may hold it


@pytest.fixture
def nowhere(monkeypatch, tmp_path):
    """No Kaggle input, no data/chest_xray, and a download (a Mock, returned) that fails."""
    monkeypatch.setattr(cxr.source, "KAGGLE_INPUT", tmp_path / "kaggle" / "input")
    monkeypatch.setattr(cxr.source, "LOCAL_SET", tmp_path / "data" / "chest_xray")
    stand_in = mock.Mock(spec=["dataset_download"])
    stand_in.dataset_download.side_effect = OSError("no route to host")
    monkeypatch.setitem(sys.modules, "kagglehub", stand_in)
    return stand_in.dataset_download


def test_kaggles_nesting_inner_copy_and_hidden_files(tiny_set, make_config, tmp_path):
    (tmp_path / "__MACOSX" / "train").mkdir(parents=True)
    for nested in ("chest_xray/chest_xray", "chest_xray", ""):  # the inner one stays a copy
        root = tiny_set(tmp_path / nested)
        for name in (".DS_Store", "._IM-0001-0001.jpeg"):
            (root / "train" / "NORMAL" / name).write_bytes(b"x")
        assert find_images(str(tmp_path)) == (root, "folder")
        assert len(utils.load_images(make_config(tmp_path, out=tmp_path / "out")).metadata) == 24


def test_kaggles_input_comes_before_the_local_set(tiny_set, nowhere):
    local = tiny_set(cxr.source.LOCAL_SET)
    for mounted in (KAGGLE_NAME.split("/")[1], f"datasets/{KAGGLE_NAME}"):
        root = tiny_set(cxr.source.KAGGLE_INPUT / mounted)
        assert find_images("") == (root, "folder")
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(sys.modules, "google.colab", None)  # it mounts kagglehub's download there
            assert find_images("") == (root, "kaggle") and find_images(str(root))[1] == "folder"
        shutil.rmtree(cxr.source.KAGGLE_INPUT)
    assert find_images("") == (local, "folder") and not nowhere.called


def test_a_download_is_pinned_and_not_repeated(tiny_set, nowhere, make_config, tmp_path):
    root = tiny_set(tmp_path / "kagglehub" / "chest_xray")
    nowhere.configure_mock(side_effect=None, return_value=str(root.parent))
    config = make_config("")
    images = utils.load_images(config)
    assert images.label == "kaggle" and images.root == root
    nowhere.assert_called_once_with(f"{KAGGLE_NAME}/versions/2")
    shutil.rmtree(root.parent)  # as in a new Colab session
    again = utils.load_images(config)
    assert nowhere.call_count == 1 and again.root is None
    assert again.fingerprint == images.fingerprint
    with pytest.raises(utils.UserError, match="holds no train.*DISABLE_COLAB_CACHE=1"):
        utils.load_images(config, need_files=True)


def test_nothing_found_lists_what_was_tried_and_never_takes_the_sample(nowhere, tmp_path):
    for folder, reason in (("wrong", "no such folder"), ("", "holds no train, val or test")):
        with pytest.raises(utils.UserError, match=f"{folder}: {reason}"):
            find_images(str(tmp_path / folder))
    assert not nowhere.called, "another set than the named one"
    with pytest.raises(utils.UserError) as error:
        find_images("")
    for words in (f"{KAGGLE_NAME.split('/')[1]}: no such folder", "data/chest_xray: no such",
                  "kagglehub: OSError", "CXR_DATA", "Add Input", "data/README.md",
                  "MODE = quick"):  # fmt: skip
        assert words in str(error.value)


def test_a_failed_download_is_said_in_words_and_without_secrets(nowhere, capsys):
    def http_error(status):
        response = requests.Response()
        response.status_code = status
        return kagglehub.exceptions.KaggleApiHTTPError(f"?token={MARK}", response=response)

    for nowhere.side_effect, said in (
        (http_error(401), "401: Kaggle refuses the token .* remove ~/.kaggle/kaggle.json"),
        (http_error(503), "503: the network or Kaggle fails"),
        (requests.exceptions.ConnectionError(MARK), "no network"),
        (requests.exceptions.ReadTimeout(MARK), "Kaggle fails .* what has arrived is kept"),
        (kagglehub.exceptions.DataCorruptionError(MARK), "DataCorruptionError.* try again later"),
        (OSError(28, MARK), "look at the disk"),
        (RuntimeError(MARK), r"by hand \(data/README.md\)"),
    ):
        with pytest.raises(utils.UserError, match=said) as raised:
            find_images("kaggle")
        assert MARK not in f"{raised.value}{capsys.readouterr()}"
        assert raised.value.__context__ is None


def test_names_say_class_series_and_patient_or_are_refused():
    for kind, name, parsed in (
        ("PNEUMONIA", "person1_bacteria_2.jpeg", ("bacterial", "bacteria", 1)),
        ("PNEUMONIA", "person1372_virus_2365_1.jpeg", ("viral", "virus", 1372)),
        ("NORMAL", "IM-0115-0001.jpeg", ("normal", "IM", 115)),
        ("NORMAL", "NORMAL2-IM-0115-0001-0002.jpeg", ("normal", "NORMAL2-IM", 115)),
        ("NORMAL", "person1_virus_12.jpeg", None),
        ("NORMAL", "IM-0115-0001.jpeg.txt", None),
    ):
        assert utils.parse_name(kind, name) == parsed


def test_everything_that_is_not_kaggles_layout_is_named_at_once(tiny_set, make_config):
    root = tiny_set()
    normal = root / "train" / "NORMAL"
    (normal / "IM-0001-0001.jpeg").rename(normal / "scan7.jpeg")
    (normal / "IM-0002-0001.jpeg").rename(root / "train" / "PNEUMONIA" / "IM-0002-0001.jpeg")
    (normal / "loop").symlink_to("..")
    for path in (root / "test" / "NORMAL").iterdir():
        path.unlink()
    (root / "val").rename(root / "validation")
    with pytest.raises(utils.UserError) as error:
        utils.load_images(make_config(root))
    for words in ("train/NORMAL/scan7.jpeg: not a name", "train/NORMAL/loop: not a name",
                  "train/PNEUMONIA/IM-0002-0001.jpeg: not a name", "test/NORMAL: missing or empty",
                  "val/NORMAL: missing or empty", "val/PNEUMONIA: missing or empty",
                  "data/README.md"):  # fmt: skip
        assert words in str(error.value)


def test_the_sample_is_the_whole_test_set_and_640_training_images(sample_images):
    counts = sample_images.metadata["source_split"].value_counts().to_dict()
    assert counts == {"train": 640, "test": 624, "val": 16} and sample_images.label == "sample"
    assert sample_images.preparation == "nearest neighbours"  # known by its test images
    assert sample_images.is_resized and sample_images.pixels.shape == (1280, 224, 224)


def test_whatever_is_wrong_with_the_sample_is_named(tiny_set, monkeypatch):
    root = tiny_set()  # in its place
    monkeypatch.setattr(cxr.source, "SAMPLE", root)
    changed, missing, *_ = paths = sorted(root.glob("*/*/*"))
    sums = {path.relative_to(root).as_posix(): cxr.files.checksum(path) for path in paths}
    pd.Series(sums, name="sha256").to_csv(root / "manifest.csv", index_label="file")
    assert find_images("sample") == (root, "sample")
    changed.write_bytes(changed.read_bytes()[:-1] + b"x")
    missing.unlink()
    extra = missing.with_name("IM-9999-0001.jpeg")
    extra.touch()
    with pytest.raises(utils.UserError, match=r"(?s)\(3\).*git checkout data/sample") as error:
        find_images("sample")
    for path, reason in ((changed, "missing or damaged"), (missing, "missing or damaged"),
                         (extra, "not part of it")):  # fmt: skip
        assert f"{path.parent.name}/{path.name}: {reason}" in str(error.value)
    (root / "manifest.csv").write_bytes(b"\xff\xfe")
    with pytest.raises(utils.UserError, match="manifest.csv: missing or damaged"):
        find_images("sample")
