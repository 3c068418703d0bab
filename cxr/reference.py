"""What a run stands beside: the report's numbers, and the published runs in results/."""

import json

import pandas as pd

from cxr.files import PROJECT, RESULTS
from cxr.runs import DEFAULTS, MAIN_IMAGES, ModelRun

REPORT = json.loads((PROJECT / "cxr" / "reported.json").read_text(encoding="utf-8"))
CLAIMS = REPORT["claims"]  # number: where the notebooks show the evidence, what the report says
REPORTED = REPORT["runs"]  # of the test images; rows of the confusion matrix are true classes
for _run in (_r for _r in REPORTED.values() if "layers" in _r):  # Figs. 3, 8 and 11
    _run["layers"] = [(kind, tuple(shape), n) for kind, shape, n in _run["layers"]]
(_a, _b), (_c, _d) = REPORTED["02_cnn1_2class"]["confusion"]
REPORTED["02_cnn1_2class"] |= {"sensitivity": _d / (_c + _d), "specificity": _a / (_a + _b)}
_MAIN = {**DEFAULTS, "stratified": True, "ablation": ""}


def published_runs(notebook, images=MAIN_IMAGES, **settings):
    """Rows of results/runs.csv (columns: results/README.md), sorted by seed: the published runs of
    a notebook ("02_cnn1_2class"). `images` is the label of their images; `settings` (dropout,
    patience, stratified, ablation) are those of the main runs unless given. None stands for all."""
    table = pd.read_csv(RESULTS / "runs.csv").fillna({"ablation": ""})
    for column, value in {"notebook": notebook, "images": images, **_MAIN, **settings}.items():
        table = table if value is None else table[table[column] == value]
    return table.sort_values(["images", "seed"]).reset_index(drop=True)


def _history(run):
    return ModelRun(RESULTS / run.images / f"seed-{run.seed}" / run.run).history


def published_histories(runs):
    """The epochs of rows of `published_runs`: `TrainingCheckpoint.history` with a column seed."""
    return pd.concat([_history(run).assign(seed=run.seed) for run in runs.itertuples()])


def stopping_epochs(losses, patience):
    """dict of the epochs, from 1, at which early stopping ends on these validation losses ("last")
    and of the lowest one until then ("best")."""
    lowest = [min(range(n + 1), key=losses.__getitem__) for n in range(len(losses))]  # until then
    last = next((n for n, best in enumerate(lowest) if n - best >= patience), len(losses) - 1)
    return {"best": lowest[last] + 1, "last": last + 1}


def sensitivity_table(notebook):
    """What published runs would have reached under other settings that the report leaves open: a
    smaller patience stops earlier on the same path, so one run with a large one tells about all.
    Returns a DataFrame: seed, dropout, stratified, patience, weights (of the "best" or the
    "last" epoch), epoch (of these, from 1) and accuracy on the test images, if it was followed."""
    rows, columns = [], ["seed", "dropout", "stratified", "patience", "weights"]
    runs = published_runs(notebook, dropout=None, patience=None, stratified=None)
    for run in runs.itertuples():
        history = _history(run)
        for patience in range(2, min(run.patience, 10) + 1) if "test_accuracy" in history else ():
            for weights, epoch in stopping_epochs(history["val_loss"], patience).items():
                rows.append((run.seed, run.dropout, run.stratified, patience, weights, epoch,
                             history["test_accuracy"][epoch - 1]))  # fmt: skip
    return pd.DataFrame(rows, columns=[*columns, "epoch", "accuracy"]).drop_duplicates(columns)


def compare_with_report(findings):
    """The table *Comparison with the report*, from a dict of claims ("C11") to what this run found,
    in words: a DataFrame indexed by claim of report, this run, published runs, verdict (of these;
    the rules are in results/claims.md)."""
    claims = pd.read_csv(RESULTS / "claims.csv", keep_default_na=False).set_index("claim")
    table = claims.loc[list(findings), ["report", "published", "verdict"]]
    table.insert(1, "this run", list(findings.values()))
    return table.rename(columns={"published": "published runs"})
