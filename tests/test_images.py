"""Where images come from, what their names say, every unusable file; the cached array."""

import os
import shutil
import sys
from pathlib import Path
from unittest import mock

import kagglehub.exceptions
import keras
import numpy as np
import pandas as pd
import pytest
import requests
import small
from PIL import Image

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
    renamed = root.rename(tmp_path.with_name("renamed"))
    assert utils.load_images(make_config(renamed, out=renamed / "out")).label == "renamed"


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


NORMAL = "train/NORMAL/IM-0001-0001.jpeg"


def assert_same_pixels(images):
    for number, file in images.metadata["file"].items():
        size = {"target_size": (224, 224), "interpolation": "nearest"}
        theirs = keras.utils.load_img(images.root / file, **size)
        assert np.array_equal(utils.to_rgb(images.pixels[number]), np.asarray(theirs)), file


def noise(*shape):
    return np.random.default_rng(1).integers(0, 256, shape, np.uint8)


L, RGB, RGBA = (Image.fromarray(noise(50, 60, *channels)) for channels in ((), (3,), (4,)))
GREY = (L, "PNG"), (L.convert("RGB"), "JPEG"), (L.convert("P"), "PNG")
COLOUR = (RGB, "JPEG"), (RGBA, "PNG"), (RGB.convert("CMYK"), "JPEG"), (RGB.quantize(16), "PNG")
UPSIDE_DOWN = Image.Exif()
UPSIDE_DOWN[0x0112] = 3


def test_pixels_are_those_of_load_img(tiny_set, make_config):
    root = tiny_set()
    for odd, shape in (GREY, ()), (GREY + COLOUR, (3,)):
        paths = sorted(root.glob("*/*/*"))
        L.save(paths.pop(), "JPEG", exif=UPSIDE_DOWN)
        for (image, kind), path in zip(odd, paths, strict=False):
            image.save(path, kind)
        images = utils.load_images(make_config(root))
        assert_same_pixels(images)
        assert images.pixels.shape == (24, 224, 224, *shape) and images.pixels.dtype == np.uint8
        assert isinstance(images.pixels, np.memmap)
        assert not images.is_resized
        assert set(images.metadata["width"]) == {60} and set(images.metadata["height"]) == {50}


# In a JPEG's header, height and width in two bytes each: 50 and 60, and 8000 each.
CLAIM = bytes([0, 50, 0, 60]), bytes([31, 64, 31, 64])
UNUSABLE = [
    (lambda p: p.write_bytes(p.read_bytes()[:-400]), "truncated"),
    (lambda p: p.write_text("see you at lunch"), "cannot identify"),
    (lambda p: Image.fromarray(noise(50, 60).astype(np.uint16)).save(p, "PNG"), "8 bits"),
    (lambda p: Image.new("L", (31, 200)).save(p, "JPEG"), "31 x 200 pixels"),
    (lambda p: p.write_bytes(p.read_bytes().replace(*CLAIM)), "8000 x 8000 pixels"),
    (lambda p: (p.unlink(), p.mkdir()), "directory"),
]


def test_all_unusable_files_are_named_at_once_and_nothing_is_kept(tiny_set, make_config):
    root = tiny_set()
    paths = sorted(root.glob("*/*/*"))[::4]
    for (damage, _), path in zip(UNUSABLE, paths, strict=True):
        damage(path)
    config = make_config(root)
    with pytest.raises(utils.UserError, match="data/README.md") as error:
        utils.load_images(config)
    lines = str(error.value).splitlines()
    assert f"6 of 24 files in {root} cannot be used" in lines[0]
    for (_, reason), path, line in zip(UNUSABLE, paths, lines[1:7], strict=True):
        assert line.startswith(f"  {path.relative_to(root)}: ") and reason in line
    assert not [path for path in config.cache_dir.rglob("*") if path.is_file()]


def test_too_little_space_is_said_before_anything_is_read(config, monkeypatch):
    usage = cxr.files.shutil.disk_usage(config.output_dir)._replace(free=1000)
    monkeypatch.setattr(cxr.files.shutil, "disk_usage", lambda _: usage)
    monkeypatch.setattr(cxr.cache, "read_image", lambda _: 1 / 0)
    with pytest.raises(utils.UserError, match="pixels.npy takes 1 MB, more than is free.*CXR_OUT"):
        utils.load_images(config)


def test_the_array_is_found_again_or_made_anew(tiny_set, make_config, tmp_path, monkeypatch):
    root = tiny_set(tmp_path / "Données d'été (copie 1)")
    config = make_config(root, out=tmp_path / "résultats à moi")
    first = utils.load_images(config)
    with monkeypatch.context() as patch:
        patch.setattr(cxr.cache, "read_image", lambda _: 1 / 0)
        again = utils.load_images(config)
    assert again.fingerprint == first.fingerprint and again.metadata.equals(first.metadata)
    size = (root / NORMAL).stat().st_size
    Image.fromarray(noise(50, 60)).save(root / NORMAL, "JPEG", quality=50)
    with open(root / NORMAL, "ab") as file:
        file.write(bytes(size - file.tell()))  # the same size, at another time
    changed = utils.load_images(config)
    assert changed.fingerprint != first.fingerprint
    assert changed.test_fingerprint == first.test_fingerprint
    assert_same_pixels(changed)
    info = (changed.folder / "info.json").read_text()
    assert str(tmp_path) not in info, "a path of this machine"


def test_a_damaged_array_is_made_anew(config, capsys):
    first = utils.load_images(config)
    good = small.contents(first.folder)
    for name in ("pixels.npy", "metadata.csv", "info.json"):
        for damage in (small.flip_a_bit, Path.unlink):
            damage(first.folder / name)
            capsys.readouterr()
            assert utils.load_images(config).metadata.equals(first.metadata)
            assert small.contents(first.folder) == good
            assert ("are damaged" in capsys.readouterr().out) == (damage is small.flip_a_bit), name


@pytest.mark.slow
@pytest.mark.skipif("CXR_TEST_REAL" not in os.environ, reason="CXR_TEST_REAL names no whole copy")
def test_the_whole_data_set_is_that_of_the_published_runs(make_config):
    images = utils.load_images(make_config(os.environ["CXR_TEST_REAL"]))
    published = utils.find_published_run("01_data").info
    assert images.fingerprint == published["images"]["fingerprint"]
    counts = pd.crosstab(images.metadata["class3"], images.metadata["source_split"])
    assert counts.to_dict() == published["counts"]
