"""The one layer of the augmentation that Keras does not have."""

import keras
import tensorflow as tf


@keras.saving.register_keras_serializable("beyond")
class RandomResizedCrop(keras.layers.Layer):
    """In training: from each image, float (batch, height, width, channels), a random window, of a
    share of the area in `area` and 3:4 to 4:3 in shape, as `size` x `size` pixels. Otherwise images
    pass through."""

    def __init__(self, size=160, area=(0.08, 1.0), **options):
        super().__init__(**options)
        self.size, self.area, self.seeds = size, area, keras.random.SeedGenerator()
        self.supports_jit = False  # XLA, which Keras uses on a GPU, has no crop_and_resize

    def get_config(self):
        return super().get_config() | {"size": self.size, "area": self.area}

    def call(self, x, training=False):
        if not training:
            return x
        count, (low, high) = tf.shape(x)[0], self.area
        area, ratio, top, left = tf.unstack(keras.random.uniform((4, count), seed=self.seeds))
        area, ratio = low + (high - low) * area, (4 / 3) ** (2 * ratio - 1)
        height, width = (tf.minimum(tf.sqrt(a), 1.0) for a in (area / ratio, area * ratio))
        top, left = top * (1 - height), left * (1 - width)
        windows = tf.stack([top, left, top + height, left + width], axis=1)
        return tf.image.crop_and_resize(x, windows, tf.range(count), (self.size, self.size))
