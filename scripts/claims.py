"""What the published runs say, wherever it is said: `make results`.

From results/IMAGES/seed-N/RUN: runs.csv, claims.csv, accuracy.png, the README's tables and the
numbers in prose, `<!--02.accuracy-->76.1%<!---->` (keys: results/README.md).
"""

import json
import re
import sys
from pathlib import Path

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.ticker import PercentFormatter
from scipy import stats

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from beyond import auc_interval, two_classes
from cxr import reference, runs
from cxr.files import PROJECT, atomic_write
from cxr.reference import MAIN_IMAGES, REPORTED, sensitivity_table, stopping_epochs

S01, (S02, S03, S04, S05), SMOOTHED = "01_data", REPORTED, "chest_xray_smoothed"
S06, TRUST = "06_beyond", "06_beyond-trust"
ABLATIONS = ("zoom", "contrast", "nadam", "unshuffled", "unstopped", "rescaled")
BEYOND = ("crops", "weak", "frozen", "random", "image", "scratch")  # of notebook 06
COUNTS = "epoch|_as_|normals|found|missed|confused|positives|excess|above|minutes"
MIN_SEEDS, MAX_WIDTH = 3, 0.10  # the rules are in results/claims.md
REPRODUCED, COMPATIBLE, NOT_REPRODUCED = "reproduced", "compatible", "not reproduced"
UNDECIDED, CANNOT, STAND_IN = "undecided", "cannot be tested here", ", with stand-in weights"
# <!--KEY-->text<!---->, or for a table: <!-- KEY -->, its lines, <!-- /KEY -->
MARKER = re.compile(r"(<!-- ?([\w.]+) ?-->\n?)((?:(?!<!--).)*)(<!--(?: /\2 )?-->)", re.S)
PARTS = json.loads((runs.RESULTS / "claims.json").read_text(encoding="utf-8"))


class Open(Exception):
    """Too little is published for a verdict; the message says what there is."""


def read_runs():
    """DataFrame, one row per published run: the columns that results/README.md lists, and info
    (run.json), wrong_normals (test images)."""
    rows = []
    for path in sorted(runs.RESULTS.glob("*/seed-*/*/run.json")):
        info = (run := runs.ModelRun(path.parent)).info
        rows.append({"images": path.parts[-4], "run": info["run"], "seed": info["seed"]}
                    | (_measures(run) if "metrics" in info else {}) | {"info": info}
                    )  # fmt: skip
    return pd.DataFrame(rows)


def _measures(run):
    info, history, settings = run.info, run.history, run.info["settings"]
    loss, suffix = history["val_loss"], info["run"].rsplit("-", 1)[-1]
    best, patience = loss.idxmin(), settings["early_stopping"]["patience"]
    [dropout] = {layer[2]["rate"] for layer in settings["layers"] if layer[0] == "Dropout"}
    row = {
        "notebook": next(name for name in (*REPORTED, S06) if info["run"].startswith(name)),
        "dropout": dropout, "patience": patience, "stratified": suffix != "unstratified",
        "ablation": suffix if suffix in ABLATIONS + BEYOND else "",
        "inception": info.get("inception", ""),
        "epochs": len(history), "best_epoch": best + 1, "best_val_loss": loss[best],
        "minutes": max(info["seconds"], history["seconds"].sum()) / 60,
        "capped": len(history) - 1 - best < patience,
        "rises": loss.diff().clip(lower=0).iloc[1:].mean(),
        "val_above_train": (history["val_accuracy"] > history["accuracy"]).sum(),
    }  # fmt: skip
    if row["ablation"] == "unstopped":
        after = history[stopping_epochs(loss, 3)["last"] - 1 :]
        row |= {f"{name}_slope": 10 * stats.linregress(after["epoch"], after[name]).slope
                for name in ("loss", "val_loss")}  # fmt: skip
    [flat] = pd.json_normalize(info["metrics"], sep="_").to_dict("records")
    row |= {name.removeprefix("test_"): flat[name] for name in sorted(flat)}
    row |= {f"{p}false_positive_rate": 1 - row[f"{p}recall_normal"] for p in ("", "validation_")}
    for kind in ("recall", "precision"):
        normal, *others = info["metrics"]["test"][kind].values()
        row[f"{kind}_lead"] = normal - max(others)
    test, names = run.predictions.query("split == 'test'"), list(info["metrics"]["test"]["recall"])
    if "beyond" in info:
        row |= info["beyond"]
        row["two_auc_low"], row["two_auc_high"] = auc_interval(two_classes(test))
    predicted, normal = test[names].idxmax(axis=1), test["true"] == "normal"
    row |= {f"normal_as_{name}": (predicted[normal] == name).sum() for name in names}
    row["viral_excess"] = row.get("normal_as_viral", np.nan) - row.get("normal_as_bacterial", 0)
    wrong, ill = test["file"][normal & (predicted != "normal")], predicted[~normal]
    return row | {
        "found": (found := (ill == test["true"][~normal]).sum()), "normals": normal.sum(),
        "missed": (missed := (ill == "normal").sum()), "confused": len(ill) - found - missed,
        "false_positives": len(wrong), "wrong_normals": frozenset(wrong),
        "normal_share": len(wrong) / (len(wrong) + len(ill) - found),
    }  # fmt: skip


def pick(table, *names, least=MIN_SEEDS):
    """The rows of some runs on the report's kind of images, a dict from name to DataFrame by seed:
    those of the seeds they share."""
    rows = table[table["images"] == MAIN_IMAGES]
    seeds = rows.groupby("run")["seed"].agg(set)
    shared = set.intersection(*(seeds.get(name, set()) for name in names))
    if len(shared) < least:
        raise Open(f"{len(shared)} of {least} seeds of {' and '.join(names)}")
    rows = rows[rows["seed"].isin(shared)]
    return {name: rows[rows["run"] == name].set_index("seed").sort_index() for name in names}


def mean_interval(values):
    """95% CI (low, high) of the mean."""
    return tuple(map(float, stats.ttest_1samp(values, 0).confidence_interval()))


def prediction_interval(values):
    """(low, high) that holds one more seed with 95% probability."""
    low, high = mean_interval(values)
    half = (high - low) / 2 * (len(values) + 1) ** 0.5
    return (low + high) / 2 - half, (low + high) / 2 + half


def number_verdict(values, value, widest=MAX_WIDTH):
    low, high = prediction_interval(values)
    inside = REPRODUCED if high - low <= widest else COMPATIBLE
    return inside if low <= value <= high else NOT_REPRODUCED


def difference_verdict(differences, margin=0):
    """On differences that are claimed to be above -`margin`."""
    low, high = mean_interval(differences)
    return REPRODUCED if low > -margin else NOT_REPRODUCED if high < -margin else UNDECIDED


def combine_verdicts(verdicts):
    """One verdict from those on the parts of a claim, a dict from the part in words."""
    if len(set(verdicts.values())) == 1:
        return next(iter(verdicts.values()))
    return "; ".join(f"{part}: {verdict}" for part, verdict in verdicts.items())


def form(column, value):
    """A number of the runs' table in words."""
    if re.search("loss|slope|auc|rises|ece|temperature", column):
        return f"{value:.3f}"
    if re.search(COUNTS, column):
        return f"{value:.{int(column != 'minutes')}f}".removesuffix(".0")
    return f"{value:.1%}"


def spread(column, values, limits=(0, 1)):
    """Mean, standard deviation, range and prediction interval in words."""
    found = (*values.agg(["mean", "std", "min", "max"]),
             *np.clip(prediction_interval(values), *limits))  # fmt: skip
    text = "{} ± {} ({} to {}), 95% prediction interval {} to {}"
    return text.format(*(form(column, value) for value in found))


def gain(column, values):
    """Mean and 95% CI of differences in words."""
    share = form(column, 0).endswith("%")
    text = "{:+.1f}" if share else "{:+.0f}" if form(column, 0) == "0" else "{:+.3f}"
    mean, low, high = (text.format(v * 100**share) for v in (values.mean(), *mean_interval(values)))
    return f"{mean}{' points' * share} (95% CI {low} to {high})"


def counted(info):
    found = pd.DataFrame(info["counts"]).sum().to_dict()
    words = ", ".join(f"{split} {found[split]:,}" for split in reference.REPORT["kaggle_counts"])
    return f"{sum(found.values()):,}: {words}", found == reference.REPORT["kaggle_counts"]


def average_size(info):
    """Each class weighted by its share of the data set, whichever originals are at hand."""
    share, sizes = pd.DataFrame(info["counts"]).sum(axis=1), pd.DataFrame(info["sizes"])
    groups, sides = sizes.groupby("class3"), ["width", "height"]
    mean = groups.mean().mul(share / share.sum(), axis=0).sum()[sides].to_numpy()
    error = 1.96 * groups.sem().mul(share / share.sum(), axis=0).pow(2).sum()[sides] ** 0.5
    size = reference.REPORT["average_size"]  # the report does not say which side is the width
    words = " x ".join(f"{m:,.0f} ± {e:.0f}" for m, e in zip(mean, error, strict=True))
    holds = any((abs(mean - np.array(order)) <= error).all() for order in (size, size[::-1]))
    return f"{words} pixels: mean and 95% CI of {len(sizes):,} originals", holds


def prevalence(info):
    normal, every = (counts := pd.DataFrame(info["counts"])).loc["normal"], counts.sum()
    test, whole = 1 - normal["test"] / every["test"], 1 - normal.sum() / every.sum()
    words = f"{test:.1%} of the test images, which the report means; {whole:.1%} of all"
    return words, abs(test - reference.REPORT["pneumonia_share"]) < 0.0051  # the report rounds


def ordered(info):
    a, b = (info["counts"]["train"][name] for name in ("bacterial", "viral"))
    words = (f"{info['cause_runs']:,} stretches of one cause in the {a + b:,} sorted files (2 if "
             f"ordered, {2 * a * b / (a + b) + 1:,.0f} expected by chance)")  # fmt: skip
    return words, info["cause_runs"] == 2


def parameters(info):
    kinds, report = ["parameters", "trainable"], REPORTED[info["run"]]
    words = ", ".join(f"{info[kind]:,} {kind}" for kind in kinds[: 1 + (info["run"] >= S04)])
    return words, all(info.get(kind, report[kind]) == report[kind] for kind in kinds)


def strength(_, plain, other):
    """How strongly an ablation changes the images: its first layer."""
    config = other["info"].iloc[0]["settings"]["layers"][0][2]
    if "height_factor" in config:
        return f", zoom by up to {np.max(np.abs(config['height_factor'])):.0%} in or out"
    low, high = config["factor"]
    return f", contrast times {1 - low:g} to {1 + high:g}{'' if low else ' (one-sided)'}"


CHECKS = {  # from run.json to (words, whether the claim holds), or nothing: there is no telling
    "counted": counted, "prevalence": prevalence, "ordered": ordered, "parameters": parameters,
    "average_size": lambda info: info["sizes"]["width"] and average_size(info),
    "resized": lambda info: (n := min(100, len(info["sizes"]["width"]))) and (  # 01 looks at 100
        f"{(different := info['originals_different'])} of {n:,} originals differ from load_img",
        not different),
    "split": lambda info: (f"{(share := info['validation_share']):.1%}",
                           abs(share - reference.REPORT["validation_share"]) < 0.005),
    "scaled": lambda info: (
        "{} channels, values from {:g} to {:g}".format(info["channels"], *info["range"]),
        info["channels"] == 3 and 0 <= min(info["range"]) <= max(info["range"]) <= 1),
    "frozen": lambda info: (
        f"drawn from the model, {(frozen := info['parameters'] - info['trainable']):,} parameters",
        frozen == REPORTED[S04]["parameters"] - REPORTED[S04]["trainable"]),
}  # fmt: skip
REMARKS = {  # on a difference: from the differences and the runs' rows to words
    "strength": strength, "capped": lambda _, long, short:
    "; {:.0f} epochs instead of {:.0f}, {} of {} ended by the epoch limit".format(
        long["epochs"].mean(), short["epochs"].mean(), long["capped"].sum(), len(long)),
    "excluded": lambda differences, *_:
    f", so no gain above {100 * mean_interval(differences)[1]:.1f} points",
    "constant": lambda _, shuffled, other: ", {} of {} unshuffled runs call every test image "
    "pneumonia".format((other["sensitivity"] - other["specificity"] == 1).sum(), len(other)),
}  # fmt: skip


def judge(sample, part):
    """(words, verdict) of a part of a claim, as claims.json has it."""
    rows, column = [sample[name] for name in part["runs"]], part.get("column", "accuracy")
    if "check" in part:
        checked = CHECKS[part["check"]](rows[0]["info"].iloc[0])
        words, holds = checked or ("no originals at hand", None)
        return words, CANNOT if holds is None else REPRODUCED if holds else NOT_REPRODUCED
    values = rows[0][column] - (rows[1][column] if len(rows) > 1 else 0)
    if "number" in part:
        value = REPORTED[part["runs"][0]][column]
        widest, limits = (2 * value, (1, np.inf)) if column == "epochs" else (MAX_WIDTH, (0, 1))
        words = f"{part['number']} {spread(column, values, limits)}".strip()
        return words, number_verdict(values, value, widest)
    remark = REMARKS[part["remark"]](values, *rows) if "remark" in part else ""
    verdict = difference_verdict(part.get("sign", 1) * values, part.get("margin", 0))
    return f"{part['difference']} {gain(column, values)}{remark}", verdict


def stand_in(rows):
    return STAND_IN * bool(set(rows["inception"]) - {"", "ImageNet weights"})


def claims(table):
    """The claims table: DataFrame with claim, report, images, published, verdict, section."""
    rows = []
    for claim, (section, report) in reference.CLAIMS.items():
        found, images, words, parts = {}, "", "", PARTS[claim]
        seeded = {name for part in parts.values() if "check" not in part for name in part["runs"]}
        try:
            for title, part in parts.items():
                names, least = (part["runs"], 1) if "check" in part else (seeded, MIN_SEEDS)
                sample = pick(table, *names, least=least)
                found[title] = judge(sample, part)
            words = "; ".join(text for text, _ in found.values())
            verdict = combine_verdicts({title: verdict for title, (_, verdict) in found.items()})
            used = pd.concat(sample.values())
            images = "originals" if "originals" in words else "nearest neighbours"
            if seeded:
                verdict += stand_in(used)
            words += f"; {used.index.nunique()} seeds" if seeded else "; seed 0"
        except Open as reason:
            verdict = f"open: {reason}"
        rows.append((claim, report, images, words, verdict, section))
    columns = ["claim", "report", "images", "published", "verdict", "section"]
    return pd.DataFrame(rows, columns=columns)


def markdown(table):
    """A DataFrame as a Markdown table; floats are shares."""
    rows = table.map(lambda x: f"{x:.1%}".replace(".0%", "%") if isinstance(x, float) else str(x))
    lines = (table.columns, ["---"] * len(rows.columns), *rows.to_numpy())
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def tally(found):
    """The README's table of how many claims have which verdict."""
    kinds = found["verdict"].str.removesuffix(STAND_IN).str.replace("^open.*", "open", regex=True)
    kinds = kinds.mask(kinds.str.contains(": "), "differs between two parts")
    checked = [all("check" in part for part in PARTS[claim].values()) for claim in found["claim"]]
    columns = np.where(checked, "counts, sizes and preparation", "order of files and training")
    table = pd.crosstab(kinds, columns, found["claim"], rownames=["verdict"], aggfunc=", ".join)
    return markdown(table.fillna("").reset_index())


def models(table):
    """DataFrame, one row per model: what the README's table and accuracy.png show."""
    rows = []
    for name, report in REPORTED.items():
        used, data = pick(table, name, S01).values()
        known = [info["baselines"][f"{report['classes']} classes"] for info in data["info"]]
        rows.append({
            "model": report["model"], "report": report["accuracy"],
            "published": spread("accuracy", used["accuracy"]), "95% CI by patient":
            "{:.1%} to {:.1%}".format(*used[["accuracy_low", "accuracy_high"]].mean()),
            **pd.DataFrame(known).mean()[["majority class", "11 nearest neighbours"]],
            "based on": f"{len(used)} seeds{stand_in(used)}",
            "runs": used["accuracy"], "interval": prediction_interval(used["accuracy"]),
        })  # fmt: skip
    return pd.DataFrame(rows)


def draw(rows, description):
    """accuracy.png, of `models`."""
    figure, axis = plt.subplots(figsize=(8, 3.8), layout="constrained")
    axis.hlines(rows.index, *zip(*rows["interval"], strict=True), color="#56B4E9", alpha=0.5,
                linewidth=16, label="95% prediction interval of one more seed")  # fmt: skip
    dots = rows["runs"].explode()
    seed = dots.groupby(level=0).cumcount() - (dots.groupby(level=0).transform("size") - 1) / 2
    axis.plot(dots, dots.index + 0.06 * seed, "o", color="#0072B2", markersize=5, alpha=0.7,
              label="published runs, a dot per seed")  # fmt: skip
    axis.plot(rows["report"], rows.index, "D", color="black", label="report")
    for name, mark in (("majority class", "^"), ("11 nearest neighbours", "x")):
        axis.plot(rows[name], rows.index + 0.33, mark, color="#777777", label=name)
    for y, value in rows["report"].items():
        axis.text(value, y - 0.25, f"{value:.0%}", ha="center", va="bottom")
    axis.set_yticks(rows.index, rows["model"] + "\n" + rows["based on"].str.replace(", w", ",\nw"))
    axis.set(ylim=(3.6, -0.7), xlabel="accuracy on the 624 test images",
             title="Test accuracy: the report and the published runs")  # fmt: skip
    axis.xaxis.set_major_formatter(PercentFormatter(1, 0))
    figure.legend(loc="outside lower center", ncols=3, frameon=False)
    with atomic_write(runs.RESULTS / "accuracy.png") as part:  # with what was drawn, for a test
        figure.savefig(part, format="png", dpi=120, metadata={"Description": description})
    plt.close(figure)


GROUPS = {  # beginning of keys: a run, and others that must have the same seeds
    **{f"{name[:2]}.": (name,) for name in (*REPORTED, S06)}, "05.03_": (S05, S03),
    **{f"02.{name}_": (f"{S02}-{name}", S02) for name in ("unshuffled", "contrast", "zoom")},
    "04.rescaled_": (f"{S04}-rescaled", S04),
}  # fmt: skip


def marker_texts(table):
    """dict from a marker's key to its text, None where it is not published yet."""
    columns = table.select_dtypes("number").columns.drop(["seed", "dropout", "patience"])
    main = table[(table["images"] == MAIN_IMAGES) & (table["seed"] == 0)].set_index("run")
    beyond = {"06.": S06, **{f"06.{name}_": f"{S06}-{name}" for name in BEYOND}}
    main = main.reindex([S01, *REPORTED, *beyond.values(), TRUST, f"{S04}-rescaled"])  # or NaN
    found, order = claims(table), [r["accuracy"] for r in pick(table, S05, S04, S03).values()]
    data, wrong = main["info"][S01], main["wrong_normals"]
    readings = sensitivity_table(S05)
    ends, reached = readings.query("patience == 3"), readings["accuracy"]
    ends = ends.pivot_table("accuracy", ["stratified", "dropout", "seed"], "weights")
    later, best = ends["last"] - ends["best"], readings.loc[reached.idxmax()]
    texts = {
        "claims": markdown(found), "tally": tally(found),
        "models": markdown(models(table).drop(columns=["runs", "interval"])),
        "04.rescaled_run": form("", main["accuracy"][f"{S04}-rescaled"]),
        "02.auc_percent": f"{main['auc'][S02]:.0%}",
        "02.03.drop": f"{100 * (main['accuracy'][S02] - main['accuracy'][S03]):.1f}",
        "02.03.agreement": f"{1 - len(wrong[S02] ^ wrong[S03]) / main['normals'][S02]:.1%}",
        "order.holds": f"{sum(a > b > c for a, b, c in zip(*order, strict=True))}",
        "order.seeds": f"{len(order[0])}", "sensitivity.max": f"{reached.max():.1%}",
        "sensitivity.last": gain("accuracy", later[True, 0.2]), "sensitivity.unstratified_last":
        "{:+.1f} to {:+.1f} points".format(*100 * later[False].agg(["min", "max"])),
        "sensitivity.max_epoch": f"{best.epoch}", "sensitivity.best":
        f"seed {best.seed}, dropout {best.dropout:g}, {'un' * (not best.stratified)}stratified, "
        f"patience {best.patience}, {best.weights} epoch",
        "sensitivity.reached": f"{sum(reached >= REPORTED[S05]['accuracy'])} of {len(reached)}",
        "01.originals": f"{len(data['sizes']['width'])}",
        "01.cause_runs": f"{data['cause_runs']:,}",
        "01.shared_patients": f"{data['shared_patients']:.0%}",
        **{f"time.{name}": f"{minutes:.0f} min" for name, minutes in json.loads(
            (runs.RESULTS / "times.json").read_text(encoding="utf-8")).items()},
        **{f"{key}.{n}": f"{data['baselines'][f'{n} classes'][name]:.1%}" for key, name in (
            ("knn", "11 nearest neighbours"), ("majority", "majority class")) for n in (2, 3)},
        **{f"{row.claim}.{key}": text for row in found.itertuples() for key, text in
           (("verdict", row.verdict), *enumerate(row.published.split("; "), 1))},
    }  # fmt: skip
    for name in REPORTED:
        texts |= {f"{name[:2]}.{column}": form(column, main[column][name]) for column in columns}
        one, two = (table[(table["images"] == images) & (table["run"] == name)].set_index("seed")
                    for images in (MAIN_IMAGES, SMOOTHED))  # fmt: skip
        moved = (one["accuracy"] - two["accuracy"]).dropna()
        texts[f"resize.{name[:2]}"] = gain("accuracy", moved) if len(moved) >= MIN_SEEDS else None
    crossed = pd.read_csv(runs.RESULTS / "cross_test.csv").groupby(["run", "trained_on"])
    for (name, trained_on), rows in crossed:
        by = rows.pivot_table("accuracy", "seed", "tested_on")
        gap, key = by["nearest224"] - by["smoothed"], f"cross.{name[:2]}.{trained_on}_gain"
        texts[key] = gain("accuracy", gap) if len(gap) > 1 else f"{100 * gap.mean():.1f} points"
    texts |= {key + c: form(c, main[c][name]) for key, name in beyond.items() for c in columns}
    texts |= {f"06.{kind}": f"{main['info'][S06][kind]:,}" for kind in ("parameters", "trainable")}
    trust = main["info"][TRUST]
    for key, title in {"06": "Xception (06)", "02": "CNN_1 (02)"}.items():
        reached = pd.DataFrame(trust["stress"][title]).T["accuracy"]
        texts |= {f"{key}.stress_{how}": form("", reached.agg(how)) for how in ("min", "max")}
        texts[f"{key}.stress_worst"] = reached.idxmin()
        texts[f"{key}.heat_outside"] = f"{trust['heat_outside'][title]:.0%}"
    ends = {"two_accuracy": [trust["two"][f"accuracy{end}"] for end in ("", "_low", "_high")]}
    texts["06.two_precision"] = form("", trust["two"]["precision"]["pneumonia"])
    for name, row in trust["called_pneumonia"].items():
        ends[re.sub(r"\W+", "_", f"called_pneumonia {name}")] = [*row.values()][1:]
    for name, (share, low, high) in ends.items():
        texts |= {f"06.{name}": f"{share:.1%}", f"06.{name}_ci": f"95% CI {low:.1%} to {high:.1%}"}
    for key, names in GROUPS.items():
        try:
            (rows, *others), enough = pick(table, *names).values(), True
        except Open:
            (rows, *others), enough = [table[:1]] * len(names), False
        inner, accuracy = key + "mean_" * key.endswith("."), rows["accuracy"]
        means = {inner + column: form(column, rows[column].mean()) for column in columns}
        means |= {f"{key}range_{c}": " to ".join(form(c, rows[c].agg(e)) for e in ("min", "max"))
                  for c in columns}  # fmt: skip
        means |= {key + how: form("", accuracy.agg(how)) for how in ("mean", "max")}
        means |= {f"{key}seeds": f"{len(rows)}", f"{key}sd": f"{100 * accuracy.std():.1f} points"}
        means |= {f"{key}gain_{c}": gain(c, rows[c] - o[c]) for o in others for c in columns}
        texts |= means if enough else dict.fromkeys(means)
    return {key: None if re.match("[+]?nan", str(text)) else text for key, text in texts.items()}


def listed(table):
    """The content of runs.csv."""
    table = table.dropna(subset="accuracy").drop(columns=["info", "wrong_normals"])
    return table.round(6).convert_dtypes().to_csv(index=False, lineterminator="\n")


def files(table):
    """(dict from path to content, keys in prose not published yet); KeyError for unknown ones. The
    sensitivity table reads runs.csv from disk, so that has to be written first."""
    csv = claims(table).to_csv(index=False, lineterminator="\n")
    written = {runs.RESULTS / "runs.csv": listed(table), runs.RESULTS / "claims.csv": csv}
    texts, missing = marker_texts(table), []

    def fill(text):
        missing.extend(key for _, key, _, _ in MARKER.findall(text) if texts[key] is None)
        return MARKER.sub(lambda m: f"{m[1]}{texts[m[2]] or m[3]}{m[4]}", text)

    pages = ("README.md", "data/README.md", "results/model_card.md")
    for path in (runs.RESULTS / "claims.md", *(p for page in pages for p in PROJECT.glob(page))):
        written[path] = fill(path.read_text(encoding="utf-8"))
    for path in sorted((PROJECT / "notebooks").glob("*.ipynb")):
        notebook = json.loads(path.read_text(encoding="utf-8"))
        for cell in notebook["cells"]:
            if cell["cell_type"] == "markdown":
                cell["source"] = fill("".join(cell["source"])).splitlines(True)
        written[path] = json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"
    return written, missing


def main():
    table = read_runs()
    with atomic_write(runs.RESULTS / "runs.csv") as part:  # `files` reads it
        part.write_text(listed(table), encoding="utf-8")
    written, missing = files(table)
    for path, content in written.items():
        with atomic_write(path) as part:
            part.write_text(content, encoding="utf-8")
    draw(models(table), marker_texts(table)["models"])
    print(f"{tally(claims(table))}not published yet: {', '.join(missing) or 'nothing'}")


if __name__ == "__main__":
    main()
