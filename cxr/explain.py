"""One image: is it like the training images, what does the model say of it, and where."""

from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from sklearn.neighbors import NearestNeighbors

from cxr.cache import IMAGE_SIZE, downsample, read_image
from cxr.files import UserError


def load_user_image(path):
    """An image of one's own, resized as the data set was: uint8 (224, 224) or (224, 224, 3).
    UserError where the file is not there or is no picture that can be used."""
    try:
        return read_image(Path(path).expanduser())[0]
    except Exception as error:
        words = f"{path} cannot be used ({error}). Give the path of a JPEG or PNG; in Colab"
        raise UserError(f"{words}, drag it into the Files pane and copy its path there.") from error


def out_of_distribution_warnings(pixels, images, train):
    """What sets a picture (as `load_user_image` gives it) apart from `train`, the rows of training
    images, as a list of words: a network answers whatever it is shown. So: colour, hardly any
    contrast, or that none of 500 training images resembles it as closely (correlation of 32 x 32
    means) as 99 of 100 of them resemble another."""
    some = images.read(train.sample(min(500, len(train)), random_state=0).index.to_numpy())
    nearest = NearestNeighbors(n_neighbors=1, metric="correlation").fit(downsample(some))
    usual = np.quantile(nearest.kneighbors()[0], 0.99)
    warnings = ["it has colours, which X-rays have not"] if pixels.ndim == 3 else []
    if pixels.std() < 10:
        warnings.append("it is nearly blank")
    elif nearest.kneighbors(downsample(pixels[None]))[0].item() > usual:
        warnings.append("no training image looks like it")
    return warnings


def hires_cam(model, pixels, class_number):
    """Where `pixels`, float32 (224, 224, 3) in [0, 1], speak for a class (position in CLASS_NAMES):
    float32 (224, 224), 0 to 1; 0 everywhere where nothing does. HiResCAM (Draelos and Carin, 2020)
    at the last feature maps of `model`, of notebooks 04 to 06: weighted by the gradient of the
    class's logit against the other classes' (log-sum-exp); what speaks against it is cut off.
    Grad-CAM would average over each map, which suits global average pooling, not Flatten."""
    last = max(i for i, layer in enumerate(model.layers) if isinstance(layer, keras.Model))
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
