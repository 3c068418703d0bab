"""What an answer rests on: shortcuts, places, harmless changes, images from elsewhere."""

from pathlib import Path

import numpy as np
import pandas as pd
import tensorflow as tf
from scipy import ndimage
from sklearn import metrics
from sklearn.neighbors import NearestNeighbors

from cxr.cache import downsample, read_image, to_rgb
from cxr.explain import hires_cam
from cxr.files import UserError


def image_numbers(pixels):
    """Five numbers of each cached image, uint8 (images, 224, 224) or with a last axis of 3, none
    about lungs: a DataFrame of floats, a row each."""
    grey = to_rgb(pixels)[..., 0].astype("float32")
    steps = np.abs(ndimage.convolve(grey, [[[0, -1, 0], [-1, 4, -1], [0, -1, 0]]]))
    return pd.DataFrame({
        "roughness": np.median(steps, axis=(1, 2)),
        "roughness of the lowest eighth": np.median(steps[:, -28:], axis=(1, 2)),
        "brightness of left and right border": grey[:, :, [0, 1, -2, -1]].mean((1, 2)),
        "brightness": grey.mean((1, 2)),
        "upper minus lower half": grey[:, :112].mean((1, 2)) - grey[:, 112:].mean((1, 2)),
    })  # fmt: skip


def heat_outside(model, pixels):
    """The share, a float, of `hires_cam`'s heat in the outer eighth of one cached image, on each
    side, for the answer that the model gives; NaN where nothing in the image speaks for it."""
    floats = to_rgb(pixels).astype("float32") / 255
    heat = hires_cam(model, floats, int(model(floats[None], training=False)[0].numpy().argmax()))
    return float(1 - heat[28:-28, 28:-28].sum() / heat.sum()) if heat.any() else np.nan


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
    classes, and the share of answers that change, a DataFrame. `pixels` are cached images,
    `is_ill` says which show pneumonia, bool (images,)."""
    called, rows = {}, {}
    for name, change in STRESSES.items():
        called[name] = _normal(model, np.asarray(change(to_rgb(pixels)))) < 0.5
        changed = (called[name] != called["unchanged"]).mean()
        rows[name] = {"accuracy": (called[name] == is_ill).mean(), "changed": changed}
    return pd.DataFrame(rows).T


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
    warnings = ["it is in colour, which X-rays are not"] if pixels.ndim == 3 else []
    if pixels.std() < 10:
        warnings.append("it is nearly blank")
    elif nearest.kneighbors(downsample(pixels[None]))[0].item() > usual:
        warnings.append("no training image looks like it")
    return warnings


def score_folder(model, folder):
    """The measures, in words, of a model whose first class is *normal* on a folder with NORMAL and
    PNEUMONIA in it. UserError where one is missing or empty, or with all the files that
    cannot be used."""
    kinds = ("NORMAL", "PNEUMONIA")
    files = {kind: sorted(Path(folder).expanduser().glob(f"{kind}/[!.]*")) for kind in kinds}
    if not all(files.values()):
        raise UserError(f"EXTERNAL: {folder} needs two folders with images, NORMAL and PNEUMONIA.")
    pixels, unusable = [], []
    for path in files["NORMAL"] + files["PNEUMONIA"]:
        try:
            pixels.append(to_rgb(read_image(path)[0]))
        except Exception as error:  # of as many kinds as there are damaged files
            unusable.append(f"  {path}: {error}")
    if unusable:
        lines = "\n".join(unusable)
        raise UserError(f"EXTERNAL: move these files away, which cannot be used:\n{lines}")
    normal = _normal(model, np.stack(pixels))
    is_ill = np.repeat([False, True], [len(files[kind]) for kind in kinds])
    ill, auc = normal < 0.5, metrics.roc_auc_score(is_ill, -normal)
    return (
        f"{len(is_ill)} images, sensitivity {ill[is_ill].mean():.1%}, specificity "
        f"{1 - ill[~is_ill].mean():.1%}, accuracy {np.mean(ill == is_ill):.1%}, ROC AUC {auc:.3f}"
    )
