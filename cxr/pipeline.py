"""Batches for `model.fit`, from cached pixels or from what a frozen network makes of them."""

import contextlib

import numpy as np
import pandas as pd
import tensorflow as tf

from cxr.cache import ImageCache
from cxr.files import atomic_write, fingerprint, progress
from cxr.source import CLASS_NAMES

BATCH = 32  # images per step of a frozen network


class EpochShuffle:
    """The order of the training images and their flips, a function of seed and epoch alone, so
    that an interrupted training that goes on in epoch 5 sees what it would have seen.
    `TrainingCheckpoint` sets `epoch`, from 0; without one every epoch has the same order."""

    def __init__(self, seed):
        self.seed, self.epoch = seed, 0
        self.fingerprint = ""  # names the images, labels and batches of the dataset it is given to

    def draw(self, count):
        """(a permutation of range(count), int64; which images are mirrored, bool (count,))."""
        order = np.random.default_rng([self.seed, self.epoch]).permutation(count)
        return order, np.random.default_rng([self.seed, self.epoch, 1]).integers(0, 2, count) == 1


def one_hot(rows, num_classes):
    """The classes of `rows` as float32 (images, classes), in the order of CLASS_NAMES."""
    codes = pd.Categorical(rows[f"class{num_classes}"], CLASS_NAMES[num_classes]).codes
    return np.eye(num_classes, dtype="float32")[codes]


def make_dataset(source, rows, num_classes, batch_size, shuffle=None):
    """tf.data.Dataset of (float32 (batch, 224, 224, 3) in [0, 1], or (batch, *features' shape);
    one-hot float32 (batch, 2 or 3 classes)). Only images under way are in memory as floats.

    Args:
        source: `ImageCache` for pixels, `FrozenFeatures` for what a network made of them.
        rows: the rows of `metadata` to use, in this order; the last batch may be smaller.
        shuffle: `EpochShuffle` for a new order every epoch (and, of features, new flips: pixels
            are flipped by the model's own layer); None to keep the order.
    """
    count, numbers, labels = len(rows), rows.index.to_numpy(), one_hot(rows, num_classes)
    is_pixels = isinstance(source, ImageCache)
    if shuffle:
        content = f"{source.fingerprint} {num_classes} {batch_size} {','.join(rows['file'])}"
        shuffle.fingerprint = fingerprint(content)[:16]

    def batches():
        order, flips = shuffle.draw(count) if shuffle else (np.arange(count), np.zeros(count, bool))
        for start in range(0, count, batch_size):
            chosen = order[start : start + batch_size]
            which = (numbers[chosen],) if is_pixels else (numbers[chosen], flips[chosen])
            yield source.read(*which), labels[chosen]

    def to_floats(values, label):
        if is_pixels and values.shape.rank == 3:  # grey: three equal channels
            values = tf.image.grayscale_to_rgb(values[..., tf.newaxis])
        return tf.cast(values, tf.float32) / (255.0 if is_pixels else 1.0), label

    shape, dtype = (source.pixels.shape[1:], tf.uint8) if is_pixels else (source.shape, tf.float16)
    signature = (tf.TensorSpec((None, *shape), dtype), tf.TensorSpec((None, num_classes)))
    dataset = tf.data.Dataset.from_generator(batches, output_signature=signature)
    dataset = dataset.apply(tf.data.experimental.assert_cardinality(-(-count // batch_size)))
    return dataset.prefetch(2).map(to_floats).prefetch(1)


class FrozenFeatures:
    """The features of some images as they are and mirrored, a source for `make_dataset`: an epoch
    draws one of the two per image, the same training as with the frozen part inside the model.

    Args:
        config, images, rows: `Config`, `ImageCache`, the rows of its metadata that will be used.
        frozen: keras.Model from float32 (batch, 224, 224, 3) in [0, 1] to features of some `shape`.
        name: for the progress bar and for `path`, a float16 .npy file, (images, 2, *shape).
    """

    def __init__(self, config, images, rows, frozen, name):
        self.images, self.frozen, self.name = images, frozen, name
        self.rows = rows.sort_index()  # one file serves the splits of all seeds
        self.shape = tuple(frozen.output.shape[1:])
        content = f"{images.fingerprint} {','.join(self.rows['file'])}"
        scales = (f"{x.scale} {x.offset}" for x in frozen.layers if type(x).__name__ == "Rescaling")
        self.fingerprint = fingerprint(content, *scales, *frozen.get_weights())[:16]
        self.path = config.cache_dir / f"features-{name}-{self.fingerprint}.npy"

    def compute(self):
        """Computes the features, or finds them in the cache. UserError where the disk is full."""
        shape, title = (len(self.rows), 2, *self.shape), f"features of {self.name}"
        with contextlib.suppress(OSError, ValueError, EOFError):  # not there, or cut off
            if np.load(self.path, mmap_mode="r").shape == shape:
                return
        size = 2 * int(np.prod(shape))
        header = {"descr": "<f2", "fortran_order": False, "shape": shape}
        with atomic_write(self.path, size) as part, open(part, "wb") as file:
            np.lib.format.write_array_header_1_0(file, header)
            for pixels, _ in progress(make_dataset(self.images, self.rows, 3, BATCH), title):
                both = tf.concat([pixels, tf.reverse(pixels, [2])], axis=0)
                result = self.frozen.predict_on_batch(both).astype("<f2")
                file.write(np.stack(np.split(result, 2), axis=1).tobytes())
        print(f"{title}: {shape} float16, {size / 1e9:.2f} GB, computed once")

    def read(self, rows, flipped=0):
        """float16 (batch, *shape) of rows (numbers in `metadata`), mirrored where `flipped`.
        KeyError for images of which no features were computed."""
        positions = pd.Series(range(len(self.rows)), self.rows.index).loc[rows]
        return np.load(self.path, mmap_mode="r")[positions, np.asarray(flipped, int)]
