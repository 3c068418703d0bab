"""All images decoded and resized once, in one array that is mapped instead of read."""

import contextlib
import dataclasses
import hashlib
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd

from cxr import files
from cxr.files import UserError, atomic_write, checksum, display_path
from cxr.images import IMAGE_SIZE, read_image, to_rgb
from cxr.index import read_metadata
from cxr.source import KAGGLE_HANDLE, find_images

KNOWN_TEST_IMAGES = {  # first 12 digits of a test set's fingerprint: how it was resized
    "f077acf65801": "nearest neighbours",
    "84de10644698": "a smoothed copy",
}


@dataclasses.dataclass(frozen=True)
class ImageCache:
    """The whole data set, decoded and resized once."""

    metadata: pd.DataFrame  # of `read_metadata`, and of each original: width, height, mode
    pixels: np.memmap  # uint8, (images, 224, 224), or with a last axis of 3 for colour; row by row
    source: str  # "kaggle", "folder" or "sample"
    label: str  # names the set in results: "kaggle", "sample" or the folder's own name
    fingerprint: str  # SHA-256 of names and pixels
    test_fingerprint: str  # of the test images alone
    root: Path | None  # of the files; None in a Colab session that found the array on Drive
    folder: Path  # of the cached array

    @property
    def name(self):
        """The source in words, with no path of this machine."""
        names = {"kaggle": f"Kaggle, {KAGGLE_HANDLE}", "sample": "the sample in data/sample"}
        return names.get(self.source, f"the folder {self.label}")

    @property
    def is_resized(self):
        """Whether the set is a copy that somebody already brought to 224 x 224."""
        return bool((self.metadata[["width", "height"]] == IMAGE_SIZE).all(axis=None))

    @property
    def preparation(self):
        """How the images became 224 x 224, in words: networks notice the difference."""
        if not self.is_resized:
            return "nearest neighbours"
        return KNOWN_TEST_IMAGES.get(self.test_fingerprint[:12], "an unknown copy")

    def read(self, rows):
        """uint8 pixels of some rows (numbers), in memory. Mapped anew each time: what a map has
        touched counts as memory as long as it is open."""
        return np.load(self.folder / "pixels.npy", mmap_mode="r")[rows]


def load_images(config, need_files=False):
    """Finds, checks and caches the images, or maps the array an earlier run cached.

    The array is found again by names, sizes and times of the files; the sample by its manifest and
    a downloaded set by name, so that a new Colab session downloads only if `need_files`. Returns an
    `ImageCache`; UserError where nothing is found, or for files that cannot be used (all of them).
    """
    started = time.perf_counter()
    root, source = find_images(config.data, download=need_files)
    folder = config.cache_dir / f"images-{_key(root, source)}"
    images = _open_cache(config, folder, root)
    if images is None:
        root, source = (root, source) if root else find_images(config.data)
        _build_cache(folder, root, source, read_metadata(root))
        images = _open_cache(config, folder, root)
        if config.drive:
            config.drive.upload(folder / "info.json")
    print(
        f"images   {len(images.metadata):,} from {images.name} (resized by {images.preparation}), "
        f"fingerprint {images.fingerprint[:12]}, ready in {time.perf_counter() - started:.1f} s"
    )
    return images


def _key(root, source):
    if source == "kaggle":
        return "kaggle-2"
    if source == "sample":  # just checked to the byte
        return f"sample-{checksum(root / 'manifest.csv')[:16]}"
    digest = hashlib.sha256()
    for file in read_metadata(root)["file"]:
        with contextlib.suppress(OSError):  # a broken link: reported by name when it is read
            status = os.stat(root / file)
            digest.update(f"{file}\t{status.st_size}\t{status.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:16]


def _open_cache(config, folder, root):
    """The cached array of this folder, checked; None where there is none or it is damaged."""
    if config.drive:
        config.drive.download(folder / "info.json")
    try:
        info = files.read_json(folder / "info.json")
        for name, expected in info.pop("files").items():
            if checksum(folder / name) != expected:
                raise UserError(f"{name} is not what was written")
        metadata = pd.read_csv(folder / "metadata.csv")
        pixels = np.load(folder / "pixels.npy", mmap_mode="r")
        return ImageCache(metadata, pixels, root=root, folder=folder, **info)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, UserError) as error:
        print(f"The cached images in {display_path(folder)} are damaged ({error}): made again.")
        (folder / "info.json").unlink(missing_ok=True)
        return None


def _build_cache(folder, root, source, metadata):
    """Reads every file of `metadata` and writes array, metadata, info.json (last)."""
    folder.mkdir(parents=True, exist_ok=True)
    files.check_space(folder, len(metadata) * IMAGE_SIZE**2, "The cached array of images")

    def read(file):
        try:
            return read_image(root / file)
        except Exception as error:  # Pillow raises many kinds; each file's is reported
            reason = str(error).replace(str(root / file), "the file").replace("\n", " ")
            return f"{file}: {reason or type(error).__name__}"

    with ThreadPoolExecutor(max(2, min(8, os.cpu_count() or 2))) as pool:
        found = pool.map(read, metadata["file"])
        results = list(files.progress(found, "reading images", len(metadata)))
    if unusable := [result for result in results if isinstance(result, str)]:
        raise UserError(f"{len(unusable)} of {len(metadata)} files in {root} cannot be used:\n  "
                        + "\n  ".join(unusable) + "\nFetch them again (data/README.md), or move "
                        "them out of the folder.")  # fmt: skip
    arrays, sizes, modes = zip(*results, strict=True)
    colour = any(pixels.ndim == 3 for pixels in arrays)
    pixels = np.stack([to_rgb(pixels) if colour else pixels for pixels in arrays])
    metadata = metadata.join(pd.DataFrame(sizes, columns=["width", "height"])).assign(mode=modes)
    with atomic_write(folder / "pixels.npy") as part:
        np.save(part, pixels)
    with atomic_write(folder / "metadata.csv") as part:
        metadata.to_csv(part, index=False)
    test = (metadata["source_split"] == "test").to_numpy()
    files.write_json(folder / "info.json", {
        "source": source,
        "label": root.name if source == "folder" else source,
        "fingerprint": _fingerprint(metadata["file"], pixels),
        "test_fingerprint": _fingerprint(metadata["file"][test], pixels[test]),
        "files": {name: checksum(folder / name) for name in ("pixels.npy", "metadata.csv")},
    })  # fmt: skip


def _fingerprint(names, pixels):
    digest = hashlib.sha256("\n".join(names).encode())
    digest.update(np.ascontiguousarray(pixels))
    return digest.hexdigest()
