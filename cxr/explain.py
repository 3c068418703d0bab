"""Where in an image a model sees its answer."""

import keras
import numpy as np
import tensorflow as tf

from cxr.cache import IMAGE_SIZE


def hires_cam(model, pixels, class_number):
    """Where `pixels`, float32 (224, 224, 3) in [0, 1], speak for a class (position in CLASS_NAMES):
    float32 (224, 224), 0 to 1, or all 0. HiResCAM (Draelos and Carin, 2020) at the last feature
    maps of `model`, or of the model inside it: weighted by the gradient of the class's logit
    against the others' (log-sum-exp), cut off at 0. Grad-CAM's means do not suit Flatten."""
    inner = [i for i, layer in enumerate(model.layers) if isinstance(layer, keras.Model)]
    last = max(inner or [i for i, x in enumerate(model.layers) if len(x.output.shape) == 4])
    *head, softmax = model.layers[last + 1 :]
    maps = pixels[None]
    for layer in model.layers[: last + 1]:
        maps = layer(maps, training=False)
    with tf.GradientTape() as tape:
        tape.watch(maps)
        values = maps
        for layer in head:
            values = layer(values, training=False)
        logits = (tf.cast(values, tf.float32) @ softmax.kernel + softmax.bias)[0]
        others = tf.boolean_mask(logits, np.arange(len(logits)) != class_number)
        score = logits[class_number] - tf.reduce_logsumexp(others)
    heat = tf.nn.relu(tf.reduce_sum(maps * tape.gradient(score, maps), axis=-1, keepdims=True))
    heat = tf.image.resize(heat, (IMAGE_SIZE, IMAGE_SIZE))[0, ..., 0].numpy()
    return heat / max(heat.max(), np.finfo("float32").tiny)
