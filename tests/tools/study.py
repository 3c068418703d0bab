"""The study: every stage and every trial over several seeds, as `make study` runs it.

    python tests/tools/study.py [--published] [--seeds "0 1 2 3 4"] [--steps "seeds choices"]

Executes the notebooks themselves in the full profile, one at a time, each with its form fields
filled. What is finished is skipped; killed at any moment, it goes on where it was. With
`--published` what results/ holds counts as finished, so that a study goes on elsewhere. After every
stage the small files are copied to results/ and the ledger is written anew. One line per stage
goes to the terminal and to study.log in the output folder; what the cells print, to study/.
"""

import argparse
import contextlib
import dataclasses
import fcntl
import os
import sys
import time
from pathlib import Path

import ledger  # puts the project on the path
import nbformat
import run as runner

import utils

TRIAL_SEEDS = 3  # the trials take a whole training each
FOLLOW = {"FOLLOW_TEST": "True"}
SPLIT = {"STRATIFIED": "False"}


@dataclasses.dataclass(frozen=True)
class Step:
    """One execution of a notebook: its form fields, and the stage that is there afterwards."""

    notebook: str
    fields: dict
    stage: str


def choice(notebook, dropout=0.2, patience=3, stratified=True, **fields):
    """A whole notebook run with what the report leaves open settled otherwise."""
    chosen = {"DROPOUT": str(dropout), "PATIENCE": str(patience), "STRATIFIED": str(stratified)}
    name = utils.stage_name(notebook, dropout=dropout, patience=patience, stratified=stratified)
    return Step(notebook, {**FOLLOW, **chosen, **fields}, name)


def trial(name):
    return Step("02_cnn1_2class", {"TRIAL": name, **FOLLOW}, f"02_cnn1_2class-{name}")


GROUPS = {  # in the order of what the claims need most
    "seeds": [
        Step("01_data", {}, "01_data"),
        Step("02_cnn1_2class", FOLLOW, "02_cnn1_2class"),
        Step("03_cnn1_3class", FOLLOW, "03_cnn1_3class"),
        Step("04_inceptionv3", {**FOLLOW, "PAST_STOP": "True"}, "04_inceptionv3-past"),
        Step("05_cnn1_transfer", FOLLOW, "05_cnn1_transfer"),
    ],
    "choices": [
        *(choice("05_cnn1_transfer", dropout, 10) for dropout in (0.2, 0, 0.5)),
        *(choice("04_inceptionv3", dropout, 10, RESCALED="False") for dropout in (0.2, 0, 0.5)),
    ],
    "trials": [trial(name) for name in ("nadam", "unshuffled", "zoom", "contrast")],
    "split": [
        choice("03_cnn1_3class", stratified=False),
        *(choice("05_cnn1_transfer", d, 10, stratified=False) for d in (0.2, 0, 0.5)),
        *(choice("04_inceptionv3", d, 10, False, RESCALED="False") for d in (0.2, 0, 0.5)),
        choice("02_cnn1_2class", stratified=False),
    ],
    "more": [choice(name, d) for d in (0, 0.5) for name in ("02_cnn1_2class", "03_cnn1_3class")],
}


def run_step(step, seed, out):
    """Executes one step unless its stage is there; returns a line for the log."""
    folder = out / f"seed-{seed}" / step.stage
    if (folder / "run.json").exists():
        return None
    os.environ["CXR_SEED"] = str(seed)
    started = time.monotonic()
    said = out / "study" / f"seed-{seed}" / f"{step.stage}.log"
    said.parent.mkdir(parents=True, exist_ok=True)
    with open(said, "a", encoding="utf-8") as file, contextlib.redirect_stdout(file):
        path = utils.PROJECT / "notebooks" / f"{step.notebook}.ipynb"
        notebook, error = runner.execute(path, step.fields)
    nbformat.write(notebook, said.with_suffix(".ipynb"))
    if error or not (folder / "run.json").exists():
        return f"failed, see {said}: {str(error).splitlines()[-1] if error else 'no run.json'}"
    with contextlib.redirect_stdout(open(os.devnull, "w")):
        runner.publish_stages(out)
        ledger.write()
    line = f"{time.monotonic() - started:.0f} s"
    metrics = utils.Stage(folder).facts.get("metrics")
    if metrics:
        epochs = len(utils.Stage(folder).history)
        line = f"{epochs} epochs, test accuracy {metrics['accuracy']:.1%}, {line}"
    return line


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", default="0 1 2 3 4")
    parser.add_argument("--steps", default="seeds choices trials split")
    parser.add_argument("--published", action="store_true", help="go on from what is published")
    options = parser.parse_args()
    seeds = [int(seed) for seed in options.seeds.split()]
    if unknown := set(options.steps.split()) - set(GROUPS):
        parser.error(f"no group {', '.join(unknown)}: there are {', '.join(GROUPS)}")
    os.environ["CXR_PROFILE"] = "full"
    runner.settle_environment()
    if os.environ.get("CXR_DATA") == "phantom":
        parser.error("DATA is phantom: the study is about X-rays, say DATA=folder or DATA=kaggle")
    out = Path(os.environ.get("CXR_OUT") or utils.PROJECT / "artifacts").expanduser().absolute()
    out.mkdir(parents=True, exist_ok=True)
    lock = open(out / "study.lock", "w")  # noqa: SIM115 - held until the end
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        sys.exit(f"A study is running in {out} already: wait for it, or set CXR_OUT.")
    if options.published:
        runner.take_published(out, utils.open_images(utils.setup()).fingerprint)
    failed = 0
    for group in options.steps.split():
        of_group = seeds[:TRIAL_SEEDS] if group in ("trials", "split", "more") else seeds
        for seed in of_group:
            for step in GROUPS[group]:
                if line := run_step(step, seed, out):
                    failed += line.startswith("failed")
                    line = f"{time.strftime('%F %T')}  seed {seed}  {step.stage:40} {line}"
                    print(line, flush=True)
                    with open(out / "study.log", "a", encoding="utf-8") as file:
                        file.write(line + "\n")
    sys.exit(f"{failed} steps failed" if failed else 0)


if __name__ == "__main__":
    main()
