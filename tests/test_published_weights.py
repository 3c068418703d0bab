"""Every published accuracy is tied to pixels: the weights in weights/ give, on the 624 test X-rays
of data/sample, the predictions in results/."""

import keras
import numpy as np
import pytest

import utils


def transfer():
    """CNN_1's convolutions and the second CNN, as notebook 05 assembles them."""
    cnn_1 = utils.build_cnn_1(3, 0.2, 0)
    pooling = [x for x in cnn_1.layers if isinstance(x, keras.layers.MaxPooling2D)][-1]
    frozen = keras.Model(cnn_1.inputs[0], pooling.output)
    second = utils.cnn_1_layers(3, 0.2, 0)
    return keras.Sequential([keras.Input((224, 224, 3)), frozen, *second])


@pytest.mark.parametrize("name, classes, build", [
    ("02_cnn1_2class", 2, lambda: utils.build_cnn_1(2, 0.2, 0)),
    ("03_cnn1_3class", 3, lambda: utils.build_cnn_1(3, 0.2, 0)),
    ("05_cnn1_transfer", 3, transfer),
])  # fmt: skip
def test_published_weights_give_the_published_predictions(sample_images, name, classes, build):
    run = utils.find_published_run(name, need_weights=True)
    assert run.info["images"]["test_fingerprint"] == sample_images.test_fingerprint
    model = build()
    run.load_weights(model)
    test = sample_images.metadata.query("source_split == 'test'").assign(split="test")
    ours = utils.predict(model, sample_images, test, classes).sort_values("file")
    theirs = run.predictions.query("split == 'test'").sort_values("file")
    assert len(ours) == 624 and ours["file"].tolist() == theirs["file"].tolist()
    names = list(utils.CLASS_NAMES[classes])
    np.testing.assert_allclose(ours[names], theirs[names], atol=1e-4)
    assert (utils.predicted_classes(ours).to_numpy() == utils.predicted_classes(theirs)).all()
    found = utils.evaluate(ours)["accuracy"]
    assert found == pytest.approx(run.info["metrics"]["test"]["accuracy"], abs=1e-9)
