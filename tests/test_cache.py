"""The cached array: pixels as load_img gives them, every unusable file, damage and changes."""

import os
from pathlib import Path

import keras
import numpy as np
import pandas as pd
import pytest
import small
from PIL import Image

import cxr
import utils

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
