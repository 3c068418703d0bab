"""Executes the notebooks in order; the executed copies go to OUT/executed. Only --publish writes
over the committed notebooks, results/ and weights/, and only if all notebooks finished."""

import argparse
import filecmp
import json
import os
import re
import shutil
import sys
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, DeadKernelError

PROJECT = Path(__file__).resolve().parents[1]
WHOLE, MAIN_IMAGES = 5856, "chest_xray_nearest224"  # images; label of the report's preparation
WITH_WEIGHTS = ("02_cnn1_2class", "03_cnn1_3class", "05_cnn1_transfer", "06_beyond")
PATHS = ("CXR_DATA", "CXR_OUT", "CXR_INCEPTION_WEIGHTS", "CXR_XCEPTION_WEIGHTS")
NO_PATHS = ("kaggle", "sample", "imagenet", "random")  # what else these may hold


class EchoingClient(NotebookClient):
    """Shows on the terminal what the cells print, while they run."""

    def process_message(self, msg, cell, cell_index):
        if msg["msg_type"] == "stream":
            print(msg["content"]["text"], end="", flush=True)
        return super().process_message(msg, cell, cell_index)


def resolve_environment():
    """Makes relative folders those of this folder, not of notebooks/; returns the one for OUT."""
    os.environ["JUPYTER_PREFER_ENV_PATH"] = "1"  # this Python's kernel, whatever is registered
    for name, value in ((name, os.environ.get(name, "").strip()) for name in PATHS):
        if value and (name == "CXR_OUT" or value not in NO_PATHS):
            os.environ[name] = str(Path(value).expanduser().absolute())
    return Path(os.environ.get("CXR_OUT") or PROJECT / "artifacts")


def edited(path, fields=None, edits=(), until=None):
    """A notebook with form fields filled, as a person does, pieces of its source replaced: pairs
    (old, new), each of which must occur exactly once; and cut off before the cell with `until`."""
    notebook = nbformat.read(path, as_version=4)
    if until:
        [end] = [i for i, cell in enumerate(notebook.cells) if until in cell.source]
        notebook.cells = notebook.cells[:end]
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    for name, value in (fields or {}).items():
        field = re.compile(rf'^({name} = "?).*?("?\s*#@param)', re.M)
        for cell in cells:
            cell.source = field.sub(lambda m, value=value: f"{m[1]}{value}{m[2]}", cell.source)
    for old, new in edits:
        if (count := sum(cell.source.count(old) for cell in cells)) != 1:
            raise ValueError(f"{old!r} occurs {count} times in {path.name}, not once")
        for cell in cells:
            cell.source = cell.source.replace(old, new)
    return notebook


def execute(path, fields=None, edits=(), until=None):
    """Runs a notebook; returns it with its outputs, and what a cell failed with or None."""
    notebook, error = edited(path, fields, edits, until), None
    client = EchoingClient(
        notebook, timeout=None, kernel_name="python3", coalesce_streams=True,
        resources={"metadata": {"path": str(path.parent)}}, extra_arguments=["--log-level=40"],
        record_timing=False, store_widget_state=False,  # would differ in every run
    )  # fmt: skip
    try:
        client.execute()
    except (CellExecutionError, DeadKernelError) as failure:
        error = failure.evalue if getattr(failure, "ename", "") == "UserError" else str(failure)
    notebook.metadata["language_info"] = {"name": "python"}
    notebook.metadata.pop("widgets", None)
    return notebook, error


def why_unpublishable(label, count, preparation, mode="full", info=""):
    """Why a run on such images is not for results/ and the committed notebooks, or ""."""
    if mode != "full" or "random weights" in info:
        return f"it takes full mode, not {mode}" if mode != "full" else "its weights are random"
    if label != MAIN_IMAGES or count != WHOLE:
        return f"it takes {MAIN_IMAGES} with its {WHOLE:,} images, which {label} is not"
    return f"{label} is {preparation}" if preparation not in ("", "nearest neighbours") else ""


def read_publishable(folder):
    """The run.json of a run; ends the program where the run is not one to publish."""
    info = json.loads((folder / "run.json").read_text("utf-8"))
    label, count, preparation = (info["images"][k] for k in ("label", "count", "preparation"))
    if reason := why_unpublishable(label, count, preparation, info["mode"], str(info)):
        sys.exit(f"{folder} is not published: {reason}.")
    return info


def publish_run(folder):
    """Copies a run's small files to results/, and weights to weights/; whether any was new."""
    info, changed = read_publishable(folder), False
    target = PROJECT / "results" / MAIN_IMAGES / f"seed-{info['seed']}" / info["run"]
    copies = {folder / file: target / file for file in info["files"] if file.endswith(".csv")}
    if info["seed"] == 0 and info["run"] in WITH_WEIGHTS:
        copies[folder / "model.weights.h5"] = PROJECT / "weights" / f"{info['run']}.weights.h5"
    for old, new in [*copies.items(), (folder / "run.json", target / "run.json")]:
        if not new.exists() or not filecmp.cmp(old, new, shallow=False):
            new.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(old, new)
            changed = True
    return changed


def main():
    paths = {path.stem: path for path in sorted((PROJECT / "notebooks").glob("*.ipynb"))}
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--publish", action="store_true", help="write over notebooks/, results/")
    parser.add_argument("--field", action="append", default=[], help="NAME=VALUE, or NAME: ticked")
    parser.add_argument("names", nargs="*", help="notebooks, for instance 01_data; by default all")
    options, out = parser.parse_args(), resolve_environment()
    if unknown := [name for name in options.names if name not in paths]:
        parser.error(f"no notebook {', '.join(unknown)}: there are {', '.join(paths)}")
    chosen, executed = [p for name, p in paths.items() if name in (options.names or paths)], {}
    fields = dict(f.split("=", 1) if "=" in f else (f, True) for f in options.field)
    text = "".join(path.read_text("utf-8") for path in chosen)
    if unknown := [name for name in fields if not re.search(f'"{name} = .*#@param', text)]:
        parser.error(f"no form field {', '.join(unknown)} in these notebooks")
    if options.publish:  # as far as the settings tell
        data, mode, seed = (os.environ.get(f"CXR_{n}", "") for n in ("DATA", "MODE", "SEED"))
        count = 0 if data in ("", *NO_PATHS) else min(WHOLE, len([*Path(data).rglob("*.jp*g")]))
        reasons = [
            why_unpublishable(Path(data).name or "a search", count, "", mode or "full"),
            fields and "a form field is filled", seed.lstrip("0") and f"the seed is {seed}, not 0",
            *(f"{n} is random" for n in PATHS[2:] if os.environ.get(n, "").strip() == "random"),
        ]  # fmt: skip
        if any(reasons):
            sys.exit(f"Nothing is published: {next(filter(None, reasons))}. "
                     "Say make publish MODE=full DATA=...")  # fmt: skip
    for path in chosen:
        started = time.monotonic()
        print(f"--- {path.stem} ".ljust(88, "-"), flush=True)
        executed[path], error = execute(path, fields)
        copy = out / "executed" / path.name
        copy.parent.mkdir(parents=True, exist_ok=True)
        nbformat.write(executed[path], copy)
        if error:
            sys.exit(f"{error}\n{path.stem} stopped; its outputs so far are in {copy}")
        print(f"--- {path.stem}: {time.monotonic() - started:.0f} s, outputs in {copy}", flush=True)
    if options.publish:
        runs = [run for path in chosen for run in out.glob(f"seed-0/{path.stem[:2]}_*/run.json")]
        for publish in (read_publishable, publish_run):  # nothing is copied before all are read
            for run in sorted(runs):
                publish(run.parent)
        for path in chosen if runs else ():
            for cell in executed[path].cells:  # TensorFlow's own lines: they teach nobody anything
                if cell.cell_type == "code":
                    cell.outputs = [o for o in cell.outputs if o.get("name") != "stderr"]
            nbformat.write(executed[path], path)
        print(f"published {len(runs)} runs and {len(chosen) if runs else 'no'} notebooks")


if __name__ == "__main__":
    main()
