"""The study: every seed and every ablation, by executing the notebooks in full mode.

What only the study needs is no field of the notebooks: it edits their source. A run that is in
OUT, or published, is not made again. After each step results/ and claims are brought up to date.
"""

import argparse
import contextlib
import fcntl
import os
import subprocess
import sys
import time

import nbformat
import run_notebooks as runner

sys.path.insert(0, str(runner.PROJECT))
from cxr.cache import load_images
from cxr.config import setup
from cxr.files import RESULTS
from cxr.runs import ModelRun, run_name

FOLLOW = """keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: logs.update(
    test_accuracy=checkpoint.model.evaluate(test_data, verbose=0, return_dict=True)["accuracy"]))"""
TEST_ACCURACY = ("[early_stopping, checkpoint]", f"[early_stopping, {FOLLOW}, checkpoint]")
UNSTRATIFIED = ("(images.metadata, config)", "(images.metadata, config, stratify=False)")
RAISED_CAP = ("else 100", "else 300")
UNSTOPPED = [("else 50", "else 25"), ("if not config.quick:", "if False:")]
TRAINED = 'trained = utils.load_run(config, "03_cnn1_3class'
FLIP = 'layers.RandomFlip("horizontal", seed=config.seed),'
CONTRAST = "layers.RandomContrast((0.1, 0.1), value_range=(0, 1), seed=config.seed),"  # both ways
IMPORTED = ("imported = utils.build_cnn_1(NUM_CLASSES, DROPOUT, config.seed)", "imported = cnn_1")
CROP = "beyond.RandomResizedCrop()"
WEAK = "layers.Resizing(160, 160), layers.RandomFlip('horizontal')]\n    _ = ["  # ends the list
BEYOND = {
    "crops": [(CROP, CROP.replace("()", "(area=(0.3, 1.0))"))],
    "weak": [("        " + CROP, WEAK + CROP)],
    "frozen": [("frozen.trainable = False", "frozen.trainable = upper.trainable = False")],
    "random": [("utils.pretrained_weights(config, keras.applications.Xception)",
                "None, None, 'none'"), ("frozen.trainable = False", "frozen.trainable = True")],
    "image": [('by="patient", fraction', "fraction"), ("assert not set(", "_ = set(")],
    "scratch": [(f"{x} = False", f"{x} = True") for x in ("FROM_SCRATCH", "USE_PUBLISHED_WEIGHTS")],
}  # fmt: skip
ABLATIONS = {
    "zoom": [(FLIP, "layers.RandomZoom(0.1, seed=config.seed),"), IMPORTED],
    "contrast": [(FLIP, CONTRAST), IMPORTED],
    "nadam": [("optimizer=utils.build_optimizer()", "optimizer=keras.optimizers.Nadam()")],
    "unshuffled": [("NUM_CLASSES, BATCH_SIZE, shuffle)", "NUM_CLASSES, BATCH_SIZE)")],
}


class Step:
    """One execution of a notebook: `runs` are there afterwards, `needs` has to be before."""

    def __init__(self, notebook, suffix="", edits=(), dropout=0.2, patience=3):
        self.notebook, self.fields = notebook, {"DROPOUT": dropout, "PATIENCE": patience}
        self.edits = [TEST_ACCURACY, *edits] if "cnn1" in notebook else [*edits]
        self.needs = "03_cnn1_3class" if notebook == "05_cnn1_transfer" else ""
        name = run_name(notebook, dropout=dropout, patience={"unstopped": 3}.get(suffix, patience))
        if suffix == "unstratified":
            self.edits.append(UNSTRATIFIED)
            if self.needs:
                self.needs += "-unstratified"
                self.edits.append((TRAINED, f"{TRAINED}-unstratified"))
        self.until = None
        if suffix:
            name += f"-{suffix}"
            renamed = ("RUN = utils", f'RUN = "{name}"  # utils')
            if notebook == "06_beyond":
                renamed = (f'"{notebook}", 8', f'"{name}", 8')
                self.until = "## Part 3"  # what comes is about the recipe alone
            if suffix != "scratch":  # the notebook names that run itself
                self.edits.append(renamed)
        self.runs = [name, f"{name}-rescaled"] if name == "04_inceptionv3" else [name]


def transfer(suffix=""):
    """05 with three dropouts; a run with patience 10 tells about all smaller ones."""
    return [Step("05_cnn1_transfer", suffix, [RAISED_CAP], d, patience=10) for d in (0.2, 0, 0.5)]


GROUPS = {  # in the order in which the claims need them
    "main": [Step("01_data"), Step("02_cnn1_2class"), Step("03_cnn1_3class"),
             Step("04_inceptionv3"), Step("05_cnn1_transfer")],
    "unstopped": [Step("04_inceptionv3", "unstopped", UNSTOPPED, patience=25)],
    "patience": transfer()[:1],
    "sensitivity": transfer(),
    "ablations": [Step("02_cnn1_2class", *ablation) for ablation in ABLATIONS.items()],
    "unstratified": [Step("03_cnn1_3class", "unstratified"), *transfer("unstratified")],
    "beyond": [Step("06_beyond")],
    "recipe": [Step("06_beyond", *change) for change in BEYOND.items()],
    "dropout": [Step("02_cnn1_2class", dropout=dropout) for dropout in (0, 0.5)],
}  # fmt: skip


class Study:
    """The runs on images of some label in `out`, and in results/."""

    def __init__(self, out, label, publish=True):
        self.out, self.published, self.publish, self.failed = out, RESULTS / label, publish, 0

    def find(self, name, seed, need_weights=False):
        """The folder of a finished run, or None."""
        places = (place / f"seed-{seed}" / name for place in (self.out, self.published))
        found = (folder for folder in places if (folder / "run.json").exists())
        return next((f for f in found if not need_weights or ModelRun(f).has_weights), None)

    def run(self, step, seed):
        """Makes the runs of a step unless they are there, and before them the one it needs."""
        if all(self.find(name, seed) for name in step.runs):
            return
        if step.needs and not self.find(step.needs, seed, need_weights=True):
            self.log(seed, step.needs, "made again: its weights are neither in OUT nor published")
            steps = (other for group in GROUPS.values() for other in group)
            self.execute(next(s for s in steps if step.needs in s.runs), seed, RETRAIN=True)
        if not step.needs or self.find(step.needs, seed, need_weights=True):  # else seed 0's
            self.execute(step, seed)

    def log(self, seed, name, words):
        line = f"{time.strftime('%F %T')}  seed {seed}  {name:42} {words}"
        print(line, flush=True)
        with open(self.out / "study.log", "a", encoding="utf-8") as file:
            print(line, file=file)

    def execute(self, step, seed, **fields):
        started, os.environ["CXR_SEED"] = time.monotonic(), str(seed)
        printed = self.out / "study" / f"seed-{seed}" / f"{step.runs[0]}.log"
        printed.parent.mkdir(parents=True, exist_ok=True)
        path = runner.PROJECT / "notebooks" / f"{step.notebook}.ipynb"
        with open(printed, "a", encoding="utf-8") as file, contextlib.redirect_stdout(file):
            notebook, error = runner.execute(path, step.fields | fields, step.edits, step.until)
        nbformat.write(notebook, printed.with_suffix(".ipynb"))
        words = f"{time.monotonic() - started:.0f} s"
        if error:
            self.failed += 1
            words += f", failed, see {printed}: {error.strip().splitlines()[-1]}"
        elif metrics := ModelRun(self.find(step.runs[0], seed)).info.get("metrics"):
            words += f", test accuracy {metrics['test']['accuracy']:.1%}"
        self.log(seed, step.runs[0], words)
        for old in sorted(self.out.glob("cache/features-cnn_1-*"), key=os.path.getmtime)[:-1]:
            old.unlink()  # 2 GB each; only the last one can serve the next step
        self.update_results()

    def update_results(self):
        """Publishes what is new in OUT, and writes the claims anew."""
        paths = self.out.glob("seed-*/*/run.json") if self.publish else ()
        new = [p for p in paths if not (self.published / p.relative_to(self.out)).exists()]
        if any([runner.publish_run(path.parent) for path in new]):  # what others rest on stays
            self.failed += subprocess.call([sys.executable, runner.PROJECT / "scripts/claims.py"])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=range(5))
    parser.add_argument("--steps", nargs="+", choices=GROUPS, default=GROUPS)
    parser.add_argument("--out-only", action="store_true", help="leave results/ and claims alone")
    options = parser.parse_args()
    out = runner.resolve_environment()
    out.mkdir(parents=True, exist_ok=True)
    lock = open(out / "study.lock", "w")  # noqa: SIM115 - held until the end
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        sys.exit(f"A study is running in {out}: wait for it, or set OUT.")
    os.environ["CXR_MODE"] = "full"
    images = load_images(setup(out=str(out)))
    if reason := runner.why_unpublishable(images.label, len(images.metadata), images.preparation):
        sys.exit(f"No study: {reason}.")
    study = Study(out, images.label, publish=not options.out_only)
    study.update_results()  # a kill may have come in between
    for group in options.steps:
        for seed in options.seeds[: None if group in ("main", "patience", "ablations") else 3]:
            for step in GROUPS[group]:
                study.run(step, seed)
    sys.exit(f"{study.failed} steps failed" if study.failed else 0)


if __name__ == "__main__":
    main()
