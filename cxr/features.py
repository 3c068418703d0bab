"""What a frozen network makes of every image, as it is and mirrored, computed once."""

import dataclasses
import hashlib
from pathlib import Path

import keras
import numpy as np
import pandas as pd
import tensorflow as tf

from cxr.files import atomic_write, check_space, progress
from cxr.pipeline import make_dataset

BATCH = 32


@dataclasses.dataclass(frozen=True)
class Features:
    """The features of both versions of every image. The frozen part of notebooks 04 and 05 sees
    only these two: an epoch draws one of them per image, the same training as with the frozen
    part inside the model.

    Attributes:
        path: float16 .npy file, (images, 2, *shape); version 1 is the mirrored one.
        rows: the rows of `metadata` it holds, in its order.
        shape: of one image's features.
        fingerprint: names what made it: frozen weights and layers, images, scaling.
    """

    path: Path
    rows: pd.DataFrame
    shape: tuple
    fingerprint: str

    @property
    def pixels(self):
        return np.load(self.path, mmap_mode="r")

    def read(self, rows, flipped=None):
        """float16 (batch, *shape) of rows (numbers in `metadata`), mirrored where `flipped`."""
        positions = self.rows.index.get_indexer(rows)
        version = 0 if flipped is None else flipped.astype(int)
        return np.load(self.path, mmap_mode="r")[positions, version]


def extract_features(config, images, rows, frozen, name):
    """Computes the features of both versions of all images, or finds them in the cache.

    Args:
        config: `Config`.
        images: `ImageCache`.
        rows: rows of `images.metadata`, of all splits.
        frozen: keras.Model from float32 (batch, 224, 224, 3) in [0, 1] to features; it is run
            in inference mode.
        name: for the file's name and the progress bar.

    Returns:
        `Features`.

    Raises:
        UserError: too little free disk; the message says how much is needed.
    """
    digest = hashlib.sha256(f"{images.fingerprint} {','.join(rows['file'])}".encode())
    for layer in frozen.layers:
        if isinstance(layer, keras.layers.Rescaling):
            digest.update(f"{layer.scale} {layer.offset}".encode())
    for weights in frozen.get_weights():
        digest.update(np.ascontiguousarray(weights))
    fingerprint, shape = digest.hexdigest()[:16], tuple(frozen.output.shape[1:])
    path = config.cache_dir / f"features-{name}-{fingerprint}.npy"
    features = Features(path, rows, shape, fingerprint)
    full_shape = (len(rows), 2, *shape)
    if not _is_complete(path, full_shape):
        check_space(config.cache_dir, 2 * np.prod(full_shape), f"The features of {name}")
        header = {"descr": "<f2", "fortran_order": False, "shape": full_shape}
        with (
            atomic_write(path) as part,
            open(part, "wb") as file,
            progress(range(len(rows)), f"features of {name}") as bar,
        ):
            np.lib.format.write_array_header_1_0(file, header)
            for pixels, _ in make_dataset(images, rows, 3, BATCH):
                both = tf.concat([pixels, tf.reverse(pixels, [2])], axis=0)
                result = frozen.predict_on_batch(both).astype("<f2")
                file.write(np.stack(np.split(result, 2), axis=1).tobytes())
                bar.update(len(pixels))
    print(f"features {name}: {full_shape} float16, {path.stat().st_size / 1e9:.2f} GB")
    return features


def _is_complete(path, shape):
    try:
        return np.load(path, mmap_mode="r").shape == shape
    except (OSError, ValueError):  # not there, or cut off
        return False
