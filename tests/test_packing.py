"""What happens to the files: pixels as load_img gives them, and every kind of broken input."""

import json
import os
import signal
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import keras
import numpy as np
import pytest
from PIL import Image

import utils

NORMAL = "train/NORMAL/IM-0001-0001.jpeg"
PNEUMONIA = "train/PNEUMONIA/person1_bacteria_1.jpeg"


def as_load_img(path):
    image = keras.utils.load_img(path, target_size=(224, 224), interpolation="nearest")
    return np.asarray(image)


def assert_same_pixels(images):
    for number, file in enumerate(images.index["file"]):
        ours = utils.three_channels(images.pixels[number])
        assert np.array_equal(ours, as_load_img(images.root / file)), file


def test_pixels_equal_load_img(tiny_set, make_run):
    root = tiny_set()
    images = utils.open_images(make_run(root))
    assert images.pixels.shape == (24, 224, 224) and images.pixels.dtype == np.uint8
    assert isinstance(images.pixels, np.memmap)
    assert_same_pixels(images)


def noise(*shape):
    return np.random.default_rng(1).integers(0, 256, shape, np.uint8)


def save_rgba(path):
    Image.fromarray(noise(50, 60, 4), "RGBA").save(path, "PNG")


def save_rotated(path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(noise(50, 60)).save(path, "JPEG", exif=exif)


ODD_BUT_GOOD = {
    "PNG named jpeg": lambda path: Image.fromarray(noise(50, 60)).save(path, "PNG"),
    "colour": lambda path: Image.fromarray(noise(50, 60, 3)).save(path, "JPEG"),
    "CMYK": lambda path: Image.fromarray(noise(50, 60, 4), "CMYK").save(path, "JPEG"),
    "RGBA": save_rgba,
    "EXIF-rotated": save_rotated,
    "palette": lambda path: Image.fromarray(noise(50, 60)).convert("P").save(path, "PNG"),
}


@pytest.mark.filterwarnings("ignore:.*'mode' parameter:DeprecationWarning")
@pytest.mark.parametrize("kind", ODD_BUT_GOOD)
@pytest.mark.parametrize("file", [NORMAL, "test/NORMAL/IM-0001-0001.jpeg"])
def test_odd_files_give_what_load_img_gives(tiny_set, make_run, kind, file):
    root = tiny_set()
    ODD_BUT_GOOD[kind](root / file)
    images = utils.open_images(make_run(root))
    assert_same_pixels(images)
    grey = kind in ("PNG named jpeg", "EXIF-rotated", "palette")
    assert images.pixels.shape[3:] == (() if grey else (3,))


def claim_a_huge_size(path):
    """Rewrites the height and width in the JPEG's frame header."""
    content = path.read_bytes()
    at = content.index(b"\xff\xc0") + 5
    path.write_bytes(content[:at] + struct.pack(">HH", 20_000, 20_000) + content[at + 4 :])


def link_to_itself(path):
    path.unlink()
    path.symlink_to(path.name)


BROKEN = {
    "truncated": (lambda p: p.write_bytes(p.read_bytes()[:-400]), "truncated"),
    "zero bytes": (lambda p: p.write_bytes(b""), "cannot identify"),
    "text": (lambda p: p.write_text("see you at lunch"), "cannot identify"),
    "16 bit": (
        lambda p: Image.fromarray(noise(50, 60).astype(np.uint16) * 200).save(p, "PNG"),
        "more than 8 bits",
    ),
    "one pixel": (lambda p: Image.new("L", (1, 1)).save(p, "JPEG"), "1 x 1 pixels: too small"),
    "bomb": (claim_a_huge_size, "400000000 pixels"),
    "symlink loop": (link_to_itself, "symbolic links"),
    "folder with an image's name": (lambda p: (p.unlink(), p.mkdir()), "directory"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_file_is_named(tiny_set, make_run, kind):
    root, run = tiny_set(), make_run(tiny_set())
    damage, reason = BROKEN[kind]
    damage(root / NORMAL)
    with pytest.raises(utils.CxrError, match=f"(?s)1 of 24 .*{NORMAL}: .*({reason})"):
        utils.open_images(run)
    assert not list(run.cache.rglob("*.uint8")) and not list(run.cache.rglob("*.part"))


def test_all_broken_files_are_listed_at_once_before_anything_is_kept(tiny_set, make_run):
    root = tiny_set()
    files = [NORMAL, PNEUMONIA, "test/NORMAL/IM-0002-0001.jpeg", "val/NORMAL/IM-0003-0001.jpeg"]
    for file in files:
        (root / file).write_bytes(b"")
    with pytest.raises(utils.CxrError) as error:
        utils.open_images(make_run(root))
    assert all(file in str(error.value) for file in files)
    assert "4 of 24" in str(error.value) and "data/README.md" in str(error.value)


@pytest.mark.skipif(sys.platform == "win32", reason="needs Unix permissions")
def test_a_file_that_may_not_be_read_is_named(tiny_set):
    with tempfile.TemporaryDirectory() as folder:  # pytest's own folders shut others out
        os.chmod(folder, 0o777)
        root = tiny_set(Path(folder) / "set")
        (root / NORMAL).chmod(0)
        out = Path(folder) / "out"
        out.mkdir()
        out.chmod(0o777)
        if os.geteuid() == 0:  # root reads everything: be somebody else for a moment
            os.seteuid(65534)
        try:
            with pytest.raises(utils.CxrError, match=f"{NORMAL}: .*[Pp]ermission denied"):
                utils.open_images(utils.setup(data=str(root), out=str(out)))
        finally:
            if os.getuid() == 0:
                os.seteuid(0)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (
            lambda root: (root / NORMAL).rename(root / "train/NORMAL/scan7.jpeg"),
            "train/NORMAL/scan7.jpeg: not a name",
        ),
        (
            lambda root: (root / NORMAL).rename(root / "train/PNEUMONIA/IM-0001-0001.jpeg"),
            "train/PNEUMONIA/IM-0001-0001.jpeg: not a name",
        ),
        (
            lambda root: [p.unlink() for p in (root / "test/NORMAL").iterdir()],
            "test/NORMAL: empty folder",
        ),
        (lambda root: (root / "val").rename(root / "validation"), "val/NORMAL: No such file"),
        (
            lambda root: (
                (root / "val").rename(root / "elsewhere"),
                (root / "val").symlink_to("val"),
            ),
            "val/NORMAL: Too many levels of symbolic links",
        ),
        (
            lambda root: (root / "train/NORMAL/loop").symlink_to(".."),
            "train/NORMAL/loop: not a name",
        ),
    ],
    ids=["unknown name", "wrong folder", "empty class", "missing split", "loop", "inner loop"],
)
def test_a_layout_that_is_not_kaggles_is_named(tiny_set, make_run, damage, said):
    root = tiny_set()
    damage(root)
    with pytest.raises(utils.CxrError) as error:
        utils.open_images(make_run(root))
    assert said in str(error.value) and "data/README.md" in str(error.value)


def test_spaces_and_accents_in_the_path(tiny_set, make_run, tmp_path):
    root = tiny_set(tmp_path / "Données d'été (copie 1)" / "chest xray")
    run = make_run(root, out=tmp_path / "résultats à moi")
    first = utils.open_images(run)
    assert utils.open_images(run).fingerprint == first.fingerprint


def pack_in_another_process(root, out, before=""):
    code = f"import resource, time, utils\n{before}\nutils.open_images(utils.setup())"
    environment = dict(os.environ, CXR_DATA=str(root), CXR_OUT=str(out))
    return subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=utils.PROJECT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_full_disk_while_packing(tiny_set, tmp_path, make_run):
    root, out = tiny_set(), tmp_path / "out"
    limit = f"resource.setrlimit(resource.RLIMIT_FSIZE, ({20 * 224 * 224}, resource.RLIM_INFINITY))"
    process = pack_in_another_process(root, out, before=limit)
    errors = process.communicate(timeout=120)[1]
    assert process.returncode == 1 and "No space left while writing" in errors
    assert "CXR_OUT" in errors
    assert not [p for p in (out / "cache").rglob("*") if p.is_file()]
    assert len(utils.open_images(make_run(root, out=out)).index) == 24


def test_too_little_free_space_is_said_before_packing(tiny_set, make_run, monkeypatch):
    run = make_run(tiny_set())
    usage = utils.shutil.disk_usage(run.cache)._replace(free=1000)
    monkeypatch.setattr(utils.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(utils.CxrError, match="more than is free"):
        utils.open_images(run)


def test_kill_9_while_packing_leaves_nothing_that_is_taken_for_whole(tiny_set, tmp_path, make_run):
    root, out = tiny_set(), tmp_path / "out"
    slow = "read = utils.read_image\nutils.read_image = lambda p: time.sleep(0.5) or read(p)"
    process = pack_in_another_process(root, out, before=slow)
    deadline = time.monotonic() + 120
    while not list(out.rglob("*.part")):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.02)
    time.sleep(0.7)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    left = list(out.rglob("*.part"))
    assert left and not list(out.rglob("*.uint8")) and not list(out.rglob("*.json"))
    images = utils.open_images(make_run(root, out=out))
    assert_same_pixels(images)
    for part in left:  # tidied up once it is clear that nobody writes it any more
        os.utime(part, (0, 0))
    with utils.atomic(left[0].parent / "next") as part:
        part.touch()
    assert not list(out.rglob("*.part"))


def test_the_packed_file_is_found_again_and_renewed_when_the_files_change(tiny_set, make_run):
    root = tiny_set()
    run = make_run(root)
    first = utils.open_images(run)
    before = {p: p.stat().st_mtime_ns for p in run.cache.iterdir()}
    again = utils.open_images(run)
    assert {p: p.stat().st_mtime_ns for p in run.cache.iterdir()} == before
    assert again.fingerprint == first.fingerprint and again.index.equals(first.index)
    Image.fromarray(noise(50, 60)).save(root / NORMAL, "JPEG")
    changed = utils.open_images(run)
    assert changed.fingerprint != first.fingerprint
    assert_same_pixels(changed)


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("suffix", [".uint8", ".json"])
@pytest.mark.parametrize(
    "damage", [flip_a_bit, lambda p: p.write_bytes(p.read_bytes()[:-100]), lambda p: p.unlink()]
)
def test_a_damaged_packed_file_is_packed_anew(tiny_set, make_run, capsys, suffix, damage):
    run = make_run(tiny_set())
    first = utils.open_images(run)
    pixels = np.array(first.pixels)
    [path] = run.cache.glob(f"images-*{suffix}")
    damage(path)
    again = utils.open_images(run)
    assert again.fingerprint == first.fingerprint and np.array_equal(again.pixels, pixels)
    assert again.index.equals(first.index)


def test_the_sidecar_names_no_path_of_the_machine(tiny_set, make_run, tmp_path):
    run = make_run(tiny_set())
    utils.open_images(run)
    [sidecar] = run.cache.glob("images-*.json")
    assert str(tmp_path) not in sidecar.read_text()
    assert set(json.loads(sidecar.read_text())["index"]) >= {"file", "patient", "width"}


def test_identical_images_are_found(tiny_set, make_run):
    root = tiny_set()
    (root / PNEUMONIA).write_bytes((root / NORMAL).read_bytes())
    twins = utils.identical_images(utils.open_images(make_run(root)))
    assert set(twins["file"]) == {NORMAL, PNEUMONIA} and set(twins["group"]) == {0}
