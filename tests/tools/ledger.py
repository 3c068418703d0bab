"""The ledger: every claim of the report, what the published runs gave, and the verdict.

    python tests/tools/ledger.py

Reads results/LABEL/seed-N/STAGE and writes results/claims.csv, results/claims.md, the tables of
README.md and its figure. The rules, the same for all claims:

- A verdict where a seed matters needs at least 3 seeds; until then the claim is open.
- A number (accuracy, epochs, recall) is reproduced if the report's lies within the range expected
  of one more run: mean ± sqrt(t² s² (1 + 1/n) + 1.96² e²), with s the standard deviation over n
  seeds, t Student's 97.5% point, and e the standard error of one run on these test images, by
  patient (none for epochs); cut off at 0%, 100% and 1 epoch. Fewer than 5 seeds make the range
  so wide that a number inside it is only not contradicted; outside it is not reproduced.
- A difference, between two trainings or between two classes of one, is reproduced if the 95%
  t-interval of the differences seed by seed lies wholly on the claimed side of 0, not reproduced if
  wholly on the other side, and undecided if it holds 0. The class found best is compared with the
  next best; what is said to be kept must not lie wholly below 0. The slopes of the losses after a
  stop (over-fitting) are judged likewise.
- A claim of two parts gets a verdict for each where they differ.
"""

import re
import sys
from pathlib import Path

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from scipy import stats

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
import utils

LEAST_SEEDS = 3
ENOUGH_SEEDS = 5  # for a number
INCEPTION_PARAMETERS = 21_802_784  # row Functional of the report's Fig. 8
README = utils.PROJECT / "README.md"
CSV, MARKDOWN = utils.RESULTS / "claims.csv", utils.RESULTS / "claims.md"
FIGURE = utils.RESULTS / "accuracy.png"
S02, S03, S04, S05 = "02_cnn1_2class", "03_cnn1_3class", "04_inceptionv3", "05_cnn1_transfer"
MODELS = {  # stage: (model, the report's accuracy)
    S02: ("CNN_1, 2 classes", 0.82),
    S03: ("CNN_1, 3 classes", 0.71),
    S04: ("InceptionV3, 3 classes", 0.75),
    S05: ("CNN_1 transfer, 3 classes", 0.84),
}


SAID = {True: "reproduced", False: "not reproduced"}


class Open(Exception):
    """Not enough is published for a verdict; the message says what there is."""


class Runs:
    """The published runs on one set of images."""

    def __init__(self, label):
        self.label = label
        self.stages = {}
        for path in sorted(utils.RESULTS.glob(f"{label}/seed-*/*/run.json")):
            stage = utils.Stage(path.parent)
            self.stages.setdefault(stage.facts["stage"], {})[stage.facts["seed"]] = stage

    def of(self, name, least=1):
        """dict from seed to `utils.Stage`."""
        found = dict(sorted(self.stages.get(name, {}).items()))
        if len(found) < least:
            raise Open(f"{len(found)} of {LEAST_SEEDS} seeds of {name}")
        return found

    def values(self, name, measure):
        """Series over seeds of one number: a key of metrics, "epochs", or a function."""
        return pd.Series({seed: self._value(s, measure) for seed, s in self.of(name).items()})

    @staticmethod
    def _value(stage, measure):
        if measure == "epochs":
            return len(stage.history)
        if callable(measure):
            return measure(stage)
        value = stage.facts["metrics"]
        for key in measure.split("."):
            value = value[key]
        return value

    def differences(self, better, worse, measure):
        """Series over the seeds that both stages have."""
        a, b = self.values(better, measure), self.values(worse, measure)
        paired = (a - b).dropna()
        if len(paired) < LEAST_SEEDS:
            raise Open(f"{len(paired)} of {LEAST_SEEDS} seeds of {better} and {worse}")
        return paired


def expected_range(values, error=0.0):
    """(low, high): where one more run is expected, see the module's rules."""
    n = len(values)
    t = stats.t.ppf(0.975, n - 1)
    half = np.sqrt(t**2 * np.var(values, ddof=1) * (1 + 1 / n) + 1.96**2 * error**2)
    return np.mean(values) - half, np.mean(values) + half


def difference_interval(paired):
    """(low, high): the 95% t-interval of the mean of paired differences."""
    n = len(paired)
    half = stats.t.ppf(0.975, n - 1) * np.std(paired, ddof=1) / np.sqrt(n)
    return paired.mean() - half, paired.mean() + half


def claimed_side(paired):
    """The verdict on differences that are claimed to be positive."""
    low, high = difference_interval(paired)
    if low > 0:
        return True
    return False if high < 0 else "undecided"


def together(verdicts):
    """One verdict from those on the parts of a claim: dict from the part in words."""
    if len(set(verdicts.values())) == 1:
        return next(iter(verdicts.values()))
    return ", ".join(f"{part} {SAID.get(verdict, verdict)}" for part, verdict in verdicts.items())


def compared(runs, better, worse, measure="accuracy"):
    """(in words, paired differences) of a share between two stages."""
    paired = runs.differences(better, worse, measure)
    low, high = difference_interval(paired)
    return f"{points(paired.mean())} ({points(low)} to {points(high)})", paired


def of_test(stage):
    table = stage.predictions
    return table[table["part"] == "test"].sort_values("file").reset_index(drop=True)


def shares_by_patient(stages, hit, among):
    """Low and high of a share pooled over seeds, and the standard error of one run, by patient.

    `hit` and `among` take a test table and return booleans: accuracy is `right` among `every`.
    """
    tables = [of_test(stage) for stage in stages]
    hits = np.mean([(hit(t) & among(t)).to_numpy() for t in tables], axis=0)
    kept = among(tables[0]).to_numpy()
    patients = tables[0]["patient"].to_numpy()[kept]
    low, high = utils.patient_interval(hits[kept], patients)
    one = [utils.patient_interval(hit(t).to_numpy()[kept], patients) for t in tables]
    return low, high, np.mean([h - l for l, h in one]) / 3.92  # noqa: E741


def answers(table):
    return table[[c for c in (*utils.CLASSES[3], "pneumonia") if c in table]].idxmax(axis=1)


def right(table):
    return answers(table) == table["true"]


def every(table):
    return table["true"] != ""


def percent(value, sign=False):
    return f"{100 * value:{'+' if sign else ''}.1f}%"


def points(value):
    return f"{100 * value:+.1f} points"


def count(value):
    """A number of epochs, or a mean of several."""
    return f"{value:.1f}".removesuffix(".0")


def number(runs, name, measure, reported, form=percent, hit=None, among=every, limits=(0, 1)):
    """(in words, verdict) of a claim that a run gives a number."""
    values = runs.values(name, measure)
    words = form(values.mean())
    if len(values) > 1:
        words += f" ± {form(values.std())} ({form(values.min())} to {form(values.max())})"
    error = 0.0
    if hit:
        low, high, error = shares_by_patient(runs.of(name).values(), hit, among)
        words += f", by patient {form(low)} to {form(high)}"
    if len(values) < LEAST_SEEDS:
        return words, f"open: {len(values)} of {LEAST_SEEDS} seeds"
    low, high = np.clip(expected_range(values, error), *limits)
    words += f"; one more run {form(low)} to {form(high)}"
    if low <= reported <= high and len(values) < ENOUGH_SEEDS:
        return words, f"not contradicted: {len(values)} of {ENOUGH_SEEDS} seeds"
    return words, bool(low <= reported <= high)


def accuracy(runs, name):
    words, verdict = number(runs, name, "accuracy", MODELS[name][1], hit=right)
    return words + weights(runs, name), verdict


def epochs(runs, name, reported):
    words, verdict = number(runs, name, "epochs", reported, count, limits=(1, np.inf))
    return words + weights(runs, name), verdict


def weights(runs, name):
    """Which InceptionV3 weights a stage stood on, where it did."""
    said = {stage.facts.get("inception") for stage in runs.of(name).values()} - {None}
    return f" ({', '.join(sorted(said))})" if said else ""


def parameters(runs, name, total, trainable=None):
    facts = [stage.facts for stage in runs.of(name).values()]
    words = f"{facts[0]['parameters']:,}"
    holds = all(fact["parameters"] == total for fact in facts)
    if trainable:
        words += f", {facts[0]['trainable']:,} trainable"
        holds &= all(fact["trainable"] == trainable for fact in facts)
    return words, holds


def of_01(claim):
    def look(runs):
        facts = next(iter(runs.of("01_data").values())).facts
        [row] = [row for row in facts["claims"] if row["claim"] == claim]
        return row["this run"], row["verdict"]

    return look


def augmentation(runs):
    words, verdicts = [], {}
    for other in ("zoom", "contrast"):
        said, paired = compared(runs, S02, f"{S02}-{other}")
        words.append(f"flip against {other} {said}")
        verdicts[f"flip beats {other}"] = claimed_side(paired)
    return f"test accuracy: {'; '.join(words)}; {len(paired)} seeds", together(verdicts)


def fluctuation(stage):
    """Mean step of the validation loss from one epoch to the next."""
    return stage.history["val_loss"].diff().abs().mean()


def nadam(runs):
    paired = runs.differences(f"{S02}-nadam", S02, fluctuation)
    low, high = difference_interval(paired)
    steps = [runs.values(name, fluctuation)[paired.index].mean() for name in (f"{S02}-nadam", S02)]
    words = (
        f"mean step of the validation loss between epochs: Nadam {steps[0]:.3f}, "
        f"Adam {steps[1]:.3f} (difference {low:+.3f} to {high:+.3f}, {len(paired)} seeds)"
    )
    return words, claimed_side(paired)


def order(runs):
    said, verdict = of_01("C09")(runs)
    difference, paired = compared(runs, S02, f"{S02}-unshuffled")
    words = f"{said}; test accuracy shuffled against not {difference}, {len(paired)} seeds"
    ordered = verdict == SAID[True]
    return words, together({"ordered": ordered, "order harms": claimed_side(paired)})


def sensitivity(runs):
    names = {"pneumonia": ("sensitivity", 388 / 390), "normal": ("specificity", 123 / 234)}
    words, verdicts = [], {}
    for true, (measure, reported) in names.items():
        said, verdict = number(
            runs, S02, measure, reported, hit=right, among=lambda t, c=true: t["true"] == c
        )
        words.append(f"{measure} {said}")
        verdicts[measure] = verdict
    return ". ".join(words), together(verdicts)


def prevalence(runs):
    counts = next(iter(runs.of("01_data").values())).facts["counts"]
    ill = {split: sum(c.values()) - c["normal"] for split, c in counts.items()}
    all_ = {split: sum(c.values()) for split, c in counts.items()}
    whole, test = sum(ill.values()) / sum(all_.values()), ill["test"] / all_["test"]
    words = f"{percent(whole)} of all images, {percent(test)} of the test images"
    holds, of_test_alone = (int(100 * share + 0.5) == 63 for share in (whole, test))
    if of_test_alone and not holds:
        return words, "not reproduced: true of the test images alone"
    return words, holds


def best_class(runs):
    stages = runs.of(S03, LEAST_SEEDS)
    recall = pd.DataFrame({s: x.facts["metrics"]["recall"] for s, x in stages.items()})
    precision = pd.DataFrame({s: x.facts["metrics"]["precision"] for s, x in stages.items()})
    words = "; ".join(
        f"{name}: " + ", ".join(f"{c} {percent(v)}" for c, v in table.mean(axis=1).items())
        for name, table in (("recall", recall), ("precision", precision))
    )
    first = {
        f"by {name}": claimed_side(table.loc["normal"] - table.drop(index="normal").max())
        for name, table in (("recall", recall), ("precision", precision))
    }
    return words, together(first)


def confused_with(runs):
    counts = []
    for stage in runs.of(S03, LEAST_SEEDS).values():
        table = of_test(stage)
        counts.append(answers(table)[table["true"] == "normal"].value_counts())
    viral, bacterial = ([int(c.get(name, 0)) for c in counts] for name in ("viral", "bacterial"))
    more = np.subtract(viral, bacterial)
    low, high = difference_interval(more)
    words = (
        f"normals called viral {viral}, bacterial {bacterial}, seed by seed: {more.mean():+.0f} "
        f"images ({low:+.0f} to {high:+.0f})"
    )
    return words, claimed_side(more)


def architecture(runs):
    """The frozen part is keras.applications' InceptionV3 without its top, to the parameter."""
    found = {s.facts["parameters"] - s.facts["trainable"] for s in runs.of(S04).values()}
    words = f"drawn from the model itself, {', '.join(f'{n:,}' for n in found)} frozen parameters"
    return words, found == {INCEPTION_PARAMETERS}


def over_fitting(runs):
    """The losses' slopes after the stop: their lowest value would lie below by its choice alone."""
    past, stops = runs.of(f"{S04}-past", LEAST_SEEDS), runs.values(S04, "epochs")
    slopes = pd.DataFrame({"loss": {}, "val_loss": {}})
    for seed, stage in past.items():
        after = stage.history[stage.history["epoch"] >= stops[seed]]
        slopes.loc[seed] = [stats.linregress(after["epoch"], after[c]).slope for c in slopes]
    slopes *= 10
    low, high = difference_interval(slopes["val_loss"])
    words = (
        f"per 10 epochs from the stop to epoch {len(stage.history)} (least squares): validation "
        f"loss {slopes['val_loss'].mean():+.3f} ({low:+.3f} to {high:+.3f}), "
        f"training loss {slopes['loss'].mean():+.3f}, {len(past)} seeds"
    )
    verdicts = {
        "training loss falls": claimed_side(-slopes["loss"]),
        "validation loss rises": claimed_side(slopes["val_loss"]),
    }
    return words + weights(runs, S04), together(verdicts)


def classes_of_05(runs):
    said = {name: compared(runs, S05, S03, f"recall.{name}") for name in ("normal", "viral")}
    words = ", ".join(f"{name} {difference}" for name, (difference, _) in said.items())
    normal, viral = (paired for _, paired in said.values())
    verdicts = {
        "normal kept": difference_interval(normal)[1] > 0,
        "viral found better": claimed_side(viral),
    }
    return f"recall, 05 against 03: {words}; {len(viral)} seeds", together(verdicts)


def ranking(runs):
    words, verdicts = [], {}
    pairs = {"transfer beats InceptionV3": (S05, S04), "InceptionV3 beats CNN_1": (S04, S03)}
    for name, (better, worse) in pairs.items():
        said, paired = compared(runs, better, worse)
        words.append(f"{better[:2]} against {worse[:2]} {said}")
        verdicts[name] = claimed_side(paired)
    words = f"test accuracy: {', '.join(words)}; {len(paired)} seeds"
    return words + weights(runs, S04), together(verdicts)


def patience(runs):
    longer = utils.stage_name(S05, patience=10)
    said, paired = compared(runs, longer, S05)
    words = (
        f"patience 10 against 3: {said}, "
        f"{runs.values(longer, 'epochs')[paired.index].mean():.0f} epochs against "
        f"{runs.values(S05, 'epochs')[paired.index].mean():.0f}, {len(paired)} seeds"
    )
    return words, claimed_side(paired)


CLAIMS = [  # id, what the report says, notebook and the beginning of its section's heading, rule
    ("C01", "5,856 JPEG images", "01 Data", of_01("C01")),
    ("C02", "average size 1500 x 1700 pixels", "01 I- Loading and preprocessing data",
     of_01("C02")),
    ("C03", "20% of the train data becomes the validation set", "01 Figure 1", of_01("C03")),
    ("C04", "224 x 224, nearest neighbour, with load_img", "01 Figure 2", of_01("C04")),
    ("C05", "three channels kept, scaled to [0, 1]", "01 Figure 2", of_01("C05")),
    ("C06", "of zoom, contrast and flip, the flip alone works best",
     "02 The report's trials", augmentation),
    ("C07", "CNN_1, 2 classes: 266,306 parameters", "02 Figure 3",
     lambda r: parameters(r, S02, 266306)),
    ("C08", "Nadam's validation fluctuates, Adam with a small rate cures it",
     "02 The report's trials", nadam),
    ("C09", "the files are ordered and must be shuffled",
     "01 The order of the files, 02 The report's trials", order),
    ("C10", "CNN_1, 2 classes, stops after 8 epochs", "02 Figure 4", lambda r: epochs(r, S02, 8)),
    ("C11", "CNN_1, 2 classes: about 82% accuracy", "02 Figure 5", lambda r: accuracy(r, S02)),
    ("C12", "388 of 390 pneumonia found, 123 of 234 normals", "02 What it gets wrong", sensitivity),
    ("C13", "pneumonia is 63% of the dataset", "02 What it gets wrong", prevalence),
    ("C14", "CNN_1, 3 classes: 352,835 parameters", "03 a) Transposition",
     lambda r: parameters(r, S03, 352835)),
    ("C15", "CNN_1, 3 classes, stops after 8 epochs", "03 Figure 6", lambda r: epochs(r, S03, 8)),
    ("C16", "CNN_1, 3 classes: 71% accuracy", "03 Figure 7", lambda r: accuracy(r, S03)),
    ("C17", "with 3 classes, normal is predicted best", "03 Figure 7", best_class),
    ("C18", "normals are confused with viral rather than bacterial",
     "03 With whom are normal chests confused?", confused_with),
    ("C19", "InceptionV3 + head: 34,943,523 parameters, 13,140,739 trainable", "04 Figure 8",
     lambda r: parameters(r, S04, 34943523, 13140739)),
    ("C20", "InceptionV3 stops after 10 epochs", "04 Figure 9", lambda r: epochs(r, S04, 10)),
    ("C21", "InceptionV3: 75% accuracy", "04 Figure 10", lambda r: accuracy(r, S04)),
    ("C22", "InceptionV3: more epochs would over-fit", "04 Past the stop", over_fitting),
    ("C23", "Annex 1: the InceptionV3 architecture", "04 Annex 1", architecture),
    ("C24", "CNN_1 + second CNN: 222,883 parameters, 129,635 trainable", "05 Figure 11",
     lambda r: parameters(r, S05, 222883, 129635)),
    ("C25", "CNN_1 transfer trains for 29 epochs", "05 Figure 12", lambda r: epochs(r, S05, 29)),
    ("C26", "CNN_1 transfer: 84% accuracy", "05 Figure 13", lambda r: accuracy(r, S05)),
    ("C27", "CNN_1 transfer keeps normals and finds viral much better",
     "05 All models with three classes", classes_of_05),
    ("C28", "CNN_1 transfer beats InceptionV3, which beats CNN_1",
     "05 All models with three classes", ranking),
    ("C29", "a larger patience would give slightly more", "05 What would it take?", patience),
]  # fmt: skip


def claims():
    """The ledger: one row per claim and set of images."""
    rows = []
    for label in sorted(path.name for path in utils.RESULTS.iterdir() if path.is_dir()):
        runs = Runs(label)
        for claim, report, notebook, rule in CLAIMS:
            try:
                ours, verdict = rule(runs)
            except Open as reason:
                ours, verdict = "", f"open: {reason}"
            rows.append((claim, report, label, ours, SAID.get(verdict, verdict), notebook))
    return pd.DataFrame(rows, columns=["claim", "report", "data", "ours", "verdict", "notebook"])


def yardsticks(runs, stage):
    """dict from each classifier without training to its accuracy, mean over the seeds' splits."""
    classes = "2 classes" if stage == S02 else "3 classes"
    found = [one.facts["yardsticks"][classes] for one in runs.of("01_data").values()]
    return pd.DataFrame(found).mean().to_dict()


def models():
    """The README's table: the report's accuracies, ours over seeds, and the yardsticks."""
    lines = [
        "| model | images | report | ours: mean ± sd (least to most) | by patient, 95% | "
        "majority class | 11 nearest neighbours |",
        "|---|---|---|---|---|---|---|",
    ]
    for label in sorted(path.name for path in utils.RESULTS.iterdir() if path.is_dir()):
        runs = Runs(label)
        for stage, (model, reported) in MODELS.items():
            try:
                values = runs.values(stage, "accuracy")
                low, high, _ = shares_by_patient(runs.of(stage).values(), right, every)
                known = yardsticks(runs, stage)
            except Open:
                continue
            n = len(values)
            ours = f"{percent(values.mean())}, 1 seed" if n == 1 else (
                f"{percent(values.mean())} ± {percent(values.std())} ({percent(values.min())} to "
                f"{percent(values.max())}), {n} seeds"
            )  # fmt: skip
            line = [
                model + weights(runs, stage), label, f"{reported:.0%}",
                ours,
                f"{percent(low)} to {percent(high)}",
                *(percent(known[name]) for name in ("majority class", "11 nearest neighbours")),
            ]  # fmt: skip
            lines.append(f"| {' | '.join(line)} |")
    return "\n".join(lines)


def markdown(table):
    """The ledger as a Markdown table."""
    notebooks = {path.stem[:2]: path.name for path in (utils.PROJECT / "notebooks").glob("*.ipynb")}
    lines = [
        "| | the report says | published runs | verdict | notebook |",
        "|---|---|---|---|---|",
    ]
    several = len(set(table["data"])) > 1
    for row in table.itertuples():
        links = ", ".join(
            f"[{place[:2]}](notebooks/{notebooks[place[:2]]}) {place[3:]}"
            for place in row.notebook.split(", ")
        )
        ours = f"{row.data}: {row.ours}" if several else row.ours
        lines.append(f"| {row.claim} | {row.report} | {ours} | {row.verdict} | {links} |")
    return "\n".join(lines)


def with_section(text, name, content):
    """`text` with what stands between the markers of a section replaced."""
    pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.S)
    assert pattern.search(text), f"README.md has no section {name}"
    return pattern.sub(lambda found: f"{found[1]}{content}\n{found[2]}", text)


def files():
    """dict from path to content: everything this tool writes."""
    table = claims()
    rules = __doc__.split("The rules, the same for all claims:\n\n")[1]
    head = "# The report's claims\n\nWritten by `tests/tools/ledger.py` from the runs here.\n\n"
    body = markdown(table)
    readme = with_section(README.read_text(encoding="utf-8"), "models", models())
    return {
        CSV: table.to_csv(index=False, lineterminator="\n"),
        MARKDOWN: f"{head}{rules}\n{body.replace('](notebooks/', '](../notebooks/')}\n",
        README: with_section(readme, "claims", body),
    }


def figure():
    """The README's figure: each model's test accuracy, run by run, beside the report's."""
    labels = sorted(path.name for path in utils.RESULTS.iterdir() if path.is_dir())
    picture, axis = plt.subplots(figsize=(8, 3.2), layout="constrained")
    for row, (stage, (_, reported)) in enumerate(MODELS.items()):
        axis.plot(reported, row, "k|", markersize=26, markeredgewidth=2, label="report")
        for label in labels:
            runs = Runs(label)
            values = runs.values(stage, "accuracy")
            axis.plot(values, [row] * len(values), "o", alpha=0.7, color=utils.COLOURS["train"],
                      label="one run each")  # fmt: skip
            if len(values) >= LEAST_SEEDS:
                error = shares_by_patient(runs.of(stage).values(), right, every)[2]
                low, high = np.clip(expected_range(values, error), 0, 1)
                axis.barh(row, high - low, 0.5, low, color=utils.COLOURS["train"], alpha=0.15,
                          label="one more run is expected here")  # fmt: skip
            known = yardsticks(runs, stage)
            axis.plot(known["11 nearest neighbours"], row, "x", color=utils.COLOURS["validation"],
                      label="11 nearest neighbours")  # fmt: skip
            axis.plot(known["majority class"], row, "+", color="grey", markersize=9,
                      label="majority class")  # fmt: skip
    axis.set(yticks=range(len(MODELS)), xlabel="test accuracy", ylim=(len(MODELS) - 0.5, -0.5))
    axis.set_yticklabels([model for model, _ in MODELS.values()])
    handles = dict(zip(*reversed(axis.get_legend_handles_labels()), strict=True))
    axis.legend(handles.values(), handles.keys(), frameon=False, loc="center left",
                bbox_to_anchor=(1, 0.5))  # fmt: skip
    axis.grid(axis="x", alpha=0.3)
    with utils.atomic(FIGURE) as part:
        said = {"Description": models()}  # what was drawn, for the test that it is not old
        picture.savefig(part, format="png", dpi=110, metadata=said)
    plt.close(picture)


def write():
    for path, content in files().items():
        with utils.atomic(path) as part:
            part.write_text(content, encoding="utf-8")
    figure()


if __name__ == "__main__":
    write()
    print(claims()[["claim", "verdict"]].to_string(index=False))
