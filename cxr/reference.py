"""The published runs in results/, for the notebooks to stand beside: seeds, curves, verdicts."""

import pandas as pd

from cxr.files import RESULTS
from cxr.runs import ModelRun

MAIN_IMAGES = "chest_xray_nearest224"  # prepared as the report does
_SETTINGS = ["images", "seed", "dropout", "stratified", "patience", "weights"]
_MAIN = {"dropout": 0.2, "patience": 3, "stratified": True, "ablation": ""}


def published_runs(notebook, images=MAIN_IMAGES, **settings):
    """Rows of results/runs.csv, sorted by seed: one published run of a notebook
    ("02_cnn1_2class") each, with the columns that results/README.md lists.

    `images` is the label of the images they were trained on; `settings` can name dropout, patience,
    stratified and ablation, and are else those of the main runs. None stands for all.
    """
    table = pd.read_csv(RESULTS / "runs.csv").fillna({"ablation": ""})
    for column, value in {"notebook": notebook, "images": images, **_MAIN, **settings}.items():
        table = table if value is None else table[table[column] == value]
    return table.sort_values(["images", "seed"]).reset_index(drop=True)


def images_with_most_seeds(notebook, **settings):
    """The label of the images for a mean over seeds: the report's own kind where a run is
    published on at least 3 seeds of it, else the one with most seeds."""
    counts = published_runs(notebook, images=None, **settings)["images"].value_counts()
    enough = counts.empty or counts.get(MAIN_IMAGES, 0) >= 3
    return MAIN_IMAGES if enough else counts.idxmax()


def _history(row):
    return ModelRun(RESULTS / row.images / f"seed-{row.seed}" / row.run).history


def published_histories(runs):
    """The epochs of rows of `published_runs`, one below the other: `TrainingCheckpoint.history`
    with the columns images and seed."""
    rows = list(runs.itertuples())
    return pd.concat([_history(row).assign(images=row.images, seed=row.seed) for row in rows])


def stopping_epoch(losses, patience):
    """(last, best): the epoch, from 1, at which early stopping ends on these validation losses,
    and the epoch of the lowest one until then."""
    best = 0
    for epoch, loss in enumerate(losses):
        best = epoch if loss < losses[best] else best
        if epoch - best >= patience:
            break
    return epoch + 1, best + 1


def sensitivity_table(notebook, images):
    """What published runs would have reached under other settings that the report leaves open: a
    smaller patience stops earlier on the same path, so one run with a large one tells about all.

    Returns a DataFrame: images, seed, dropout, stratified, patience, weights (of the "best" or the
    "last" epoch), epoch (whose weights these are, from 1) and accuracy on the test images. Runs
    whose test accuracy was not followed are left out.
    """
    rows = []
    every = {"dropout": None, "patience": None, "stratified": None}
    for run in published_runs(notebook, images, **every).itertuples():
        history = _history(run)
        for patience in range(2, min(run.patience, 10) + 1) if "test_accuracy" in history else ():
            last, best = stopping_epoch(history["val_loss"], patience)
            for weights, epoch in (("best", best), ("last", last)):
                rows.append((run.images, run.seed, run.dropout, run.stratified, patience,
                             weights, epoch, history["test_accuracy"][epoch - 1]))  # fmt: skip
    return pd.DataFrame(rows, columns=[*_SETTINGS, "epoch", "accuracy"]).drop_duplicates(_SETTINGS)


def compare_with_report(findings):
    """The table *Comparison with the report*, this run beside the published ones, from a dict of
    claims ("C11") to what this run found, in words.

    Returns a DataFrame indexed by claim: report, this run, published runs, verdict (of these; the
    rules are in results/claims.md).
    """
    claims = pd.read_csv(RESULTS / "claims.csv", keep_default_na=False).set_index("claim")
    table = claims.loc[list(findings), ["report", "published", "verdict"]]
    table.insert(1, "this run", list(findings.values()))
    return table.rename(columns={"published": "published runs"})
