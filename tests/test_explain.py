"""An explanation is of the right place."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import beyond
from cxr.explain import hires_cam


@pytest.fixture(scope="module")
def model():
    """As notebook 05's, but a frozen network of 7 x 7 means of 3 colours, and a head of one layer,
    whose gradients are its weights."""
    keras.utils.set_random_seed(0)
    layers, inputs = keras.layers, keras.Input((224, 224, 3))
    frozen = keras.Model(inputs, layers.AveragePooling2D(32)(inputs))
    head = [layers.Flatten(), layers.Dropout(0.5), layers.Dense(3, "softmax")]
    return keras.Sequential([inputs, frozen, *head])


def test_an_explanation_is_of_what_sets_a_class_apart_place_by_place(model):
    """What speaks for all classes alike changes no probability, and no explanation."""
    picture = np.random.default_rng(0).random((224, 224, 3), dtype="float32")
    maps = picture.reshape(7, 32, 7, 32, 3).mean((1, 3))
    kernel, _ = model.layers[-1].get_weights()
    shares = model.predict(picture[None], verbose=0)[0]
    for number in range(3):
        others = np.delete(np.arange(3), number)
        rival = kernel[:, others] @ shares[others] / shares[others].sum()
        apart = (kernel[:, number] - rival).reshape(7, 7, 3)
        wanted = tf.image.resize(np.maximum((maps * apart).sum(-1), 0)[..., None], (224, 224))
        heat = hires_cam(model, picture, number)
        np.testing.assert_allclose(heat, wanted[..., 0] / np.max(wanted), atol=1e-3)
    assert np.isnan(beyond.heat_outside(model, np.zeros((224, 224), np.uint8)))  # nothing speaks
