"""Annex 1 of the report: InceptionV3 drawn from the model itself."""

import keras
import matplotlib.pyplot as plt
import numpy as np


def _label(layer):
    """What a layer is called in the drawing; None for what is left out (activations, ...)."""
    stride = " /2" if getattr(layer, "strides", (1,))[0] == 2 else ""
    if isinstance(layer, keras.layers.Conv2D):
        return f"{'x'.join(map(str, layer.kernel_size))}\n{layer.filters}{stride}"
    kinds = {keras.layers.MaxPooling2D: "max", keras.layers.AveragePooling2D: "mean"}
    return f"{kinds[type(layer)]}\npool{stride}" if type(layer) in kinds else None


def _sources(layer, start):
    """The drawn layers, or the block's beginning, that feed a layer."""
    for tensor in keras.tree.flatten(layer.input):
        above = tensor._keras_history.operation
        yield from (above,) if above is start or _label(above) else _sources(above, start)


def plot_inception(model):
    """The stem and the eleven mixed blocks of keras.applications.InceptionV3(include_top=False),
    each with its branches side by side. Returns the Figure and how many convolutions are drawn."""
    stem = [x for x in model.layers if isinstance(x, keras.layers.MaxPooling2D)][1]
    ends = [stem, *(model.get_layer(f"mixed{number}") for number in range(11))]
    figure, axes = plt.subplots(4, 3, figsize=(10, 13), layout="constrained")
    convolutions = 0
    for axis, start, end in zip(axes.flat, [model.layers[0], *ends], ends, strict=False):
        block = model.layers[model.layers.index(start) + 1 : model.layers.index(end) + 1]
        edges, depth = {}, {start: 0}  # what feeds each drawn layer; its longest way from start
        for layer in (x for x in block if _label(x) or x is end):
            edges[layer] = list(_sources(layer, start))
            depth[layer] = 1 + max(depth[x] for x in edges[layer])
        last = [x for x in edges[end] if x is not start]
        place = {x: (number, depth[x]) for number, x in enumerate(last)}
        for layer in reversed(edges):  # stands above what it feeds
            if layer not in place and layer is not end:
                below = [place[x][0] for x in edges if layer in edges[x] and x is not end]
                place[layer] = (np.mean(below), depth[layer])
        place |= {x: ((len(last) - 1) / 2, depth[x]) for x in (start, end)}
        for source, layer in ((x, layer) for layer, above in edges.items() for x in above):
            arrow = {"arrowstyle": "->", "color": "#999999", "shrinkA": 12, "shrinkB": 13}
            axis.annotate("", place[layer], place[source], zorder=0, arrowprops=arrow)
        for layer, position in place.items():
            name = "input" if layer is start else _label(layer) or "concat"
            colour = "#CFE8F7" if isinstance(layer, keras.layers.Conv2D) else "#EEEEEE"
            box = {"facecolor": colour, "edgecolor": "none", "boxstyle": "round,pad=0.25"}
            axis.text(*position, name, ha="center", va="center", fontsize=8, bbox=box)
        convolutions += sum(isinstance(layer, keras.layers.Conv2D) for layer in edges)
        axis.set(xlim=(-0.6, max(len(last) - 0.4, 0.6)), ylim=(depth[end] + 0.5, -0.5))
        name = "stem" if end is stem else end.name
        axis.set_title(f"{name}: {' x '.join(map(str, end.output.shape[1:]))}")
        axis.axis("off")
    return figure, convolutions
