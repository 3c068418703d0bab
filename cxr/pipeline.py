"""Batches for `model.fit`, from cached pixels or from frozen features."""

import hashlib

import keras
import numpy as np
import pandas as pd
import tensorflow as tf

from cxr.cache import ImageCache
from cxr.index import CLASS_NAMES


class EpochShuffle:
    """The order of the training images and their flips, a function of seed and epoch alone, so
    that an interrupted training that goes on in epoch 5 sees what it would have seen.

    Attributes:
        epoch: from 0; `TrainingCheckpoint` sets it, without one every epoch has the same order.
        fingerprint: names the images, labels and batches of the dataset it was given to.
    """

    def __init__(self, seed):
        self.seed, self.epoch, self.fingerprint = seed, 0, ""

    def order(self, count):
        """A permutation of range(count), int64."""
        return np.random.default_rng([self.seed, self.epoch]).permutation(count)

    def flips(self, count):
        """Which images are mirrored, bool (count,)."""
        return np.random.default_rng([self.seed, self.epoch, 1]).integers(0, 2, count) == 1


def one_hot(rows, num_classes):
    """The classes of `rows` as float32 (images, classes), in the order of CLASS_NAMES."""
    codes = pd.Categorical(rows[f"class{num_classes}"], CLASS_NAMES[num_classes]).codes
    return keras.utils.to_categorical(codes, num_classes).astype("float32")


def make_dataset(source, rows, num_classes, batch_size, shuffle=None):
    """Batches of some images; only those under way are ever in memory as floats.

    Args:
        source: `ImageCache` for pixels, `FrozenFeatures` for what a network made of them.
        rows: the rows of `metadata` to use, in this order.
        num_classes: 2 or 3.
        batch_size: images per batch; the last one may be smaller.
        shuffle: `EpochShuffle` for a new order every epoch (and, of features, new flips: pixels
            are flipped by the model's own layer); None to keep the order.

    Returns:
        tf.data.Dataset of (float32 (batch, 224, 224, 3) in [0, 1], or the features' shape;
        one-hot float32 (batch, classes)).
    """
    count, numbers, labels = len(rows), rows.index.to_numpy(), one_hot(rows, num_classes)
    is_pixels = isinstance(source, ImageCache)
    if shuffle:
        content = f"{source.fingerprint} {num_classes} {batch_size} {','.join(rows['file'])}"
        shuffle.fingerprint = hashlib.sha256(content.encode()).hexdigest()[:16]

    def batches():
        order = shuffle.order(count) if shuffle else np.arange(count)
        flips = shuffle.flips(count) if shuffle and not is_pixels else None
        for start in range(0, count, batch_size):
            chosen = order[start : start + batch_size]
            flipped = None if flips is None else flips[chosen]
            yield source.read(numbers[chosen], flipped), labels[chosen]

    def to_floats(values, label):
        values = tf.cast(values, tf.float32)
        if is_pixels:
            values /= 255.0
            if values.shape.rank == 3:  # grey: three equal channels
                values = tf.image.grayscale_to_rgb(values[..., tf.newaxis])
        return values, label

    shape, dtype = (source.pixels.shape[1:], tf.uint8) if is_pixels else (source.shape, tf.float16)
    signature = (tf.TensorSpec((None, *shape), dtype), tf.TensorSpec((None, num_classes)))
    dataset = tf.data.Dataset.from_generator(batches, output_signature=signature)
    dataset = dataset.apply(tf.data.experimental.assert_cardinality(-(-count // batch_size)))
    return dataset.prefetch(2).map(to_floats).prefetch(1)
