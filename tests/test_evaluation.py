"""Measures against values worked out by hand or by another way."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

import utils


def predictions(true, said, classes, patients=None):
    names = list(utils.CLASSES[classes])
    table = pd.DataFrame(0.1, index=range(len(true)), columns=names)
    for row, name in enumerate(said):
        table.loc[row, name] = 0.8
    table.insert(0, "true", true)
    table.insert(0, "patient", patients or [f"p{n}" for n in range(len(true))])
    return table


def test_the_reports_own_matrix():
    """388 of 390 pneumonia and 123 of 234 normals give the report's 82%."""
    true = ["pneumonia"] * 390 + ["normal"] * 234
    said = ["pneumonia"] * 388 + ["normal"] * 2 + ["normal"] * 123 + ["pneumonia"] * 111
    found = utils.evaluate(predictions(true, said, 2), 2)
    assert found["accuracy"] == pytest.approx(511 / 624)
    assert found["sensitivity"] == pytest.approx(388 / 390)
    assert found["specificity"] == pytest.approx(123 / 234)
    assert found["precision"]["normal"] == pytest.approx(123 / 125)
    assert found["accuracy_low"] < found["accuracy"] < found["accuracy_high"]
    # independent patients: close to the binomial interval
    half = 1.96 * np.sqrt(0.819 * 0.181 / 624)
    assert found["accuracy_high"] - found["accuracy_low"] == pytest.approx(2 * half, rel=0.15)


def test_the_interval_resamples_patients_not_images():
    true = ["normal"] * 200
    said = ["normal"] * 100 + ["pneumonia"] * 100
    one_each = utils.evaluate(predictions(true + ["pneumonia"], said + ["pneumonia"], 2), 2)
    few = [f"p{n // 20}" for n in range(200)] + ["q"]
    grouped = utils.evaluate(predictions(true + ["pneumonia"], said + ["pneumonia"], 2, few), 2)
    assert grouped["accuracy"] == one_each["accuracy"]
    width = [m["accuracy_high"] - m["accuracy_low"] for m in (one_each, grouped)]
    assert width[1] > 3 * width[0]


def test_three_classes():
    true = ["normal", "normal", "bacterial", "viral", "viral", "viral"]
    said = ["normal", "viral", "bacterial", "viral", "viral", "normal"]
    found = utils.evaluate(predictions(true, said, 3), 3)
    assert found["accuracy"] == pytest.approx(4 / 6)
    assert found["recall"] == {"normal": 0.5, "bacterial": 1.0, "viral": pytest.approx(2 / 3)}
    assert found["precision"]["viral"] == pytest.approx(2 / 3)
    assert "sensitivity" not in found


def test_yardsticks_know_nothing_of_the_test_labels(phantom_images):
    index = phantom_images.index.assign(part="test")
    train, test = (index[index["split"] == split] for split in ("train", "test"))
    found = utils.yardsticks(phantom_images, train, test, 2)
    wrong = test.assign(class2="normal")
    again = utils.yardsticks(phantom_images, train, wrong, 2)
    for name in found:
        names = list(utils.CLASSES[2])
        pd.testing.assert_frame_equal(found[name][names], again[name][names])
    majority = train["class2"].mode()[0]
    assert (found["majority class"][majority] == 1).all()


def test_neighbours_vote_with_probabilities(phantom_images):
    rows = phantom_images.index.groupby("class3").head(14).assign(part="test")
    near = utils.yardsticks(phantom_images, rows, rows, 3)["11 nearest neighbours"]
    votes = near[list(utils.CLASSES[3])] * 11
    np.testing.assert_allclose(votes.sum(axis=1), 11, atol=1e-4)
    np.testing.assert_allclose(votes, votes.round(), atol=1e-4)


def test_comparison_table():
    true, said = ["normal", "pneumonia"], ["normal", "pneumonia"]
    table = utils.comparison({"a": predictions(true, said, 2)}, 2)
    assert table.loc["a", "accuracy"] == "100.0%" and table.loc["a", "ROC AUC"] == "1.000"


def test_figures_say_what_they_show():
    history = pd.DataFrame({"epoch": [1, 2, 3], "loss": [3, 2, 1.0], "accuracy": [0.5, 0.6, 0.7],
                            "val_loss": [2, 1, 1.5], "val_accuracy": [0.5, 0.6, 0.6]})  # fmt: skip
    figure = utils.plot_history(history, reported=8, title="Figure 4: x")
    words = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert words == ["training", "validation", "weights kept: epoch 2", "report stopped: epoch 8"]
    table = predictions(["normal", "pneumonia"], ["pneumonia", "pneumonia"], 2)
    figure = utils.plot_confusion(table, 2, "Figure 5: x")
    shown = {text.get_text() for axis in figure.axes for text in axis.texts}
    assert {"0", "1", "100.0%", "0.0%"} <= shown
    plt.close("all")


def test_colours_differ_in_grey():
    def lightness(colour):
        red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
        return 0.299 * red + 0.587 * green + 0.114 * blue

    for group in (utils.CLASSES[3], utils.CLASSES[2], ("train", "validation", "test")):
        values = sorted(lightness(utils.COLOURS[name]) for name in group)
        assert np.diff(values).min() > 25
