"""Executes the notebooks in order, as `make run` and `make publish` do.

    python tests/tools/run.py [--publish] [--field NAME=VALUE ...] [NOTEBOOK ...]

What a cell prints is shown as it comes. The executed copies go under the output folder; only
`--publish` writes them over the committed notebooks, and then only if all of them finished; it
also copies the run's small files to results/ and the small weights to weights/.
"""

import argparse
import json
import os
import re
import shutil
import sys
import time
import zlib
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

PROJECT = Path(__file__).resolve().parents[2]
# Small weights that trials and stage 05 load:
BUILT_ON = ("02_cnn1_2class", "03_cnn1_3class", "03_cnn1_3class-unstratified")


class EchoingClient(NotebookClient):
    """Shows on the terminal what the cells print, while they run."""

    def process_message(self, msg, cell, cell_index):
        if msg["msg_type"] == "stream":
            sys.stdout.write(msg["content"]["text"])
            sys.stdout.flush()
        return super().process_message(msg, cell, cell_index)


def set_fields(notebook, fields):
    """Fills form fields, as a person does in Colab: {"TRIAL": "nadam", "RETRAIN": "True"}."""
    for name, value in fields.items():
        pattern = re.compile(rf'^{name} = ("[^"]*"|True|False|[\d.]+)(?=\s*#@param)', re.M)
        for cell in notebook.cells:
            if cell.cell_type == "code" and (found := pattern.search(cell.source)):
                if found[1].startswith('"'):
                    value = json.dumps(value)
                elif found[1] in ("True", "False"):
                    value = str(value == "True")
                start, end = found.span(1)
                cell.source = cell.source[:start] + value + cell.source[end:]
                break
        else:
            sys.exit(f"{name} is no form field of this notebook")


def execute(path, fields=None):
    """Runs one notebook in its own folder, with some of its form fields filled.

    Returns:
        (notebook, error): the notebook with its outputs, and the exception of a failed cell
        or None.
    """
    notebook = nbformat.read(path, as_version=4)
    set_fields(notebook, fields or {})
    client = EchoingClient(
        notebook,
        timeout=None,
        kernel_name="python3",
        resources={"metadata": {"path": str(path.parent)}},
        coalesce_streams=True,
    )
    error = None
    try:
        client.execute()
    except CellExecutionError as failure:
        error = failure
    for cell in notebook.cells:  # times of day and editor state would differ in every run
        cell.metadata.pop("execution", None)
    notebook.metadata["language_info"] = {"name": "python"}
    notebook.metadata.pop("widgets", None)
    return notebook, error


def settle_environment():
    """Makes the kernels this Python's own, and relative folders those of this folder."""
    os.environ["JUPYTER_PREFER_ENV_PATH"] = "1"  # whatever kernels the machine has registered
    for name in ("CXR_DATA", "CXR_OUT", "CXR_INCEPTION_WEIGHTS"):
        value = os.environ.get(name, "")  # relative to this folder, not to notebooks/
        if value not in ("", "kaggle", "phantom", "imagenet", "random"):
            os.environ[name] = str(Path(value).expanduser().absolute())


def publish_stages(out):
    """Copies what full runs on real images left to results/, and the small weights to weights/."""
    for path in sorted(out.glob("seed-*/*/run.json")):
        facts = json.loads(path.read_text(encoding="utf-8"))
        to = PROJECT / "results" / facts["data"]["label"] / f"seed-{facts['seed']}" / facts["stage"]
        to.mkdir(parents=True, exist_ok=True)
        for name in ("history.csv", "predictions.csv", "run.json"):
            if (path.parent / name).exists():
                shutil.copyfile(path.parent / name, to / name)
        weights = path.parent / "model.weights.h5"
        wanted = (*BUILT_ON, "05_cnn1_transfer") if facts["seed"] == 0 else BUILT_ON
        if facts["stage"] in wanted and weights.exists():
            kept = weights_of(facts)
            kept.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(weights, kept)
        print(f"published {to.relative_to(PROJECT)}")


def weights_of(facts):
    """Where the published weights of a stage are, if they are."""
    return PROJECT / "weights" / f"seed-{facts['seed']}" / f"{facts['stage']}.weights.h5"


def take_published(out, fingerprint):
    """Puts the published stages on these images where a run would have left them. One that
    others build on is left out where its weights are not published: it is made again."""
    for path in sorted((PROJECT / "results").glob("*/seed-*/*/run.json")):
        facts = json.loads(path.read_text(encoding="utf-8"))
        to = out / f"seed-{facts['seed']}" / facts["stage"]
        weights = weights_of(facts)
        whole = (
            weights.exists()
            and zlib.crc32(weights.read_bytes()) == facts["files"]["model.weights.h5"]
        )
        if facts["data"]["fingerprint"] != fingerprint or to.exists():
            continue
        if facts["stage"] in BUILT_ON and not whole:
            continue
        part = to.with_name(f".{to.name}.part")
        shutil.rmtree(part, ignore_errors=True)
        shutil.copytree(path.parent, part)
        if whole:
            shutil.copyfile(weights, part / "model.weights.h5")
        part.rename(to)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--publish", action="store_true", help="write over notebooks/")
    parser.add_argument("--field", action="append", default=[], help="a form field: NAME=VALUE")
    parser.add_argument("names", nargs="*", help="notebooks by name; all of them by default")
    options = parser.parse_args()
    fields = dict(field.split("=", 1) for field in options.field)
    if fields and options.publish:
        parser.error("published notebooks have their form fields at the defaults")
    settle_environment()
    out = Path(os.environ.get("CXR_OUT") or PROJECT / "artifacts").expanduser().absolute()
    done = {}
    for path in sorted((PROJECT / "notebooks").glob("*.ipynb")):
        if options.names and path.stem not in options.names:
            continue
        started = time.monotonic()
        print(f"--- {path.stem} ".ljust(88, "-"), flush=True)
        notebook, error = execute(path, fields)
        copy = out / "executed" / path.name
        copy.parent.mkdir(parents=True, exist_ok=True)
        nbformat.write(notebook, copy)
        if error:
            sys.exit(f"{error}\n{path.stem} stopped; its outputs so far are in {copy}")
        print(f"--- {path.stem}: {time.monotonic() - started:.0f} s, outputs in {copy}", flush=True)
        done[path] = notebook
    if not done:
        sys.exit(f"no such notebook: {', '.join(options.names)}")
    if options.publish:
        for path, notebook in done.items():
            nbformat.write(notebook, path)
            print(f"published {path.relative_to(PROJECT)}")
        publish_stages(out)


if __name__ == "__main__":
    main()
