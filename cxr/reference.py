"""The published runs in results/, for the notebooks to stand beside: seeds, curves, verdicts."""

import pandas as pd

from cxr.runs import RESULTS, ModelRun

MAIN_IMAGES = "chest_xray_nearest224"  # prepared as the report does
SETTINGS = ["images", "seed", "dropout", "stratified", "patience", "weights"]


def published_runs(name=None, images=MAIN_IMAGES, **settings):
    """Rows of results/runs.csv: one published run each.

    Args:
        name: of the notebook's run ("02_cnn1_2class"); None for all.
        images: label of the images they were trained on; None for all.
        settings: further columns and their values; without any, the main runs.

    Returns:
        DataFrame with the columns that results/README.md lists, sorted by seed.
    """
    table = pd.read_csv(RESULTS / "runs.csv", keep_default_na=False, na_values=[""])
    table["ablation"] = table["ablation"].fillna("")
    wanted = {"dropout": 0.2, "patience": 3, "stratified": True, "ablation": "", **settings}
    if name is not None:
        wanted |= {"notebook": name}
    if images is not None:
        wanted |= {"images": images}
    for column, value in wanted.items():
        if value is not None:
            table = table[table[column] == value]
    return table.sort_values(["images", "seed"]).reset_index(drop=True)


def images_with_most_seeds(name, **settings):
    """The report's own kind of images where a run is published on at least 3 seeds of it, else
    the label with the most seeds."""
    counts = published_runs(name, images=None, **settings)["images"].value_counts()
    if counts.get(MAIN_IMAGES, 0) >= 3 or counts.empty:
        return MAIN_IMAGES
    return counts.idxmax()


def published_histories(runs):
    """The epochs of published runs, one below the other.

    Args:
        runs: rows of `published_runs`.

    Returns:
        DataFrame: `TrainingCheckpoint.history` of each, with the columns images and seed.
    """
    tables = [
        ModelRun(RESULTS / row.images / f"seed-{row.seed}" / row.run)
        .history.assign(images=row.images, seed=row.seed)
        for row in runs.itertuples()
    ]  # fmt: skip
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()


def stopping_epoch(losses, patience):
    """(last, best): the epoch, from 1, at which early stopping ends on these validation losses,
    and the epoch of the lowest one until then."""
    best = 0
    for epoch, loss in enumerate(losses):
        best = epoch if loss < losses[best] else best
        if epoch - best >= patience:
            break
    return epoch + 1, best + 1


def sensitivity_table(name, images):
    """What published runs would have reached under other settings that the report leaves open.

    A smaller patience stops earlier on the same path, so one run with a large patience tells
    about all smaller ones.

    Returns:
        DataFrame with the columns images, seed, dropout, stratified, patience, weights (of the
        "best" or the "last" epoch), epoch (whose weights these are, from 1) and accuracy (on the
        test images). Runs whose test accuracy was not followed are left out.
    """
    rows = []
    runs = published_runs(name, images, dropout=None, patience=None, stratified=None)
    for run in runs.itertuples():
        history = ModelRun(RESULTS / run.images / f"seed-{run.seed}" / run.run).history
        if "test_accuracy" not in history:
            continue
        for patience in (p for p in range(2, 11) if p <= run.patience):
            last, best = stopping_epoch(history["val_loss"], patience)
            for weights, epoch in (("best", best), ("last", last)):
                accuracy = history["test_accuracy"][epoch - 1]
                rows.append((run.images, run.seed, run.dropout, run.stratified, patience,
                             weights, epoch, accuracy))  # fmt: skip
    table = pd.DataFrame(rows, columns=[*SETTINGS, "epoch", "accuracy"])
    return table.drop_duplicates(SETTINGS).reset_index(drop=True)


def compare_with_report(findings):
    """The table *Comparison with the report*: this run beside the published ones.

    Args:
        findings: dict from a claim's number ("C11") to what this run found, in words.

    Returns:
        DataFrame indexed by claim: report, this run, published runs, verdict (of these; the
        rules are in results/claims.md).
    """
    claims = pd.read_csv(RESULTS / "claims.csv", keep_default_na=False).set_index("claim")
    table = claims.loc[list(findings), ["report", "published", "verdict"]]
    table.insert(1, "this run", list(findings.values()))
    return table.rename(columns={"published": "published runs"})
