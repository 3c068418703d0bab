"""The verdicts follow their rules, and the open choices are looked back at correctly."""

import json
import re

import ledger
import nbformat
import numpy as np
import pandas as pd
import pytest
from scipy import stats

import utils

MEASURES = {"recall": {"normal": 0.4, "bacterial": 0.9, "viral": 0.6}}


@pytest.fixture
def publish(tmp_path, monkeypatch):
    """Writes runs into a results folder of its own, as a study leaves them."""
    monkeypatch.setattr(utils, "RESULTS", tmp_path / "results")

    def write(stage, seed, accuracy, epochs=8, label="copy", rise=None, **facts):
        folder = utils.RESULTS / label / f"seed-{seed}" / stage
        folder.mkdir(parents=True)
        rows = 200
        right = np.arange(rows) < round(accuracy * rows)
        predictions = pd.DataFrame({
            "file": [f"{n:03d}" for n in range(rows)], "part": "test",
            "patient": [f"p{n // 2}" for n in range(rows)], "true": "pneumonia",
            "normal": 1.0 - right, "pneumonia": right * 1.0,
        })  # fmt: skip
        losses = [
            1 - 0.1 * min(e, epochs - 3) + 0.05 * max(0, e - epochs + 3) for e in range(epochs)
        ]
        history = pd.DataFrame({
            "epoch": range(1, epochs + 1), "loss": losses, "val_loss": losses,
            "test_accuracy": np.linspace(0.5, accuracy, epochs),
        })  # fmt: skip
        if rise is not None:  # per epoch, while the training loss falls
            history["loss"] = 1 - 0.02 * history["epoch"]
            history["val_loss"] = 0.5 + rise * history["epoch"]
        predictions.to_csv(folder / "predictions.csv", index=False)
        history.to_csv(folder / "history.csv", index=False)
        files = {f: utils._checksums(folder / f)[0] for f in ("predictions.csv", "history.csv")}
        utils.write_json(folder / "run.json", {
            "stage": stage, "seed": seed, "files": files, "data": {"label": label},
            "metrics": {"accuracy": accuracy, **MEASURES}, **facts,
        })  # fmt: skip

    return write


def rewrite(folder, change, name="history.csv"):
    """Changes a table of a published run, and its checksum with it."""
    change(pd.read_csv(folder / name)).to_csv(folder / name, index=False)
    facts = utils.read_json(folder / "run.json")
    facts["files"][name] = utils._checksums(folder / name)[0]
    utils.write_json(folder / "run.json", facts)


def test_an_accuracy_gets_a_verdict_from_three_seeds_on(publish):
    for seed, accuracy in enumerate((0.80, 0.82, 0.84)):
        runs = ledger.Runs("copy")
        if seed:
            words, verdict = ledger.accuracy(runs, ledger.S02)
            assert verdict == f"open: {seed} of 3 seeds" and "one more run" not in words
        else:
            with pytest.raises(ledger.Open, match="0 of 3 seeds of 02_cnn1_2class"):
                ledger.accuracy(runs, ledger.S02)
        publish(ledger.S02, seed, accuracy)
    words, verdict = ledger.accuracy(ledger.Runs("copy"), ledger.S02)
    assert words.startswith("82.0% ± 2.0% (80.0% to 84.0%)")
    assert "by patient" in words and "one more run" in words
    assert verdict == "not contradicted: 3 of 5 seeds"
    for seed in (3, 4):
        publish(ledger.S02, seed, 0.82)
    assert ledger.accuracy(ledger.Runs("copy"), ledger.S02)[1] is True


def test_a_number_far_from_the_spread_is_not_reproduced(publish):
    for seed, epochs in enumerate((20, 21, 22)):
        publish(ledger.S02, seed, 0.8, epochs)
    words, verdict = ledger.epochs(ledger.Runs("copy"), ledger.S02, 8)
    assert verdict is False and words == "21 ± 1 (20 to 22); one more run 16 to 26"
    verdict = ledger.epochs(ledger.Runs("copy"), ledger.S02, 24)[1]
    assert verdict == "not contradicted: 3 of 5 seeds"


def test_a_range_ends_where_numbers_cannot_be(publish):
    for seed, epochs in enumerate((4, 9, 14)):
        publish(ledger.S02, seed, 0.8 + 0.1 * seed, epochs)
    runs = ledger.Runs("copy")
    assert ledger.epochs(runs, ledger.S02, 8)[0].endswith("one more run 1 to 33.8")
    assert ledger.accuracy(runs, ledger.S02)[0].endswith("to 100.0%")


def test_the_expected_range_is_where_one_more_run_falls():
    rng = np.random.default_rng(0)
    inside = []
    for _ in range(2000):
        *seen, one = rng.normal(0.8, 0.02, 6)
        low, high = ledger.expected_range(np.array(seen))
        inside.append(low <= one <= high)
    assert 0.935 < np.mean(inside) < 0.965
    narrow, wide = (ledger.expected_range(np.array([0.79, 0.8, 0.81]), e) for e in (0, 0.02))
    assert wide[0] < narrow[0] < narrow[1] < wide[1]


def test_the_interval_of_a_difference_is_students():
    values = pd.Series([0.01, 0.03, 0.02, 0.05])
    wanted = stats.ttest_1samp(values, 0).confidence_interval()
    assert ledger.difference_interval(values) == pytest.approx((wanted.low, wanted.high))


def test_differences_whose_interval_holds_0_are_undecided(publish):
    above, around = np.array([0.018, 0.02, 0.022]), np.array([-0.01, 0.02, 0.05])
    assert ledger.claimed_side(above) is True and ledger.claimed_side(-above) is False
    assert ledger.claimed_side(around) == ledger.claimed_side(-around) == "undecided"
    assert ledger.together({"a": True, "b": True}) is True
    assert ledger.together({"a": "undecided", "b": "undecided"}) == "undecided"
    for seed in range(3):
        publish(ledger.S03, seed, 0.60 + 0.01 * seed)
        publish(ledger.S04, seed, 0.75)
        publish(ledger.S05, seed, (0.70, 0.75, 0.80)[seed])
    words, verdict = ledger.ranking(ledger.Runs("copy"))
    assert verdict == "transfer beats InceptionV3 undecided, InceptionV3 beats CNN_1 reproduced"
    assert "04 against 03 +14.0 points" in words and "05 against 04 +0.0 points" in words


def test_the_class_found_best_is_compared_with_the_next_best(publish):
    runs = [(0.90, 0.95), (0.91, 0.96), (0.89, 0.94)]  # precision of bacterial, of normal
    for seed, (bacterial, normal) in enumerate(runs):
        recall = {"normal": 0.4 + 0.01 * seed, "bacterial": 0.9, "viral": 0.6}
        precision = {"normal": normal, "bacterial": bacterial, "viral": 0.5}
        metrics = {"accuracy": 0.7, "recall": recall, "precision": precision}
        publish(ledger.S03, seed, 0.7, metrics=metrics)
    words, verdict = ledger.best_class(ledger.Runs("copy"))
    assert verdict == "by recall not reproduced, by precision reproduced"
    assert words.startswith("recall: normal 41.0%, bacterial 90.0%")
    precision = {"normal": 0.5, "bacterial": 0.9, "viral": 0.5}
    metrics = {"accuracy": 0.7, "recall": recall, "precision": precision}
    publish(ledger.S03, 3, 0.7, metrics=metrics)  # one seed the other way
    verdict = ledger.best_class(ledger.Runs("copy"))[1]
    assert verdict.endswith("by precision undecided")


@pytest.mark.parametrize(
    ("viral", "wanted"),
    [((70, 80, 90), True), ((10, 0, 20), False), ((10, 90, 60), "undecided")],
)
def test_normals_are_confused_with_one_class_more_than_with_the_other(publish, viral, wanted):
    for seed, count in enumerate(viral):
        publish(ledger.S03, seed, 0.7)
        said = ["viral"] * count + ["bacterial"] * 40 + ["normal"] * 70
        table = pd.get_dummies(pd.Series(said)).reindex(columns=utils.CLASSES[3]).astype(float)
        table = table.assign(file=range(len(said)), part="test", patient="p", true="normal")
        folder = utils.RESULTS / "copy" / f"seed-{seed}" / ledger.S03
        rewrite(folder, lambda _, table=table: table, "predictions.csv")
    words, verdict = ledger.confused_with(ledger.Runs("copy"))
    assert verdict == wanted and f"viral {list(viral)}, bacterial [40, 40, 40]" in words


def test_the_share_of_pneumonia_and_the_frozen_part_are_judged_by_their_numbers(publish):
    counts = {"train": {"normal": 37, "viral": 63}, "test": {"normal": 50, "viral": 50}}
    publish("01_data", 0, 0.5, counts=counts)
    words, verdict = ledger.prevalence(ledger.Runs("copy"))
    assert verdict is False and words == "56.5% of all images, 50.0% of the test images"
    counts["test"] = {"normal": 37, "viral": 63}
    publish("01_data", 1, 0.5, label="other", counts=counts)
    assert ledger.prevalence(ledger.Runs("other"))[1] is True
    counts |= {"train": {"normal": 20, "viral": 80}, "test": {"normal": 234, "viral": 390}}
    publish("01_data", 2, 0.5, label="third", counts=counts)
    assert ledger.prevalence(ledger.Runs("third"))[1].endswith("true of the test images alone")
    publish(ledger.S04, 0, 0.7, parameters=34943523, trainable=13140739)
    assert ledger.architecture(ledger.Runs("copy"))[1] is True
    publish(ledger.S04, 1, 0.7, parameters=34943524, trainable=13140739)
    assert ledger.architecture(ledger.Runs("copy"))[1] is False


def test_over_fitting_is_judged_after_the_stop(publish):
    for seed in range(3):
        publish(ledger.S04, seed, 0.75, epochs=8 + seed, rise=0)
        publish(f"{ledger.S04}-past", seed, 0.75, epochs=25, rise=0.01 + 0.001 * seed)
    words, verdict = ledger.over_fitting(ledger.Runs("copy"))
    assert verdict is True and "validation loss +0.110 " in words
    assert "training loss -0.200" in words
    for seed in (3, 4, 5):  # others fall
        publish(ledger.S04, seed, 0.75, epochs=8, rise=0)
        publish(f"{ledger.S04}-past", seed, 0.75, epochs=25, rise=(-0.2, 0.3, -0.1)[seed - 3])
    wanted = "training loss falls reproduced, validation loss rises undecided"
    assert ledger.over_fitting(ledger.Runs("copy"))[1] == wanted


def test_differences_are_paired_by_seed(publish):
    for seed, (one, two) in enumerate(((0.80, 0.70), (0.70, 0.60), (0.90, 0.80))):
        publish("a", seed, one)
        publish("b", seed, two)
    publish("a", 7, 0.1)  # has no partner
    paired = ledger.Runs("copy").differences("a", "b", "accuracy")
    assert paired.tolist() == pytest.approx([0.1, 0.1, 0.1])
    with pytest.raises(ledger.Open, match="0 of 3 seeds of c"):
        ledger.Runs("copy").differences("a", "c", "accuracy")


def test_the_open_choices_of_one_long_run(publish):
    chosen = {"dropout": 0.2, "patience": 10, "stratified": True}
    publish("05_cnn1_transfer-patience-10", 0, 0.8, epochs=30, choices=chosen)
    publish("05_cnn1_transfer-zoom", 0, 0.1, epochs=30)  # a trial, not a choice
    table = utils.open_choices("05_cnn1_transfer")
    assert set(table["patience"]) == {2, 3, 5, 10} and len(table) == 8
    by = table.set_index(["patience", "weights"])
    history = np.linspace(0.5, 0.8, 30)
    assert by.loc[(2, "best"), "epoch"] == 28 and by.loc[(2, "last"), "epoch"] == 30
    assert by.loc[(2, "best"), "accuracy"] == pytest.approx(history[27])
    said = utils.open_choices_said(table, 0.79)
    assert "8 combinations of choice and seed (1 seeds)" in said and "of them reach" in said
    both = pd.concat([table, table.assign(stratified=False)])
    figure = utils.plot_open_choices(both, 0.84, "title")
    assert figure.get_suptitle() == "title"
    [below] = figure.axes[0].child_axes
    groups = [label.get_text().strip() for label in below.get_xticklabels()]
    assert groups == ["dropout 0.2", "dropout 0.2\nnot stratified"]
    ticks = [label.get_text() for label in figure.axes[0].get_xticklabels()]
    assert ticks == ["2", "3", "5", "10"] * 2


def test_the_epochs_of_all_seeds_are_drawn_side_by_side(publish):
    assert utils.published_histories(ledger.S02).empty
    for seed, epochs in enumerate((8, 12)):
        publish(ledger.S02, seed, 0.8, epochs)
        publish(f"{ledger.S02}-nadam", seed, 0.8, epochs=5)
    table = utils.published_histories(ledger.S02)
    assert table.groupby("seed").size().tolist() == [8, 12] and set(table["data"]) == {"copy"}
    nadam = utils.published_histories(f"{ledger.S02}-nadam")
    axes = utils.plot_histories({"Adam": table, "Nadam": nadam}, "title").axes
    assert [axis.get_title() for axis in axes] == ["Adam", "Nadam"]
    lines = axes[0].get_lines()
    assert [len(line.get_xdata()) for line in lines] == [8, 8, 12, 12]
    assert lines[1].get_ydata().tolist() == table.loc[table["seed"] == 0, "val_loss"].tolist()
    said = [text.get_text() for text in axes[0].get_legend().get_texts()]
    assert said == ["training", "validation"]


def test_the_same_path_counts_once(publish):
    publish("05_cnn1_transfer", 0, 0.8, epochs=30)
    before = utils.open_choices("05_cnn1_transfer")
    chosen = {"dropout": 0.2, "patience": 5, "stratified": True}
    publish("05_cnn1_transfer-patience-5", 0, 0.8, epochs=30, choices=chosen)
    after = utils.open_choices("05_cnn1_transfer")
    assert set(before["patience"]) == {2, 3} and set(after["patience"]) == {2, 3, 5}
    assert len(after) == 6


def test_a_run_past_its_stop_counts_for_the_patience_it_is_long_enough_for(publish):
    chosen = {"dropout": 0.2, "patience": 25, "stratified": True}
    publish(f"{ledger.S04}-past", 0, 0.8, epochs=12, choices=chosen)
    path = utils.RESULTS / "copy" / "seed-0" / f"{ledger.S04}-past"
    rewrite(path, lambda h: h.assign(val_loss=[9, 8, 7, 6, 7, 7, 7, 7, 7, 7, 7, 7]))
    table = utils.open_choices(ledger.S04).query("weights == 'last'")
    assert dict(zip(table["patience"], table["epoch"], strict=True)) == {2: 6, 3: 7, 5: 9}


def test_a_run_that_was_not_followed_tells_about_itself_alone(publish):
    publish(ledger.S02, 0, 0.8, epochs=9)
    path = utils.RESULTS / "copy" / "seed-0" / ledger.S02
    rewrite(path, lambda history: history.drop(columns="test_accuracy"))
    [row] = utils.open_choices(ledger.S02).to_dict("records")
    assert (row["patience"], row["weights"], row["epoch"], row["accuracy"]) == (3, "best", 7, 0.8)


def test_choices_are_compared_where_all_else_is_equal():
    rows = [
        (seed, dropout, 0.7 + 0.1 * (dropout > 0) + 0.05 * seed)
        for seed, dropout in ((0, 0.0), (0, 0.2), (1, 0.2))  # seed 1 has no dropout 0
    ]
    table = pd.DataFrame(rows, columns=["seed", "dropout", "accuracy"]).assign(
        data="copy", stratified=True, patience=3, weights="best"
    )
    said = utils.open_choices_said(table, 0.79)
    assert "mean by dropout: 0.0 70.0%, 0.2 80.0%" in said
    assert "mean by seed: 0 80.0%, 1 85.0%" in said and "mean by patience" not in said


def test_stage_names_by_choice():
    name = utils.stage_name
    assert name("05_cnn1_transfer", dropout=0.2, patience=3, stratified=True) == "05_cnn1_transfer"
    assert name("x", dropout=0.0, patience=10) == "x-dropout-0-patience-10"
    assert name("x", dropout=0.5, stratified=False) == "x-dropout-0.5-unstratified"


def test_every_claim_names_a_section_of_its_notebook():
    headings = {}
    for path in (utils.PROJECT / "notebooks").glob("*.ipynb"):
        cells = nbformat.read(path, as_version=4).cells
        text = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
        headings[path.stem[:2]] = re.findall(r"^#+ (.+)", text, re.M)
    for _, _, places, _ in ledger.CLAIMS:
        for place in places.split(", "):
            assert any(heading.startswith(place[3:]) for heading in headings[place[:2]]), place


def test_the_notebooks_table_takes_published_verdicts(publish, make_run, tiny_set, tmp_path):
    utils.RESULTS.mkdir()
    pd.DataFrame(
        [("C11", "82%", "copy", "80%", "reproduced", "02"),
         ("C11", "82%", "kaggle", "81%", "not reproduced", "02"),
         ("C07", "266,306", "copy", "266,306", "reproduced", "02")],
        columns=["claim", "report", "data", "ours", "verdict", "notebook"],
    ).to_csv(utils.RESULTS / "claims.csv", index=False)  # fmt: skip
    run = make_run(tiny_set(), profile="full")
    images = utils.open_images(run)
    table = utils.claims_table(run, images, {"C11": "79%", "C07": ("1", False)})
    assert table.loc["C11"].tolist() == ["82%", "79%", "80%", "reproduced"]
    assert table.loc["C07", "verdict"] == "not reproduced"
    kaggle = utils.dataclasses.replace(images, label="kaggle")
    assert utils.claims_table(run, kaggle, {"C11": "79%"})["verdict"].item() == "not reproduced"
    phantom = utils.dataclasses.replace(run, data="phantom")
    assert "phantoms" in utils.claims_table(phantom, images, {"C11": "1%"})["verdict"].item()


def test_a_study_skips_what_is_there_and_reports_what_failed(tmp_path, monkeypatch):
    import study

    called = []

    def execute(path, fields):
        called.append((path.stem, fields, study.os.environ["CXR_SEED"]))
        if len(called) > 1:
            return ledger_notebook(), RuntimeError("cell 3 broke")
        folder = tmp_path / "seed-4" / "x"
        folder.mkdir(parents=True)
        (folder / "run.json").write_text(json.dumps({}))
        utils.write_json(folder / "run.json", {"stage": "x"})
        return ledger_notebook(), None

    def ledger_notebook():
        return study.nbformat.v4.new_notebook()

    monkeypatch.setattr(study.runner, "execute", execute)
    monkeypatch.setattr(study.runner, "publish_stages", lambda out: None)
    monkeypatch.setattr(study.ledger, "write", lambda: None)
    monkeypatch.setenv("CXR_SEED", "0")
    step = study.Step("01_data", {"A": "1"}, "x")
    assert study.run_step(step, 4, tmp_path).endswith(" s")
    assert called == [("01_data", {"A": "1"}, "4")]
    assert study.run_step(step, 4, tmp_path) is None and len(called) == 1
    assert "failed" in study.run_step(study.Step("01_data", {}, "y"), 4, tmp_path)


def test_every_step_of_the_study_fills_fields_that_are_there():
    import study

    for step in [step for group in study.GROUPS.values() for step in group]:
        path = utils.PROJECT / "notebooks" / f"{step.notebook}.ipynb"
        notebook = study.nbformat.read(path, as_version=4)
        study.runner.set_fields(notebook, step.fields)  # exits on an unknown field
        source = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "code")
        for name, value in step.fields.items():
            assert f"{name} = {value} " in source or f'{name} = "{value}" ' in source
