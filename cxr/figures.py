"""The figures that notebooks share: functions return the Figure unless they say else."""

import re
from itertools import pairwise

import keras
import matplotlib.pyplot as plt
import numpy as np
from sklearn import metrics

from cxr.cache import to_rgb
from cxr.explain import hires_cam
from cxr.source import CLASS_NAMES

CLASS_COLOURS = {  # kept for classes; apart for the colour-blind, and in grey by lightness
    "normal": "#56B4E9", "bacterial": "#D55E00", "viral": "#332288", "pneumonia": "#882255",
}  # fmt: skip
plt.rcParams.update({
    "figure.dpi": 120, "savefig.bbox": "tight", "axes.spines.top": False,
    "axes.spines.right": False, "font.size": 9, "axes.titlesize": 9, "legend.frameon": False,
})  # fmt: skip


def show_images(images, rows, titles, columns=6):
    """A grid of cached images: `rows` of `images.metadata`, with one title each."""
    lines = -(-len(rows) // columns)
    figure = plt.figure(figsize=(1.35 * columns, 1.6 * lines), layout="constrained")
    for place, (number, title) in enumerate(zip(rows.index, titles, strict=True), start=1):
        axis = figure.add_subplot(lines, columns, place, frame_on=False, xticks=[], yticks=[])
        axis.imshow(images.pixels[number], cmap="gray", vmin=0, vmax=255)
        axis.set_title(title, fontsize=7)
    return figure


def plot_history(history, reported_epochs, title):
    """Loss and accuracy of training and validation (report, Figs. 4, 6, 9, 12) over the epochs of
    a `TrainingCheckpoint.history`; `reported_epochs` is where the report's training stopped."""
    figure, axes = plt.subplots(1, 2, figsize=(8, 3.2), layout="constrained")
    epochs, last, best = history["epoch"], len(history), history["val_loss"].idxmin() + 1
    stops = {
        f"weights kept: epoch {best}": (best, "#009E73", "-"),
        f"this run stopped: epoch {last}": (last, "black", "-"),
        f"report stopped: epoch {reported_epochs}": (reported_epochs, "black", ":"),
    }
    for axis, name in zip(axes, ("loss", "accuracy"), strict=True):
        axis.plot(epochs, history[name], "-o", ms=3, color="#777777", label="training")
        axis.plot(epochs, history[f"val_{name}"], "--s", ms=3, color="#009E73", label="validation")
        for label, (epoch, colour, style) in stops.items():
            axis.axvline(epoch, color=colour, linestyle=style, linewidth=1, label=label)
        axis.set(xlabel="epoch", ylabel=name, xlim=(0.5, max(last, reported_epochs) + 0.5))
        axis.xaxis.get_major_locator().set_params(integer=True)
    figure.legend(*axis.get_legend_handles_labels(), loc="outside lower center", ncol=5, fontsize=8)
    figure.suptitle(title)
    return figure


def plot_confusion(predictions, title, report=None):
    """Confusion matrix of a `predict`'s DataFrame, counts and percent of each true class (report,
    Figs. 5, 7, 10, 13); beside it the `report`'s own, in counts."""
    names = list(CLASS_NAMES[2 if "pneumonia" in predictions else 3])
    predicted = predictions[names].idxmax(axis=1)
    matrices = {title: metrics.confusion_matrix(predictions["true"], predicted, labels=names)}
    matrices |= {} if report is None else {"The report": np.asarray(report)}
    figure, axes = plt.subplots(1, len(matrices), figsize=(3.6 * len(matrices), 3.3),
                                squeeze=False, layout="constrained")  # fmt: skip
    for axis, (name, matrix) in zip(axes.flat, matrices.items(), strict=True):
        shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
        display = metrics.ConfusionMatrixDisplay(shares, display_labels=names)
        display.plot(ax=axis, cmap="Blues", colorbar=False, im_kw={"vmin": 0, "vmax": 1})
        for place, text in np.ndenumerate(display.text_):
            text.set_text(f"{matrix[place]}\n{shares[place]:.1%}")
        axis.set(title=name, xlabel="predicted", ylabel="true")
        axis.set_yticks(range(len(names)), names, rotation=90, va="center")
    return figure


def plot_prediction(model, pixels, num_classes, title, predictor=None):
    """One image (uint8 (224, 224) or (224, 224, 3)), where it speaks for the prediction of a
    model of notebooks 02 to 06 (`hires_cam`), and its probabilities, or `predictor`'s."""
    floats, names = to_rgb(pixels).astype("float32") / 255, CLASS_NAMES[num_classes]
    probabilities = (predictor or model)(floats[None], training=False)[0].numpy()
    predicted = int(probabilities.argmax())
    heat = hires_cam(model, floats, predicted)
    figure, axes = plt.subplots(1, 3, figsize=(6, 2), layout="constrained")
    for axis, name in zip(axes, (title, f"HiResCAM, {names[predicted]}"), strict=False):
        axis.imshow(floats)
        axis.set_title(name)
        axis.axis("off")
    overlay = axes[1].imshow(heat, cmap="autumn_r", alpha=0.7 * heat, vmin=0, vmax=1)
    figure.colorbar(overlay, ax=axes[1], ticks=[0, 1], shrink=0.8, label="support")
    colours = [CLASS_COLOURS[name] for name in names[::-1]]
    bars = axes[2].barh(names[::-1], probabilities[::-1], color=colours)
    axes[2].bar_label(bars, fmt="{:.1%}", padding=3)
    axes[2].set(xlim=(0, 1.25), xticks=[0, 0.5, 1], title="probability")
    return figure


def _label(layer):
    """What a layer is called in Annex 1; None for what is left out (activations, ...)."""
    stride = " /2" if getattr(layer, "strides", (1,))[0] == 2 else ""
    if isinstance(layer, keras.layers.Conv2D):
        return f"{'x'.join(map(str, layer.kernel_size))}\n{layer.filters}{stride}"
    kinds = {keras.layers.MaxPooling2D: "max", keras.layers.AveragePooling2D: "mean"}
    return f"{kinds[type(layer)]}\npool{stride}" if type(layer) in kinds else None


def _ways(start, end):
    """The ways from one layer to another, as lists of all layers, both ends included."""
    if end is start:
        return [[start]]
    above = [tensor._keras_history.operation for tensor in keras.tree.flatten(end.input)]
    return [[*branch, end] for source in above for branch in _ways(start, source)]


def plot_inception(model):
    """Annex 1 of the report, InceptionV3 drawn from the model itself (include_top=False): its stem
    and eleven mixed blocks. Returns the Figure and how many convolutions are drawn."""
    stem = [x for x in model.layers if isinstance(x, keras.layers.MaxPooling2D)][1]
    ends = [model.layers[0], stem, *(x for x in model.layers if re.fullmatch(r"mixed\d+", x.name))]
    figure, axes = plt.subplots(4, 3, figsize=(10, 13), layout="constrained")
    arrow, drawn = {"arrowstyle": "->", "color": "#999999", "shrinkA": 12, "shrinkB": 13}, set()
    for axis, (start, end) in zip(axes.flat, pairwise(ends), strict=True):
        branches = [[x for x in way if _label(x) or x in (start, end)] for way in _ways(start, end)]
        layers, place = {layer for branch in branches for layer in branch}, {}
        for layer in layers:  # one of several branches stands in the middle of them
            spots = [(column, b.index(layer)) for column, b in enumerate(branches) if layer in b]
            place[layer] = np.mean(spots, axis=0)[0], np.max(spots, axis=0)[1]
        for source, layer in {pair for branch in branches for pair in pairwise(branch)}:
            bent = {"connectionstyle": "angle,angleA=-90,angleB=0"} if layer is end else {}
            axis.annotate("", place[layer], place[source], zorder=0, arrowprops=arrow | bent)
        for layer, position in place.items():
            text = "input" if layer is start else _label(layer) or "concat"
            colour = "#CFE8F7" if isinstance(layer, keras.layers.Conv2D) else "#EEEEEE"
            box = {"facecolor": colour, "edgecolor": "none", "boxstyle": "round,pad=0.25"}
            axis.text(*position, text, ha="center", va="center", fontsize=8, bbox=box)
        name = "stem" if end is stem else end.name
        axis.set(xlim=(-0.6, len(branches) - 0.4), ylim=(place[end][1] + 0.5, -0.5),
                 title=f"{name}: {' x '.join(map(str, end.output.shape[1:]))}")  # fmt: skip
        axis.axis("off")
        drawn |= layers
    return figure, sum(isinstance(layer, keras.layers.Conv2D) for layer in drawn)
