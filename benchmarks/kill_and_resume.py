"""Kills the notebooks at random moments and sees that nothing of it is left in their results.

All notebooks run once undisturbed, in quick mode on data/sample. Then one after the other is wiped
and run again, what earlier ones left is kept: its kernel and all it started get kill -9 at a random
moment of the notebook's whole life, and it is started again, until it finishes by itself. It must
then have left what the undisturbed run left, to the last bit. To make kills cheap, the notebooks'
source is edited to 16 images of a class and split and to few epochs, and 06 ends before its Part 3;
InceptionV3 and Xception start from random weights. A line per kill; results/kill_and_resume.json at
the end; a later start goes on.
"""

import argparse
import contextlib
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import h5py
import numpy as np
import psutil

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "scripts"))
import run_notebooks as runner

RESULT = runner.PROJECT / "results" / "kill_and_resume.json"
FEW = ("images.metadata, config)", 'images.metadata, config).groupby(["split", "class3"]).head(16)')
SIX_EPOCHS, TEN_EPOCHS = ("5 if config.quick else 50", "6"), ("30 if config.quick else 100", "10")
EDITS = {
    "01_data": [], "02_cnn1_2class": [FEW, SIX_EPOCHS], "03_cnn1_3class": [FEW, SIX_EPOCHS],
    "04_inceptionv3": [FEW, SIX_EPOCHS], "05_cnn1_transfer": [FEW, TEN_EPOCHS],
    "06_beyond": [("fraction=0.1)", 'fraction=0.1).groupby(["split", "class3"]).head(16)'),
                  ("WEIGHTS or config.quick)", "WEIGHTS)"), ('"06_beyond", 8', '"06_beyond", 3')],
}  # fmt: skip
NOTEBOOKS = list(EDITS)
MADE = {"01": ("images-",), "04": ("features-inc",), "05": ("features-cnn",)}  # in cache/
IN_A_ROW = 5  # kills of one notebook, at most; then it may finish
VOLATILE = ("seconds", "files", "checksum")  # of run.json


def start(out, name):
    """Starts a notebook in a process of its own; what it prints goes to a file beside `out`."""
    settings = {"CXR_MODE": "quick", "CXR_OUT": str(out), "CXR_INCEPTION_WEIGHTS": "random",
                "CXR_XCEPTION_WEIGHTS": "random"}  # fmt: skip
    kept = {key: value for key, value in os.environ.items() if not key.startswith("CXR_")}
    with open(out.parent / "last.log", "wb") as log:
        return subprocess.Popen([sys.executable, __file__, "--one", name], stdout=log, stderr=log,
                                env=kept | settings, start_new_session=True)  # fmt: skip


def kill(process):
    """kill -9 to the runner's and the kernel's process groups; waits until all are gone."""
    family = psutil.Process(process.pid).children(recursive=True)
    for pid in (process.pid, *(child.pid for child in family)):
        with contextlib.suppress(ProcessLookupError):
            # the kernel leads a group of its own; a child in another's group goes with that one
            os.killpg(pid, signal.SIGKILL) if os.getpgid(pid) == pid else os.kill(pid, 9)
    process.wait()
    psutil.wait_procs(family, timeout=30)


def finish(out, name, process=None):
    """Lets a notebook run to its end; seconds it took."""
    began = time.monotonic()
    if (process or start(out, name)).wait():
        sys.exit(f"{name} failed after a kill:\n{(out.parent / 'last.log').read_text()[-3000:]}")
    return round(time.monotonic() - began, 1)


def wipe(out, name):
    """Takes away what a notebook made, and what only it needs."""
    made = [path for start in MADE.get(name[:2], ()) for path in out.glob(f"cache/{start}*")]
    for path in [*made, *out.glob(f"quick/seed-0/{name}*")]:
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def content(path):
    """What of a file must not change."""
    if path.name == "run.json":
        info = json.loads(path.read_text(encoding="utf-8"))
        return {key: value for key, value in info.items() if key not in VOLATILE}
    if path.name == "history.csv":
        return [line.rsplit(",", 1)[0] for line in path.read_text().splitlines()]  # no seconds
    if path.suffix == ".h5":  # HDF5 notes the time
        found = {}
        with h5py.File(path) as file:
            file.visititems(lambda name, item: found.update({name: item[()].tobytes()})
                            if isinstance(item, h5py.Dataset) else None)  # fmt: skip
        return found
    return path.read_bytes()


def differences(reference, out):
    """What a disturbed run left otherwise than the undisturbed one, in words."""
    theirs, ours = ({path.relative_to(top).as_posix(): path for path in top.rglob("*")
                     if path.is_file()} for top in (reference, out))  # fmt: skip
    return [f"{name}: only there {'with' if name in ours else 'without'} kills"
            for name in sorted(ours.keys() ^ theirs.keys())] + [
            f"{name}: differs" for name in sorted(ours.keys() & theirs.keys())
            if content(ours[name]) != content(theirs[name])]  # fmt: skip


class Round:
    """Kills in a folder; `state` says what was done, and is kept there."""

    def __init__(self, folder, seed):
        self.reference, self.out = folder / "whole" / "out", folder / "killed" / "out"
        self.path, self.seed = folder / "state", seed
        self.state = {"life": {}, "kills": [], "compared": 0, "differ": [], "seconds": 0}
        if self.path.exists():
            self.state = json.loads(self.path.read_text())
        self.began = time.monotonic() - self.state["seconds"]

    def keep(self, line):
        """Writes the state down, and prints a line."""
        self.state["seconds"] = round(time.monotonic() - self.began)
        self.path.with_name("new").write_text(json.dumps(self.state))
        self.path.with_name("new").replace(self.path)
        print(line, flush=True)

    def undisturbed(self):
        self.reference.mkdir(parents=True, exist_ok=True)
        for name in NOTEBOOKS:
            if name not in self.state["life"]:
                self.state["life"][name] = finish(self.reference, name)
                self.keep(f"undisturbed: {name}, {self.state['life'][name]} s")
        if not self.out.exists():
            shutil.copytree(self.reference, self.out.with_name("part"))
            self.out.with_name("part").rename(self.out)

    def episode(self, kills):
        """Wipes one notebook, kills it until it finishes or there were enough kills, compares."""
        state, number = self.state, self.state["compared"]
        turn = np.random.default_rng([self.seed, number // len(NOTEBOOKS), 0])
        name = str(turn.permutation(NOTEBOOKS)[number % len(NOTEBOOKS)])
        row = [kill for kill in state["kills"] if kill["episode"] == number]
        if not row:
            wipe(self.out, name)
        while True:
            process, count = start(self.out, name), len(state["kills"])
            moment = np.random.default_rng([self.seed, count]).uniform(0, state["life"][name])
            try:
                process.wait(moment if len(row) < IN_A_ROW and count < kills else None)
                break
            except BaseException as stop:
                kill(process)
                if not isinstance(stop, subprocess.TimeoutExpired):
                    raise
            row.append({"notebook": name, "second": round(moment, 1), "episode": number})
            state["kills"].append(row[-1])
            self.keep(f"kill {count + 1} of {kills}: {name} after {moment:.1f} s")
        finish(self.out, name, process)
        wrong = differences(self.reference, self.out)
        state["differ"] += [f"{name}: {what}" for what in wrong]
        state["compared"] += 1
        self.keep(f"finished: {name}, {'; '.join(wrong) or 'the same as undisturbed'}")

    def report(self):
        """Writes results/kill_and_resume.json; returns the number of differences."""
        state, packages = self.state, ("tensorflow", "keras", "numpy", "h5py")
        RESULT.write_text(json.dumps({
            "versions": {"python": platform.python_version()} | {p: version(p) for p in packages},
            "kills": len(state["kills"]),
            "killed in second": {name: [kill["second"] for kill in state["kills"]
                                        if kill["notebook"] == name] for name in NOTEBOOKS},
            "seconds undisturbed": state["life"], "finished and compared": state["compared"],
            "minutes": round(state["seconds"] / 60, 1), "differ": state["differ"],
        }, indent=1) + "\n", encoding="utf-8")  # fmt: skip
        print(f"{len(state['kills'])} kills, {state['compared']} times finished and compared with "
              f"the undisturbed run: {len(state['differ'])} differences")  # fmt: skip
        return len(state["differ"])


def until(notebook):
    """The heading that a notebook is executed to, or None: all of it."""
    return "## Part 3" if notebook == "06_beyond" else None


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--one", help=argparse.SUPPRESS)  # a notebook, in a process of its own
    options = parser.parse_args()
    runner.resolve_environment()
    if options.one:
        path = runner.PROJECT / "notebooks" / f"{options.one}.ipynb"
        sys.exit(runner.execute(path, {}, EDITS[options.one], until(options.one))[1])
    command = ["git", "rev-parse", "--short", "HEAD"]  # each commit has rounds of its own
    revision = subprocess.check_output(command, cwd=runner.PROJECT, text=True).strip()
    folder = Path(tempfile.gettempdir()) / f"cxr-kills-{options.seed}-{revision}"
    this = Round(folder, options.seed)
    this.undisturbed()
    while len(this.state["kills"]) < options.kills:
        this.episode(options.kills)
    if this.report():
        sys.exit(1)
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
