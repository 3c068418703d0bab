"""What a frozen network makes of every image, as it is and mirrored, computed once."""

import contextlib
import hashlib

import keras
import numpy as np
import tensorflow as tf

from cxr.files import atomic_write, check_space, progress
from cxr.pipeline import make_dataset

BATCH = 32


class FrozenFeatures:
    """The features of both versions of every image, a source for `make_dataset`.

    The frozen part of notebooks 04 and 05 sees only these two versions: an epoch draws one of them
    per image, the same training as with the frozen part inside the model.

    Args:
        config, images: `Config`, `ImageCache`.
        rows: of `images.metadata`, the training and validation images at least.
        frozen: keras.Model from float32 (batch, 224, 224, 3) in [0, 1] to features of some
            `shape`; it is run in inference mode.
        name: for the progress bar and for `path`, a float16 .npy file, (images, 2, *shape).
    """

    def __init__(self, config, images, rows, frozen, name):
        self.images, self.frozen, self.name = images, frozen, name
        self.rows = rows.sort_index()  # one file serves the splits of all seeds
        self.shape = tuple(frozen.output.shape[1:])
        digest = hashlib.sha256(f"{images.fingerprint} {','.join(self.rows['file'])}".encode())
        for layer in frozen.layers:
            if isinstance(layer, keras.layers.Rescaling):
                digest.update(f"{layer.scale} {layer.offset}".encode())
        for weights in frozen.get_weights():
            digest.update(np.ascontiguousarray(weights))
        self.fingerprint = digest.hexdigest()[:16]
        self.path = config.cache_dir / f"features-{name}-{self.fingerprint}.npy"

    def compute(self):
        """Computes the features, or finds them in the cache. UserError where the disk has too
        little room; the message says how much is needed."""
        shape = (len(self.rows), 2, *self.shape)
        with contextlib.suppress(OSError, ValueError, EOFError):  # not there, or cut off
            if np.load(self.path, mmap_mode="r").shape == shape:
                return
        size = 2 * int(np.prod(shape))
        check_space(self.path.parent, size, f"The features of {self.name}")
        header = {"descr": "<f2", "fortran_order": False, "shape": shape}
        with (
            atomic_write(self.path) as part,
            open(part, "wb") as file,
            progress(None, f"features of {self.name}", len(self.rows)) as bar,
        ):
            np.lib.format.write_array_header_1_0(file, header)
            for pixels, _ in make_dataset(self.images, self.rows, 3, BATCH):
                both = tf.concat([pixels, tf.reverse(pixels, [2])], axis=0)
                result = self.frozen.predict_on_batch(both).astype("<f2")
                file.write(np.stack(np.split(result, 2), axis=1).tobytes())
                bar.update(len(pixels))
        print(f"features of {self.name}: {shape} float16, {size / 1e9:.2f} GB, computed once")

    def read(self, rows, flipped=0):
        """float16 (batch, *shape) of rows (numbers in `metadata`), mirrored where `flipped`."""
        positions = self.rows.index.get_indexer(rows)
        if (positions < 0).any():
            raise KeyError("images of which no features were computed")
        return np.load(self.path, mmap_mode="r")[positions, np.asarray(flipped, int)]
