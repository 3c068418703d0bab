"""Kills the notebooks at random moments and sees that nothing of it is left in the results.

    python tests/tools/soak.py [--kills 50] [--seed 0] [--folder FOLDER]

All five notebooks run once undisturbed, on phantoms in the smoke profile. Then one stage after
the other is wiped and run again, its earlier stages kept: its kernel and all it started get
kill -9 at a random moment of the notebook's whole life, and it is started again, until it
finishes by itself. It must then have left what the undisturbed run left, to the last bit.
One line per kill; results/soak.json at the end. Started again, it goes on after the last kill.
"""

import argparse
import contextlib
import json
import os
import platform
import re
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

PROJECT = Path(__file__).resolve().parents[2]
RESULT = PROJECT / "results" / "soak.json"
STAGES = ["01_data", "02_cnn1_2class", "03_cnn1_3class", "04_inceptionv3", "05_cnn1_transfer"]
IN_A_ROW = 5  # kills of one stage, at most; then it may finish
VOLATILE = ("seconds", "peak_mb", "versions", "files", "checksum")  # of run.json


def environment(out):
    """Phantoms in the smoke profile, and no other setting."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("CXR_")}
    return kept | {"CXR_DATA": "phantom", "CXR_PROFILE": "smoke", "CXR_OUT": str(out)}


def start(out, stage):
    """Starts a notebook; what it prints goes to a file beside its results."""
    with open(out.parent / "last.log", "wb") as log:
        return subprocess.Popen(
            [sys.executable, PROJECT / "tests" / "tools" / "run.py", stage], cwd=PROJECT,
            env=environment(out), stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip


def kill(process):
    """kill -9 to the runner's and the kernel's process groups, and waits until all are gone."""
    family = psutil.Process(process.pid).children(recursive=True)
    for pid in (process.pid, *(child.pid for child in family)):
        with contextlib.suppress(ProcessLookupError):
            # the kernel leads a group of its own; a child in another's group goes with that one
            os.killpg(pid, signal.SIGKILL) if os.getpgid(pid) == pid else os.kill(pid, 9)
    process.wait()
    psutil.wait_procs(family, timeout=30)


def finish(out, stage, process=None):
    """Lets a notebook run to its end; seconds it took."""
    began = time.monotonic()
    process = process or start(out, stage)
    if process.wait():
        sys.exit(f"{stage} failed after a kill:\n{(out.parent / 'last.log').read_text()[-3000:]}")
    return time.monotonic() - began


def wipe(out, stage):
    """Takes away what a stage made, and what only it needs."""
    made = {"01": ("phantoms-", "images-"), "04": ("features-inc",), "05": ("features-cnn",)}
    cache = [p for name in made.get(stage[:2], ()) for p in out.glob(f"cache/{name}*")]
    for path in [*cache, *out.glob(f"phantom-smoke/seed-0/{stage}*")]:
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def facts(path):
    """What of a file must not change, or None where it may."""
    if path.name == "run.json":
        content = json.loads(path.read_text(encoding="utf-8"))
        return {k: v for k, v in content.items() if k not in VOLATILE}
    if path.name == "history.csv":
        return [line.rsplit(",", 1)[0] for line in path.read_text().splitlines()]  # no seconds
    if path.suffix == ".h5":
        found = {}
        with h5py.File(path) as file:
            file.visititems(lambda name, item: found.update({name: item[()].tobytes()})
                            if isinstance(item, h5py.Dataset) else None)  # fmt: skip
        return found
    if path.suffix == ".json" and path.name.startswith("images-"):
        return json.loads(path.read_text(encoding="utf-8"))["fingerprint"]
    return path.read_bytes()


def tree(out):
    """Files by name: keys, which hold the times of the phantoms, are left out of it."""
    found = {}
    for path in sorted(p for p in out.rglob("*") if p.is_file() and "executed" not in p.parts):
        name = path.relative_to(out).as_posix()
        found[re.sub(r"(images-v\d+-)[0-9a-f]{16}", r"\1KEY", name)] = path
    return found


def differences(reference, out):
    """What a disturbed run left otherwise than the undisturbed one, in words."""
    for part in out.rglob(".*.part*"):  # as if ten minutes had gone by: nobody writes it any more
        os.utime(part, (0, 0))
    tidy = "import utils; utils.setup()"
    subprocess.run([sys.executable, "-c", tidy], cwd=PROJECT, env=environment(out), check=True,
                   capture_output=True)  # fmt: skip
    ours, theirs = tree(out), tree(reference)
    wrong = [f"{name}: only there {'with' if name in ours else 'without'} kills"
             for name in sorted(ours.keys() ^ theirs.keys())]  # fmt: skip
    return wrong + [
        f"{name}: differs"
        for name in sorted(ours.keys() & theirs.keys())
        if facts(ours[name]) != facts(theirs[name])
    ]


def soak(kills, seed, folder):
    """Runs the whole soak in `folder`; True if nothing differed."""
    reference, out, state = folder / "whole" / "out", folder / "killed" / "out", folder / "state"
    for place in (reference, out):
        place.mkdir(parents=True, exist_ok=True)
    known = {"life": {}, "kills": [], "checked": 0, "differ": [], "seconds": 0}
    if state.exists():
        known = json.loads(state.read_text())

    def keep():
        part = state.with_suffix(".new")
        part.write_text(json.dumps(known))
        part.replace(state)

    for stage in STAGES:
        if stage not in known["life"]:
            known["life"][stage] = round(finish(reference, stage), 1)
            print(f"undisturbed: {stage}, {known['life'][stage]:.0f} s", flush=True)
            keep()
    if not (out / "cache").exists() and not known["kills"]:
        shutil.copytree(reference, out, dirs_exist_ok=True)
    order = [s for r in range(kills) for s in np.random.default_rng([seed, r]).permutation(STAGES)]
    began = time.monotonic() - known["seconds"]
    while len(known["kills"]) < kills:
        stage, number = order[known["checked"]], len(known["kills"])
        row = [k for k in known["kills"] if k["episode"] == known["checked"]]
        if not row and known.get("wiped") != known["checked"]:
            wipe(out, stage)
            known["wiped"] = known["checked"]
            keep()
        process = start(out, stage)
        moment = np.random.default_rng([seed, number, 1]).uniform(0, known["life"][stage])
        try:
            process.wait(moment if len(row) < IN_A_ROW else None)
        except KeyboardInterrupt:
            kill(process)
            raise
        except subprocess.TimeoutExpired:
            kill(process)
            known["kills"].append(
                {"stage": stage, "second": round(moment, 1), "episode": known["checked"]}
            )
            print(f"kill {number + 1} of {kills}: {stage} after {moment:.1f} s", flush=True)
        else:
            check(known, reference, out, stage, process)
        known["seconds"] = round(time.monotonic() - began)
        keep()
    if any(k["episode"] == known["checked"] for k in known["kills"]):
        check(known, reference, out, order[known["checked"]], start(out, order[known["checked"]]))
        known["seconds"] = round(time.monotonic() - began)
        keep()
    rows, packages = known["kills"], ("tensorflow", "keras", "numpy", "h5py")
    found = {
        "versions": {"python": platform.python_version()} | {p: version(p) for p in packages},
        "kills": len(rows),
        "killed in second": {s: [k["second"] for k in rows if k["stage"] == s] for s in STAGES},
        "seconds undisturbed": known["life"],
        "finished and compared": known["checked"],
        "minutes": round(known["seconds"] / 60, 1),
        "differ": known["differ"],
    }
    RESULT.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(f"{len(known['kills'])} kills, {known['checked']} times finished and compared with the "
          f"undisturbed run: {len(known['differ'])} differences, in {RESULT.name}")  # fmt: skip
    return not known["differ"]


def check(known, reference, out, stage, process):
    """Waits until a stage that was killed before has finished, and compares what it left."""
    finish(out, stage, process)
    wrong = differences(reference, out)
    known["checked"] += 1
    known["differ"] += [f"{stage}: {what}" for what in wrong]
    print(f"finished: {stage}, {'; '.join(wrong) or 'the same as undisturbed'}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="where it works, and goes on from")
    options = parser.parse_args()
    os.environ["JUPYTER_PREFER_ENV_PATH"] = "1"
    folder = options.folder or Path(tempfile.gettempdir()) / f"cxr-soak-{options.seed}"
    good = soak(options.kills, options.seed, folder.absolute())
    if good and not options.folder:
        shutil.rmtree(folder)
    sys.exit(not good)


if __name__ == "__main__":
    main()
