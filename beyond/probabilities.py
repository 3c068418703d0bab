"""What a model's probabilities are worth: thresholds, calibration, the shares of the classes."""

import itertools

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from scipy import optimize
from sklearn import metrics
from sklearn.calibration import CalibrationDisplay

from cxr.source import CLASS_NAMES


def two_classes(predictions):
    """A table of predictions (`utils.predict`) of three classes as one of two, with the
    probabilities of both pneumonias added up; one of two classes as it is."""
    if "pneumonia" in predictions:
        return predictions
    true = predictions["true"].where(predictions["true"] == "normal", "pneumonia")
    table = predictions.drop(columns=["bacterial", "viral"])
    return table.assign(true=true, pneumonia=1 - table["normal"])


def binary(predictions):
    """(whether each image shows pneumonia, bool; the probability of it, float): two Series, from a
    table of two or three classes."""
    return predictions["true"] != "normal", 1 - predictions["normal"]


def auc_interval(predictions):
    """95% bootstrap interval (low, high) of the ROC AUC of a table of two classes, resampling whole
    patients as `utils.cluster_bootstrap_interval` does."""
    numbers, patients = pd.factorize(predictions["patient"])
    shares = np.full(len(patients), 1 / len(patients))
    drawn = np.random.default_rng(0).multinomial(len(patients), shares, size=2000)
    is_ill, ill = (column.to_numpy() for column in binary(predictions))
    above = np.sign(np.subtract.outer(ill[is_ill], ill[~is_ill])) / 2 + 0.5  # pairs in order
    found, healthy = drawn[:, numbers[is_ill]], drawn[:, numbers[~is_ill]]
    values = (found @ above * healthy).sum(axis=1) / (found.sum(axis=1) * healthy.sum(axis=1))
    return np.quantile(values, [0.025, 0.975]).tolist()


def best_threshold(predictions):
    """The probability of pneumonia, a float, with the largest sum of sensitivity and specificity
    on a table of two classes."""
    is_ill = predictions["true"] == "pneumonia"
    curve = metrics.roc_curve(is_ill, predictions["pneumonia"])
    fpr, tpr, thresholds = (ends[1:] for ends in curve)  # the first threshold is infinite
    return thresholds[(tpr - fpr).argmax()]


def threshold_table(predictions):
    """What a model of two classes reaches on its test images with three thresholds, from a table
    with both splits: a DataFrame of threshold, sensitivity, specificity, accuracy."""
    validation, test = (predictions[predictions["split"] == s] for s in ("validation", "test"))
    names = "50%", "chosen on validation", "chosen on test (oracle)"
    thresholds = 0.5, best_threshold(validation), best_threshold(test)
    is_ill, rows = test["true"] == "pneumonia", {}
    for name, threshold in zip(names, thresholds, strict=True):
        called_pneumonia = test["pneumonia"] >= threshold
        found, healthy = called_pneumonia[is_ill].mean(), 1 - called_pneumonia[~is_ill].mean()
        rows[name] = threshold, found, healthy, (called_pneumonia == is_ill).mean()
    columns = ["threshold", "sensitivity", "specificity", "accuracy"]
    return pd.DataFrame.from_dict(rows, orient="index", columns=columns).round(3)


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
    """Expected calibration error, a float: mean distance of the mean probability, float (images,),
    and the share of `is_ill`, bool (images,), over ten groups of equal size."""
    table = pd.DataFrame({"is_ill": np.asarray(is_ill, float), "ill": np.asarray(probability)})
    groups = table.groupby(pd.qcut(table["ill"].rank(method="first"), 10), observed=True).mean()
    return (groups["is_ill"] - groups["ill"]).abs().mean()


def adapt_to_shares(probabilities, trained_with):
    """Saerens and others (2002): (probabilities corrected for the class shares that they themselves
    suggest, these shares); float (images, classes) and (classes,), as the arguments."""
    shares = trained_with
    for _ in range(100):
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
    rows = threshold_table(two_classes(predictions)).to_numpy()
    result = {
        "two_auc": metrics.roc_auc_score(is_ill, ill), "temperature": temperature,
        "ece": calibration_error(is_ill, ill),
        "ece_scaled": calibration_error(is_ill, 1 - probabilities[:, 0]),
        "validation_ece": calibration_error(*binary(validation)),
        "validation_two_auc": metrics.roc_auc_score(*binary(validation)),
        "threshold": rows[1, 0], "threshold_accuracy": rows[1, 3],
        "oracle_threshold": rows[2, 0], "oracle_accuracy": rows[2, 3],
        "two_accuracy": np.mean((ill > 0.5) == is_ill),
        "corrected_two_accuracy": np.mean((corrected[:, 0] < 0.5) == is_ill),
        "corrected_accuracy": np.mean(np.array(names)[corrected.argmax(1)] == test["true"]),
        **{f"share_{name}": share for name, share in zip(names, shares, strict=True)},
        **{f"called_pneumonia_{name}": (ill > 0.5)[test["true"] == name].mean() for name in names},
    }  # fmt: skip
    return {name: round(float(v), 6) for name, v in result.items() if v == v}  # no class, no NaN


def plot_reliability(parts, temperature):
    """Reliability diagrams of pneumonia, before and after `temperature`, one for each named table
    of three classes in `parts`. Returns the calibration errors, a DataFrame."""
    _, axes = plt.subplots(1, len(parts), figsize=(7, 3.4), sharey=True, layout="constrained")
    errors = {part: {} for part in parts}
    for axis, (part, table) in zip(axes, parts.items(), strict=True):
        is_ill = table["true"] != "normal"
        for label, t in {"as trained": 1, "with temperature": temperature}.items():
            ill = 1 - at_temperature(table, t)[:, 0]
            errors[part][label] = calibration_error(is_ill, ill)
            CalibrationDisplay.from_predictions(
                is_ill, ill, n_bins=10, strategy="quantile", ax=axis, name=label
            )
        axis.set(title=part, xlabel="probability of pneumonia", ylabel="share with pneumonia")
        axis.label_outer()
    return pd.DataFrame(errors).T


def plot_operating_points(models):
    """ROC and precision-recall curves of named tables of two classes, with a mark at 50%, the last
    one bold; returns the Figure."""
    figure, (roc, pr) = plt.subplots(1, 2, figsize=(8, 4), layout="constrained")
    colours = ("#0072B2", "#E69F00", "#009E73", "#777777", "#CC79A7")
    styles = itertools.cycle(zip(colours, ("--", ":", "-.", "--", "-"), "os^Dv", strict=True))
    for (title, table), (colour, line, marker) in zip(models.items(), styles, strict=False):
        width = 2 if title == list(models)[-1] else 1.2
        style = {"color": colour, "linestyle": line, "linewidth": width}
        at_50 = {"color": colour, "marker": marker, "fillstyle": "none", "markersize": 8}
        is_ill, ill = table["true"] == "pneumonia", table["pneumonia"]
        called_pneumonia = ill >= 0.5
        found, alarms = called_pneumonia[is_ill].mean(), called_pneumonia[~is_ill].mean()
        fpr, tpr, _ = metrics.roc_curve(is_ill, ill)
        roc.plot(fpr, tpr, **style)
        roc.plot(alarms, found, **at_50)
        precision, recall, _ = metrics.precision_recall_curve(is_ill, ill)
        pr.plot(recall, precision, **style)
        pr.plot(found, metrics.precision_score(is_ill, called_pneumonia), **at_50)
        label = f"{title}, ROC AUC {metrics.auc(fpr, tpr):.3f}"
        roc.plot([], [], **at_50 | style, label=label)
    roc.set(xlabel="1 - specificity", ylabel="sensitivity", title="ROC, upper left corner")
    roc.set(xlim=(-0.02, 0.7), ylim=(0.6, 1.01))
    pr.set(xlabel="recall (sensitivity)", ylabel="precision", title="Precision-recall")
    figure.legend(loc="outside lower center", ncols=2)
    return figure
