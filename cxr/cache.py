"""All images decoded and resized as the report does, once, into one array that is mapped."""

import contextlib
import dataclasses
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from cxr import files
from cxr.files import UserError, atomic_write, checksum, display_path, fingerprint
from cxr.source import KAGGLE_HANDLE, find_images, read_metadata

IMAGE_SIZE = 224  # pixels, the report's choice (section I)
MAX_PIXELS, MIN_SIDE = 60_000_000, 32  # the largest original has 5 million
# The first 12 digits of a test set's fingerprint: how it was resized.
KNOWN_TEST_IMAGES = {"f077acf65801": "nearest neighbours", "84de10644698": "a smoothed copy"}


def to_rgb(pixels):
    """One or more cached images, uint8 (..., 224, 224), as (..., 224, 224, 3)."""
    return pixels if pixels.shape[-1] == 3 else np.repeat(pixels[..., None], 3, axis=-1)


def downsample(pixels):
    """Means of 7 x 7 pixels, float32 (images, 1024), of cached images."""
    grey = to_rgb(pixels).mean(-1)
    return grey.reshape(len(grey), 32, 7, 32, 7).mean((2, 4)).reshape(len(grey), -1).astype("f4")


def read_image(path):
    """Decodes one image as `keras.utils.load_img(path, target_size=(224, 224),
    interpolation="nearest")` does (report, section I). Returns (pixels, size): uint8 (224, 224), or
    (224, 224, 3) where the channels differ; (width, height) of the original. An exception's message
    says why a file cannot be used."""
    with Image.open(path) as image:
        width, height = image.size
        if width * height > MAX_PIXELS or min(width, height) < MIN_SIDE:
            raise UserError(f"{width} x {height} pixels: too large or too small for an X-ray")
        if image.mode.startswith(("I", "F")):
            raise UserError("more than 8 bits per channel, which load_img would cut off at 255")
        # Nearest neighbours first, then colours: the same pixels, for a tenth of the work.
        small = image.resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.NEAREST)
        pixels = np.asarray(small if small.mode == "L" else small.convert("RGB"))
        if pixels.ndim == 3 and (pixels == pixels[..., :1]).all():
            pixels = np.ascontiguousarray(pixels[..., 0])
        return pixels, (width, height)


@dataclasses.dataclass(frozen=True)
class ImageCache:
    """The whole data set, decoded and resized."""

    metadata: pd.DataFrame  # of `read_metadata`, and of each original: width, height
    pixels: np.memmap  # uint8, (images, 224, 224), or with a last axis of 3 for colour; row by row
    label: str  # names the set in results: "kaggle", "sample" or the folder's own name
    fingerprint: str  # SHA-256 of names and pixels
    test_fingerprint: str  # of the test images alone
    root: Path | None  # of the files; None where the array of a downloaded set was found
    folder: Path  # of the cached array
    name: str  # the source in words, with no path of this machine
    is_resized: bool  # whether the set is a copy that somebody already brought to 224 x 224
    preparation: str  # how the images became 224 x 224: networks notice the difference

    def read(self, rows):
        """uint8 pixels of rows (numbers), mapped anew: what an open map has touched is memory."""
        return np.load(self.folder / "pixels.npy", mmap_mode="r")[rows]


def load_images(config, need_files=False):
    """Finds, checks and caches the images, or maps the array an earlier run cached: found again by
    names, sizes and times of the files, the sample by its manifest, and a downloaded set by name,
    so that a new Colab session downloads only if `need_files`. Returns an `ImageCache`; UserError
    where nothing is found, or for files that cannot be used (all of them)."""
    root, source = find_images(config.data, download=need_files)
    folder = config.cache_dir / f"images-{_key(root, source)}"
    if config.drive:
        config.drive.download(folder / "info.json")
    if not (images := _open_cache(folder, root)):
        root = root or find_images(config.data)[0]
        _build_cache(folder, root, source, read_metadata(root))
        images = _open_cache(folder, root)
        if config.drive:
            config.drive.upload(folder / "info.json")
    words = f"{len(images.metadata):,} from {images.name} (resized by {images.preparation})"
    print(f"images   {words}, fingerprint {images.fingerprint[:12]}")
    return images


def _key(root, source):
    if source != "folder":  # of a pinned version, or just checked to the byte
        return f"{source}-" + ("2" if source == "kaggle" else checksum(root / "manifest.csv")[:16])
    lines = ""
    for file in read_metadata(root)["file"]:
        with contextlib.suppress(OSError):  # a broken link: reported by name when it is read
            status = os.stat(root / file)
            lines += f"{file}\t{status.st_size}\t{status.st_mtime_ns}\n"
    return fingerprint(lines)[:16]


def _open_cache(folder, root):
    """The cached array of this folder, checked; None where there is none or it is damaged."""
    try:
        info = files.read_json(folder / "info.json")
        for name, expected in info.pop("files").items():
            if checksum(folder / name) != expected:
                raise UserError(f"{name} is not what was written")
        metadata = pd.read_csv(folder / "metadata.csv")
        pixels = np.load(folder / "pixels.npy", mmap_mode="r")
    except (OSError, UserError) as error:
        if not isinstance(error, FileNotFoundError):
            print(f"The cached images in {display_path(folder)} are damaged ({error}): made again.")
        return None
    names = {"kaggle": f"Kaggle, {KAGGLE_HANDLE}", "sample": "the sample in data/sample"}
    source = info.pop("source")
    info["label"] = root.name if source == "folder" else source  # today's, if it was renamed
    info["name"] = names.get(source, f"the folder {info['label']}")
    info["is_resized"] = bool((metadata[["width", "height"]] == IMAGE_SIZE).all(axis=None))
    known = KNOWN_TEST_IMAGES.get(info["test_fingerprint"][:12], "an unknown copy")
    info["preparation"] = known if info["is_resized"] else "nearest neighbours"
    return ImageCache(metadata, pixels, root=root, folder=folder, **info)


def _build_cache(folder, root, source, metadata):
    """Reads every file and writes array, metadata, info.json (last)."""

    def read(file):
        try:
            return read_image(root / file)
        except Exception as error:  # Pillow raises many kinds; each file's is reported
            reason = str(error).replace(str(root / file), "the file").replace("\n", " ")
            return f"{file}: {reason or type(error).__name__}"

    with atomic_write(folder / "pixels.npy", size=len(metadata) * IMAGE_SIZE**2) as part:
        pixels = np.empty((len(metadata), IMAGE_SIZE, IMAGE_SIZE), np.uint8)
        with ThreadPoolExecutor(min(8, os.cpu_count() or 2)) as pool:
            found, sizes, unusable = pool.map(read, metadata["file"]), [], []
            for result in files.progress(found, "reading images", len(metadata)):
                if isinstance(result, str):
                    unusable.append(result)
                    continue
                image, size = result
                pixels = to_rgb(pixels) if image.ndim == 3 else pixels  # all, once one is
                pixels[len(sizes)] = to_rgb(image) if pixels.ndim == 4 else image
                sizes.append(size)
        if unusable:
            lines = f"{len(unusable)} of {len(metadata)} files in {root} cannot be used:", *unusable
            raise UserError("\n  ".join(lines) + "\nFetch new ones (data/README.md) or move these.")
        np.save(part, pixels)
    metadata = metadata.join(pd.DataFrame(sizes, columns=["width", "height"]))
    with atomic_write(folder / "metadata.csv") as part:
        metadata.to_csv(part, index=False)
    test = (metadata["source_split"] == "test").to_numpy()
    files.write_json(folder / "info.json", {
        "source": source, "fingerprint": fingerprint("\n".join(metadata["file"]), pixels),
        "test_fingerprint": fingerprint("\n".join(metadata["file"][test]), pixels[test]),
        "files": {name: checksum(folder / name) for name in ("pixels.npy", "metadata.csv")},
    })  # fmt: skip
