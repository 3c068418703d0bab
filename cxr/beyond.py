"""What notebook 06 alone needs: one layer, thresholds, shortcuts, calibration, stress."""

from pathlib import Path

import keras
import numpy as np
import pandas as pd
import tensorflow as tf
from scipy import ndimage, optimize
from sklearn import metrics

from cxr.cache import to_rgb
from cxr.explain import hires_cam, load_user_image
from cxr.files import UserError
from cxr.source import CLASS_NAMES


@keras.saving.register_keras_serializable("cxr")
class RandomResizedCrop(keras.layers.Layer):
    """In training: from each image of a batch a random window, of a share of the area in `area`
    and 3:4 to 4:3 in shape, as `size` x `size` pixels. Otherwise images pass through."""

    def __init__(self, size=160, area=(0.08, 1.0), **options):
        super().__init__(**options)
        self.size, self.area, self.seeds = size, area, keras.random.SeedGenerator()

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


def two_classes(predictions):
    """Predictions of three classes as of two: the probabilities of both pneumonias added up."""
    if "pneumonia" in predictions:
        return predictions
    true = predictions["true"].where(predictions["true"] == "normal", "pneumonia")
    table = predictions.drop(columns=["bacterial", "viral"])
    return table.assign(true=true, pneumonia=1 - table["normal"])


def binary(predictions):
    """(whether each image shows pneumonia, the probability of it) of a table of any classes."""
    return predictions["true"] != "normal", 1 - predictions["normal"]


def best_threshold(predictions):
    """The probability of pneumonia with the largest sum of sensitivity and specificity, on a table
    of two classes."""
    is_ill = predictions["true"] == "pneumonia"
    fpr, tpr, thresholds = metrics.roc_curve(is_ill, predictions["pneumonia"])
    return thresholds[(tpr - fpr).argmax()]


def threshold_table(predictions):
    """What a model of two classes reaches on its test images with three thresholds, a DataFrame."""
    validation, test = (predictions[predictions["split"] == s] for s in ("validation", "test"))
    names = "50%", "chosen on validation", "chosen on test (oracle)"
    thresholds = 0.5, best_threshold(validation), best_threshold(test)
    is_ill, rows = test["true"] == "pneumonia", {}
    for name, threshold in zip(names, thresholds, strict=True):
        called_ill = test["pneumonia"] >= threshold
        found, healthy = called_ill[is_ill].mean(), 1 - called_ill[~is_ill].mean()
        rows[name] = threshold, found, healthy, (called_ill == is_ill).mean()
    columns = ["threshold", "sensitivity", "specificity", "accuracy"]
    return pd.DataFrame.from_dict(rows, orient="index", columns=columns).round(3)


def image_numbers(pixels):
    """Four numbers of each cached image, none about lungs: a DataFrame of floats, a row each."""
    grey = to_rgb(pixels)[..., 0].astype("float32")
    laplacian = ndimage.convolve(grey, [[[0, -1, 0], [-1, 4, -1], [0, -1, 0]]])
    return pd.DataFrame({
        "roughness": np.median(np.abs(laplacian), axis=(1, 2)),
        "brightness of left and right border": grey[:, :, [0, 1, -2, -1]].mean((1, 2)),
        "brightness": grey.mean((1, 2)),
        "upper minus lower half": grey[:, :112].mean((1, 2)) - grey[:, 112:].mean((1, 2)),
    })  # fmt: skip


def at_temperature(predictions, temperature):
    """The probabilities with the logits divided by `temperature`, float (images, 3)."""
    powered = predictions[list(CLASS_NAMES[3])].clip(1e-6).to_numpy() ** (1 / temperature)
    return powered / powered.sum(axis=1, keepdims=True)


def fit_temperature(predictions):
    """The temperature with the lowest log loss on these predictions of three classes."""
    true = np.eye(3)[pd.Categorical(predictions["true"], CLASS_NAMES[3]).codes]
    return optimize.minimize_scalar(
        lambda t: metrics.log_loss(true, at_temperature(predictions, t)),
        bounds=(0.2, 5), method="bounded",
    ).x  # fmt: skip


def calibration_error(is_ill, probability):
    """Expected calibration error: mean distance of the mean probability and the share of ill, over
    ten groups of equal size."""
    table = pd.DataFrame({"is_ill": np.asarray(is_ill, float), "ill": np.asarray(probability)})
    groups = table.groupby(pd.qcut(table["ill"].rank(method="first"), 10), observed=True).mean()
    return (groups["is_ill"] - groups["ill"]).abs().mean()


def adapt_to_shares(probabilities, trained_with, rounds=100):
    """Saerens and others (2002): (probabilities corrected for the class shares that they themselves
    suggest, these shares); float (images, classes) and (classes,)."""
    shares = trained_with
    for _ in range(rounds):
        corrected = probabilities * shares / trained_with
        corrected /= corrected.sum(axis=1, keepdims=True)
        shares = corrected.mean(axis=0)
    return corrected, shares


def summary(predictions):
    """What run.json keeps of a model of three classes beside their measures: a flat dict of the
    test images' two classes, thresholds, calibration and correction, as notebook 06 shows them."""
    validation, test = (predictions[predictions["split"] == s] for s in ("validation", "test"))
    names, temperature = list(CLASS_NAMES[3]), fit_temperature(validation)
    is_ill, ill = binary(test)
    probabilities = at_temperature(test, temperature)
    corrected, shares = adapt_to_shares(probabilities, np.full(3, 1 / 3))
    called = {"": ill, "corrected_": 1 - corrected[:, 0]}
    rows = threshold_table(two_classes(predictions)).to_numpy()
    result = {
        "two_auc": metrics.roc_auc_score(is_ill, ill), "temperature": temperature,
        "ece": calibration_error(is_ill, ill),
        "ece_scaled": calibration_error(is_ill, 1 - probabilities[:, 0]),
        "validation_ece": calibration_error(*binary(validation)),
        "validation_two_auc": metrics.roc_auc_score(*binary(validation)),
        "threshold": rows[1, 0], "threshold_accuracy": rows[1, 3], "oracle_accuracy": rows[2, 3],
        "corrected_accuracy": np.mean(np.array(names)[corrected.argmax(1)] == test["true"]),
        **{f"share_{name}": share for name, share in zip(names, shares, strict=True)},
        **{f"called_ill_{name}": (ill > 0.5)[test["true"] == name].mean() for name in names},
    }  # fmt: skip
    for prefix, values in called.items():
        result[f"{prefix}two_accuracy"] = np.mean((values > 0.5) == is_ill)
    return {name: round(float(v), 6) for name, v in result.items() if v == v}  # no class, no NaN


def heat_outside(model, pixels):
    """The share of `hires_cam`'s heat in the outer eighth of one cached image, on each side, for
    the answer that the model gives."""
    floats = to_rgb(pixels).astype("float32") / 255
    heat = hires_cam(model, floats, int(model(floats[None], training=False)[0].numpy().argmax()))
    return float(1 - heat[28:-28, 28:-28].sum() / max(heat.sum(), 1e-9))


_OUTSIDE_CORNER = np.indices((224, 224, 1)).max(axis=0) >= 56
STRESSES = {  # from uint8 (images, 224, 224, 3) to the same
    "unchanged": lambda pixels: pixels,
    "JPEG, quality 50": lambda pixels: np.stack(
        [tf.io.decode_jpeg(tf.io.encode_jpeg(picture, quality=50)) for picture in pixels]),
    "20% darker": lambda pixels: (pixels * 0.8).astype("uint8"),
    "20% brighter": lambda pixels: np.clip(pixels * 1.2, 0, 255).astype("uint8"),
    "a covered corner": lambda pixels: np.where(_OUTSIDE_CORNER, pixels, np.uint8(0)),
    "shifted by 16 pixels": lambda pixels: ndimage.shift(pixels, (0, 16, 16, 0), order=0),
    "smoothed": lambda pixels: ndimage.gaussian_filter(pixels, (0, 0.7, 0.7, 0)),
}  # fmt: skip


def _normal(model, pixels):
    """The first class's probability, of uint8 (images, 224, 224, 3), in batches."""
    starts = range(0, len(pixels), 32)
    batches = (pixels[start : start + 32].astype("float32") / 255 for start in starts)
    return np.concatenate([model.predict_on_batch(batch)[:, 0] for batch in batches])


def stress_table(model, pixels, is_ill):
    """Of a model whose first class is *normal*, under each of STRESSES: its accuracy with two
    classes, and the share of answers that change. `pixels` are cached images."""
    called, rows = {}, {}
    for name, change in STRESSES.items():
        called[name] = _normal(model, np.asarray(change(to_rgb(pixels)))) < 0.5
        changed = (called[name] != called["unchanged"]).mean()
        rows[name] = {"accuracy": (called[name] == is_ill).mean(), "changed": changed}
    return pd.DataFrame(rows).T


def score_folder(model, folder):
    """Accuracy and ROC AUC, in words, of a model whose first class is *normal* on a folder with
    NORMAL and PNEUMONIA in it. UserError where one is missing or holds no image."""
    kinds = ("NORMAL", "PNEUMONIA")
    files = {kind: sorted(Path(folder).expanduser().glob(f"{kind}/[!.]*")) for kind in kinds}
    if not all(files.values()):
        raise UserError(f"EXTERNAL: {folder} needs two folders with images, NORMAL and PNEUMONIA.")
    pixels = [to_rgb(load_user_image(path)) for kind in kinds for path in files[kind]]
    normal = _normal(model, np.stack(pixels))
    is_ill = np.repeat([False, True], [len(files[kind]) for kind in kinds])
    accuracy, auc = np.mean((normal < 0.5) == is_ill), metrics.roc_auc_score(is_ill, -normal)
    return f"{len(is_ill)} images, accuracy {accuracy:.1%}, ROC AUC {auc:.3f}"
