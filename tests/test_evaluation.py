"""Measures against values worked out by hand or by another way."""

import json

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import small

import utils


def predictions(true, predicted, classes):
    """A table as `predict` gives, with as sure a prediction for every image."""
    names = list(utils.CLASS_NAMES[classes])
    scores = np.where([[name == one for name in names] for one in predicted], 0.8, 0.1)
    table = pd.DataFrame(scores, columns=names).assign(true=true, split="test")
    return table.assign(patient=table.index, file=table.index)


def test_the_reports_own_matrix():
    """388 of 390 pneumonia and 123 of 234 normals give the report's 82%."""
    true = ["pneumonia"] * 390 + ["normal"] * 234
    predicted = ["pneumonia"] * 388 + ["normal"] * 2 + ["normal"] * 123 + ["pneumonia"] * 111
    found = utils.evaluate(predictions(true, predicted, 2))
    assert found["accuracy"] == pytest.approx(511 / 624)
    assert found["sensitivity"] == found["recall"]["pneumonia"] == pytest.approx(388 / 390)
    assert found["specificity"] == found["recall"]["normal"] == pytest.approx(123 / 234)
    assert found["precision"]["normal"] == pytest.approx(123 / 125)
    assert found["auc"] == pytest.approx((388 / 390 + 123 / 234) / 2)  # of two scores alone
    half = 1.96 * np.sqrt(0.819 * 0.181 / 624)  # binomial, as patients are independent here
    assert found["accuracy_low"] < found["accuracy"] < found["accuracy_high"]
    assert found["accuracy_high"] - found["accuracy_low"] == pytest.approx(2 * half, rel=0.15)


def test_the_interval_resamples_patients_not_images():
    values = [True] * 100 + [False] * 100
    width = np.diff(utils.cluster_bootstrap_interval(values, range(200)))
    assert np.diff(utils.cluster_bootstrap_interval(values, np.arange(200) // 20)) > 3 * width


def test_three_classes():
    true = ["normal", "normal", "bacterial", "viral", "viral", "viral"]
    predicted = ["normal", "viral", "bacterial", "viral", "viral", "normal"]
    found = utils.evaluate(predictions(true, predicted, 3))
    assert found["accuracy"] == pytest.approx(4 / 6)
    assert found["recall"] == {"normal": 0.5, "bacterial": 1.0, "viral": pytest.approx(2 / 3)}
    assert found["precision"]["viral"] == pytest.approx(2 / 3)
    assert found["auc"] == pytest.approx((5 / 8 + 1 + 6 / 9) / 3)  # pairs; ties count one half
    assert "sensitivity" not in found


def test_a_class_without_images_is_not_measured_and_the_run_is_saved(config, images):
    for classes, missing in (2, "pneumonia"), (3, "viral"):
        true = [name for name in utils.CLASS_NAMES[classes] if name != missing] * 3
        table = predictions(true, ["normal", *true[1:]], classes)
        found = utils.evaluate(table)
        assert found["recall"].pop(missing) is None and found["auc"] is None
        assert None not in found["recall"].values()
        row = utils.metrics_table({"a": table}).loc["a"]
        assert row["ROC AUC"] == row[f"recall {missing}"] == "-" and row["accuracy"].endswith("%")
        plt.close(utils.plot_confusion(table, "title"))
        checkpoint = utils.TrainingCheckpoint(config, missing, images, None, None)
        vars(checkpoint).update(settings={}, rows=[], is_new=True)
        utils.save_run(checkpoint, small.build_model(0.1), table)
        content = (config.output_dir / missing / "run.json").read_text()
        metrics = json.loads(content, parse_constant=lambda name: 1 / 0)["metrics"]["test"]
        assert metrics["auc"] is None and metrics["accuracy"] == found["accuracy"]


def test_baselines_do_not_know_the_true_classes_and_neighbours_vote(sample_images):
    metadata = sample_images.metadata.sample(160, random_state=0).assign(split="test")
    train, test = metadata[::2], metadata[1::2]
    found = utils.baselines(sample_images, train, test, 3)
    again = utils.baselines(sample_images, train, test.assign(class3="normal"), 3)
    names = list(utils.CLASS_NAMES[3])
    for name in found:
        pd.testing.assert_frame_equal(found[name][names], again[name][names])
    assert (found["majority class"][train["class3"].mode()[0]] == 1).all()
    votes = found["11 nearest neighbours"][names] * 11
    np.testing.assert_allclose(votes, votes.round(), atol=1e-4)
    accuracy = {name: utils.evaluate(table)["accuracy"] for name, table in found.items()}
    assert accuracy["11 nearest neighbours"] > accuracy["majority class"]


def test_predictions_name_file_split_patient_and_class(images):
    rows, model = images.metadata[::-2].assign(split="test"), small.build_model(0.1)
    table = utils.predict(model, images, rows, 2, batch_size=5)
    assert [*table] == ["file", "split", "patient", "true", "normal", "pneumonia"]
    copied = ["file", "split", "patient"]
    assert table[copied].equals(rows[copied]) and table["true"].equals(rows["class2"])
    expected = model.predict(small.floats(images, rows), verbose=0)
    np.testing.assert_allclose(table[["normal", "pneumonia"]], expected, atol=1e-5)


def test_figures_say_what_they_show():
    history = pd.DataFrame({"epoch": [1, 2, 3], "loss": [3, 2, 1.0], "accuracy": [0.5, 0.6, 0.7],
                            "val_loss": [2, 1, 1.5], "val_accuracy": [0.5, 0.6, 0.6]})  # fmt: skip
    figure = utils.plot_history(history, 8, "Figure 4: x")
    words = {text.get_text() for legend in figure.legends for text in legend.get_texts()}
    assert words == {"training", "validation", "weights kept: epoch 2", "this run stopped: epoch 3",
                     "report stopped: epoch 8"}  # fmt: skip
    table = predictions(["normal"] * 4 + ["pneumonia"], ["normal"] + ["pneumonia"] * 4, 2)
    figure = utils.plot_confusion(table, "Figure 5: x", report=((9, 1), (0, 10)))
    texts = [text.get_text().split() for axis in figure.axes for text in axis.texts]
    assert texts[:4] == [["1", "25.0%"], ["3", "75.0%"], ["0", "0.0%"], ["1", "100.0%"]]
    assert [count for count, _ in texts[4:]] == ["9", "1", "0", "10"]
    plt.close("all")
