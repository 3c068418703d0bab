"""What the notebooks share: the report's own code, and the names they call from `cxr`.

What more than one of them needs, in their order: the split (01), CNN_1, measures and baselines
(02), pretrained weights (04). The plumbing is in `cxr/`, which never imports this file.
"""

import cxr  # noqa: I001 - first: it keeps TensorFlow's start-up lines quiet

import os
from pathlib import Path

import keras
import numpy as np
import pandas as pd
from scipy import stats
from sklearn import metrics
from sklearn.dummy import DummyClassifier
from sklearn.model_selection import train_test_split
from sklearn.neighbors import KNeighborsClassifier

from cxr import runs
from cxr.cache import IMAGE_SIZE, ImageCache, downsample, load_images, read_image, to_rgb
from cxr.config import setup, strategy
from cxr.figures import (
    CLASS_COLOURS, plot_confusion, plot_history, plot_inception, plot_prediction, show_images,
)  # fmt: skip
from cxr.files import PROJECT, UserError
from cxr.pipeline import EpochShuffle, FrozenFeatures, make_dataset, one_hot
from cxr.reference import (
    REPORTED, compare_with_report, published_histories, published_runs,
    sensitivity_table, stopping_epochs,
)  # fmt: skip
from cxr.runs import ModelRun, find_published_run, load_run, run_name
from cxr.runs import save_run as save_measurements
from cxr.source import CLASS_NAMES, SOURCE_SPLITS, parse_name
from cxr.training import TrainingCheckpoint

pd.set_option("display.max_colwidth", None)  # claims are sentences
QUICK_TRAINING_IMAGES = 640  # of Kaggle's 5,216: as many as data/sample holds


# --- Notebook 01: the split (report, Figure 1) --------------------------------------------


def assign_splits(metadata, config, by="image", fraction=0.2, stratify=True):
    """Says for each image what it is used for (report, section Data): `metadata` with a column
    `split`, "train", "validation", "test" or "unused".

    A fifth of Kaggle's train folder becomes the validation set, drawn with the same share of
    each of the three classes, so that notebooks with two and with three classes share one split.
    Kaggle's own val folder stays out ("unused"): 16 images, none of them viral, are too few to
    stop a training by, and adding them would no longer be the report's 20%.

    The same `config.seed` gives the same splits on any machine; quick mode keeps at most 640 images
    of the train folder. Drawn is a `fraction` `by` "image" as in the report, or by "patient": all
    images of one on one side. The report does not say whether it looked at classes (`stratify`).
    """
    if by not in ("image", "patient"):
        raise UserError(f"by is {by!r}: say image or patient.")
    options = {"test_size": fraction, "random_state": config.seed}
    split = metadata["source_split"].map({"train": "train", "val": "unused", "test": "test"})
    pool = metadata[metadata["source_split"] == "train"]
    if config.quick and len(pool) > QUICK_TRAINING_IMAGES:
        quick = options | {"test_size": None, "train_size": QUICK_TRAINING_IMAGES}
        kept, dropped = train_test_split(pool.index, stratify=pool["class3"], **quick)
        split[dropped], pool = "unused", pool.loc[kept].sort_index()
    if by == "patient":
        # Every patient has one class, so patients can be drawn as images are. (The folds of
        # StratifiedGroupKFold would differ between versions of scikit-learn.)
        patients = pool.groupby("patient")["class3"].first()
        _, chosen = train_test_split(patients.index, stratify=patients, **options)
        chosen = pool.index[pool["patient"].isin(chosen)]
    else:
        classes = pool["class3"] if stratify else None
        _, chosen = train_test_split(pool.index, stratify=classes, **options)
    split[chosen] = "validation"
    n, every = split.value_counts(), (metadata["source_split"] == "train").sum()
    print(f"{config.mode}     {n['train'] + n['validation']:,} of {every:,} training images "
          f"({n['validation']:,} of them for validation), {n['test']} test images"
          )  # fmt: skip
    return metadata.assign(split=split)


def by_split(metadata):
    """The rows of `assign_splits` used for training, for validation and for test: three tables."""
    return tuple(metadata[metadata["split"] == s] for s in ("train", "validation", "test"))


# --- Notebook 02: CNN_1 (report, Figures 3 and 11) ----------------------------------------


def cnn_1_layers(num_classes, dropout, seed):
    """The layers of CNN_1 after its input and flip."""
    layers = keras.layers
    return [
        layers.Conv2D(32, 3, activation="relu"), layers.MaxPooling2D(),
        layers.Conv2D(64, 3, activation="relu"), layers.MaxPooling2D(),
        layers.Conv2D(128, 3, activation="relu"), layers.MaxPooling2D(),
        layers.Flatten(),
        layers.Dropout(dropout, seed=seed),
        layers.Dense(num_classes, activation="softmax"),
    ]  # fmt: skip


def build_cnn_1(num_classes, dropout, seed):
    """CNN_1, as notebook 02 writes it: float32 (batch, 224, 224, 3) in [0, 1] to probabilities of
    2 classes (266,306 parameters) or 3 (352,835); an uncompiled keras.Sequential. The report does
    not give its `dropout` rate; `seed` is that of initial weights, flip and dropout."""
    keras.utils.set_random_seed(seed)
    flip = keras.layers.RandomFlip("horizontal", seed=seed)
    inputs = keras.Input((IMAGE_SIZE, IMAGE_SIZE, 3))
    return keras.Sequential([inputs, flip, *cnn_1_layers(num_classes, dropout, seed)])


def build_optimizer():
    """The report's Adam: rate 1e-4, and Keras' old `decay=1e-5`, lr / (1 + decay * step)."""
    schedule = keras.optimizers.schedules.InverseTimeDecay(1e-4, decay_steps=1, decay_rate=1e-5)
    return keras.optimizers.Adam(schedule)


def layer_table(model):
    """The layers as the report's summaries list them, as a DataFrame: layer (class), output shape
    (without the batch), parameters."""
    shape = model.input_shape
    rows = [("InputLayer", tuple(shape[1:]), 0)]
    for layer in model.layers:
        if not isinstance(layer, keras.layers.InputLayer):
            shape = layer.compute_output_shape(shape)
            rows.append((type(layer).__name__, tuple(shape[1:]), layer.count_params()))
    return pd.DataFrame(rows, columns=["layer", "output shape", "parameters"])


def parameter_counts(model):
    """(all, trainable, frozen) parameters of a model."""
    trainable = sum(int(np.prod(w.shape)) for w in model.trainable_weights)
    return model.count_params(), trainable, model.count_params() - trainable


# --- Notebook 02: predictions and measures ------------------------------------------------


def predict(model, images, rows, num_classes, batch_size=64):
    """The model's probabilities, from pixels: a DataFrame, one line per row, of file, split,
    patient, true (class name), and a float column for each class, named after it."""
    dataset = make_dataset(images, rows, num_classes, batch_size)
    return prediction_table(rows, num_classes, model.predict(dataset, verbose=0))


def prediction_table(rows, num_classes, probabilities):
    """`predict`'s table from probabilities, float (images, classes), of `rows`; their index."""
    table = rows[["file", "split", "patient"]].assign(true=rows[f"class{num_classes}"])
    names = list(CLASS_NAMES[num_classes])
    values = pd.DataFrame(probabilities, index=rows.index, columns=names)
    return table.join(values.astype("float64").round(6))


def class_names(predictions):
    """The class names a table of `predict` has columns for, as a list."""
    return list(CLASS_NAMES[2 if "pneumonia" in predictions else 3])


def predicted_classes(predictions):
    """The name of the most probable class of each line, as a Series."""
    return predictions[class_names(predictions)].idxmax(axis=1)


def evaluate(predictions):
    """The measures of one model on one set of images, from a DataFrame of `predict`.

    Returns a dict: accuracy; accuracy_low and accuracy_high, a 95% confidence interval by patient
    (`cluster_bootstrap_interval`); recall and precision, each by class; auc, area under the ROC
    curve (3 classes: mean over one against the rest); with 2 classes sensitivity (recall of
    pneumonia) and specificity (of normal). Recall and auc are None where a class has no image.
    """
    names = class_names(predictions)
    y_true, y_pred = predictions["true"], predicted_classes(predictions)
    precision, recall, _, support = metrics.precision_recall_fscore_support(
        y_true, y_pred, labels=names, zero_division=0
    )
    low, high = cluster_bootstrap_interval(y_pred == y_true, predictions["patient"])
    recall = {n: float(v) if s else None for n, v, s in zip(names, recall, support, strict=True)}
    result = {
        "accuracy": float(metrics.accuracy_score(y_true, y_pred)),
        "accuracy_low": low, "accuracy_high": high, "recall": recall,
        "precision": dict(zip(names, precision.tolist(), strict=True)),
        "auc": _auc(predictions, names) if support.all() else None,
    }  # fmt: skip
    if len(names) == 2:
        result |= {"sensitivity": recall["pneumonia"], "specificity": recall["normal"]}
    return result


def _auc(predictions, names):
    y_true = pd.Categorical(predictions["true"], names).codes
    scores = predictions[names].to_numpy()
    if len(names) == 2:
        return float(metrics.roc_auc_score(y_true, scores[:, 1]))
    scores = scores / scores.sum(axis=1, keepdims=True)
    return float(metrics.roc_auc_score(y_true, scores, multi_class="ovr"))


def cluster_bootstrap_interval(values, patients):
    """95% bootstrap interval (low, high) of the mean of `values`, bool or float (images,), that
    resamples whole patients: images of one patient are not independent."""
    values = pd.Series(np.asarray(values, float))
    by_patient = values.groupby(np.asarray(patients)).agg(["sum", "size"])
    interval = stats.bootstrap(
        (by_patient["sum"], by_patient["size"]),
        lambda total, count, axis=-1: total.sum(axis) / count.sum(axis),
        paired=True, vectorized=True, n_resamples=2000, method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval  # fmt: skip
    return float(interval.low), float(interval.high)


def baselines(images, train, rows, num_classes):
    """What is reached without a network for `rows` of an `ImageCache`: the most frequent class of
    the training images, and the 11 nearest neighbours among them on 32 x 32 pixels.

    Returns a dict from name to a DataFrame as `predict` returns.
    """
    models = {
        "majority class": DummyClassifier(strategy="most_frequent"),
        "11 nearest neighbours": KNeighborsClassifier(11),
    }
    x_train, x = (downsample(images.read(part.index.to_numpy())) for part in (train, rows))
    codes = pd.Categorical(train[f"class{num_classes}"], CLASS_NAMES[num_classes]).codes
    return {
        name: prediction_table(rows, num_classes, model.fit(x_train, codes).predict_proba(x))
        for name, model in models.items()
    }


def metrics_table(predictions):
    """One line of measures per model, from a dict of names to DataFrames of `predict`; a DataFrame
    of strings, indexed by model."""
    rows = {}
    for name, table in predictions.items():
        found = evaluate(table)
        shares = {f"{kind} {c}": value for kind in ("recall", "precision")
                  for c, value in found[kind].items()}  # fmt: skip
        rows[name] = {
            "accuracy": f"{found['accuracy']:.1%}",
            "95% CI by patient": f"{found['accuracy_low']:.1%} to {found['accuracy_high']:.1%}",
            **{title: "-" if v is None else f"{v:.1%}" for title, v in shares.items()},
            "ROC AUC": "-" if found["auc"] is None else f"{found['auc']:.3f}",
        }
    return pd.DataFrame(rows).T.rename_axis("test images")


def save_run(checkpoint, model, predictions, full_model=None, **info):
    """Saves a model, its `TrainingCheckpoint`'s history, `predict`'s DataFrame for validation and
    test images, and the measures, as a finished run. `full_model` is the assembled one, where only
    its head is kept; `info` is what else run.json should say."""
    if not checkpoint.is_new:  # it was loaded
        return
    total, trainable, _ = parameter_counts(full_model or model)
    runs.save_run(
        checkpoint.config, checkpoint.name, checkpoint.images, model,
        {"history.csv": checkpoint.history, "predictions.csv": predictions},
        settings=checkpoint.settings, parameters=total, trainable=trainable,
        metrics={split: evaluate(table) for split, table in predictions.groupby("split")},
        replace=checkpoint.retrain, **info,
    )  # fmt: skip
    checkpoint.is_new = False  # a cell that is run again saves nothing again


# --- Notebooks 04 and 06: pretrained networks (report, section III b) ---------------------


def pretrained_weights(config, application):
    """Weights for keras.applications' InceptionV3 or Xception: (its argument `weights`, file to
    load afterwards or None, name for tables), from CXR_INCEPTION_WEIGHTS or CXR_XCEPTION_WEIGHTS:
    imagenet, random, or a file. UserError where the file is not there, or ImageNet's cannot be
    downloaded; quick mode goes on with random ones then, behind a banner."""
    name = application.__name__
    variable = f"CXR_{name.removesuffix('V3').upper()}_WEIGHTS"
    setting = os.environ.get(variable, "").strip() or "imagenet"
    if setting not in ("imagenet", "random"):
        file = Path(setting).expanduser()
        if not file.is_file():
            raise UserError(f"{variable}={setting}: no such file.")
        return None, file, f"the file {file.name}"
    if setting == "imagenet":
        try:
            application(include_top=False, weights="imagenet")
            return "imagenet", None, "ImageNet weights"
        except Exception as error:  # a download fails in as many ways as the network has
            if not config.quick:
                words = (
                    f"ImageNet's weights cannot be downloaded ({type(error).__name__}). Run this"
                )
                way_out = f"cell again, or set {variable} to a file of {name}(include_top=False)."
                raise UserError(f"{words} {way_out}") from error
    line = f"RANDOM WEIGHTS: no ImageNet here. What {name} says below means nothing."
    print(f"{'=' * len(line)}\n{line}\n{'=' * len(line)}")
    return None, None, "random weights, never trained"
