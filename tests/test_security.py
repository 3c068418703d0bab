"""What the project must never do: load code from files, install on its own, show a token."""

import ast
import json
import os
import re
import subprocess
import sys

import h5py
import keras
import nbformat
import numpy as np
import pytest

import utils

NOTEBOOKS = sorted((utils.PROJECT / "notebooks").glob("*.ipynb"))
CODE = [utils.PROJECT / "utils.py", utils.PROJECT / "conftest.py"]
CODE += sorted(p for d in ("data", "tests") for p in (utils.PROJECT / d).rglob("*.py"))
MARK = "t0ken-mark"
TOKENS = {"KAGGLE_USERNAME": f"user-{MARK}", "KAGGLE_KEY": f"key-{MARK}",
          "KAGGLE_API_TOKEN": f"api-{MARK}", "HF_TOKEN": f"hf-{MARK}"}  # fmt: skip
UNSAFE = {  # modules and functions that run what a file says
    "pickle", "cPickle", "dill", "cloudpickle", "shelve", "marshal", "joblib", "imp",
    "read_pickle", "to_pickle", "load_model", "torch.load", "eval", "exec", "unpack_archive",
    "extractall", "os.system", "os.popen", "model_from_json", "enable_unsafe_deserialization",
}  # fmt: skip


def dotted(node):
    """A call's or an attribute's name: "np.load"."""
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def unsafe(source):
    """What a piece of code does that it must not, as (line, what)."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            names = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
            names = [part for name in names for part in (name, name.split(".")[0])]
        elif isinstance(node, ast.Call):
            name = dotted(node.func)
            names = [name, name.split(".")[-1]] if name != "spec.loader.exec_module" else []
            given = {k.arg: getattr(k.value, "value", "?") for k in node.keywords}
            if name in ("np.load", "numpy.load") and given.get("allow_pickle") is not False:
                yield node.lineno, "np.load without allow_pickle=False"
            for word, value in (("allow_pickle", True), ("safe_mode", False), ("shell", True)):
                if given.get(word) is value:
                    yield node.lineno, f"{word}={value}"
        else:
            continue
        yield from ((node.lineno, name) for name in set(names) & UNSAFE)


def cells(path):
    """The code of a notebook's cells; a shell line or a magic would not parse as Python."""
    notebook = nbformat.read(path, as_version=4)
    return [cell.source for cell in notebook.cells if cell.cell_type == "code"]


@pytest.mark.parametrize("path", [*CODE, *NOTEBOOKS], ids=lambda path: path.name)
def test_no_code_is_loaded_from_files(path):
    sources = cells(path) if path.suffix == ".ipynb" else [path.read_text(encoding="utf-8")]
    assert [found for source in sources for found in unsafe(source)] == []


@pytest.mark.parametrize(
    "source",
    ["import pickle", "from pickle import loads", "import joblib", "pd.read_pickle(x)",
     "np.load(x)", "np.load(x, allow_pickle=True)", "torch.load(x)", "eval(x)",
     "keras.models.load_model(x)", "keras.saving.load_model(x, safe_mode=False)",
     "archive.extractall(x)", "subprocess.run(x, shell=True)", "os.system(x)"],
)  # fmt: skip
def test_the_search_finds_what_it_is_for(source):
    assert list(unsafe(source))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_install_nothing(path):
    """What a person installs is requirements.txt alone; the set-up cell only clones."""
    for source in cells(path):
        assert not re.search(r"\bpip\b|\bconda\b|\bapt(-get)?\b|urlretrieve|wget|curl", source)
        for call in (n for n in ast.walk(ast.parse(source)) if isinstance(n, ast.Call)):
            if dotted(call.func).startswith(("subprocess.", "os.exec", "os.spawn")):
                assert ast.unparse(call.args[0]).startswith("['git', 'clone', ")


def test_only_requirements_are_installed_by_the_commands():
    for name in ("Makefile", ".ci/run", *(f".github/workflows/{p.name}" for p in
                 (utils.PROJECT / ".github" / "workflows").glob("*.yml"))):  # fmt: skip
        for line in (utils.PROJECT / name).read_text(encoding="utf-8").splitlines():
            if "pip install" in line:
                assert line.split()[-2:] == ["-r", "requirements.txt"], f"{name}: {line}"


def test_published_weights_hold_numbers_alone():
    files = sorted(path for path in utils.WEIGHTS.rglob("*") if path.is_file())
    assert files and all(path.name.endswith(".weights.h5") for path in files)
    for path in files:
        with h5py.File(path) as file:
            kinds = set()
            file.visititems(lambda _, item, kinds=kinds: kinds.add(
                item.dtype if isinstance(item, h5py.Dataset) else None))  # fmt: skip
            assert kinds <= {None, np.dtype("float32"), np.dtype("int64"), np.dtype("uint32")}
    beside = {p.suffix for d in ("results", "data") for p in (utils.PROJECT / d).rglob("*.*")}
    assert not beside & {".pkl", ".pickle", ".joblib", ".pt", ".pth", ".npy", ".keras", ".h5"}


def test_objects_in_a_training_state_are_not_unpickled(make_run, tmp_path, capsys):
    """A state that was put there by somebody else cannot run code."""
    ran = tmp_path / "ran"

    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(ran),)

    path = tmp_path / "training.npz"
    np.savez(path, meta=np.array([Evil()], dtype=object))
    state = utils._Resume(path, {}, None, None, 2)
    assert not state.load(keras.Sequential()) and not ran.exists()
    assert "is damaged" in capsys.readouterr().out


SCRIPT = """
import keras, utils
run = utils.setup()
images = utils.open_images(run)
import sys; sys.path.insert(0, "tests/tools")
import tiny
tiny.whole_run(run)
try:
    utils.find_images(utils.setup(data="kaggle"))
except utils.CxrError as error:
    print(error)
"""


def test_no_token_is_printed_or_kept(tiny_set, tmp_path):
    environment = dict(
        os.environ, **TOKENS, CXR_DATA=str(tiny_set()), CXR_OUT=str(tmp_path / "out"),
        CXR_PROFILE="full", HTTPS_PROXY=f"http://me:{MARK}@127.0.0.1:9",
        HOME=str(tmp_path / "home"), KAGGLEHUB_CACHE=str(tmp_path / "hub"),
    )  # fmt: skip
    done = subprocess.run([sys.executable, "-c", SCRIPT], cwd=utils.PROJECT, text=True,
                          env=environment, capture_output=True)  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert "saved in" in done.stdout and "No chest X-ray images found" in done.stdout
    kept = [p for p in tmp_path.rglob("*") if p.is_file() and "set" not in p.parts]
    assert {"run.json", "model.weights.h5", "predictions.csv"} <= {p.name for p in kept}
    for text in (done.stdout.encode(), done.stderr.encode(), *(p.read_bytes() for p in kept)):
        assert MARK.encode() not in text
    facts = json.loads(next(p for p in kept if p.name == "run.json").read_text())
    assert not any(name in json.dumps(facts) for name in TOKENS)


def test_outputs_run_no_script():
    html = re.compile(r"<\s*(script|iframe|object|embed|link|meta)\b|\bon\w+\s*=|javascript:", re.I)
    for path in NOTEBOOKS:
        for cell in nbformat.read(path, as_version=4).cells:
            for output in cell.get("outputs", []):
                for kind, data in output.get("data", {}).items():
                    assert "javascript" not in kind
                    if kind in ("text/html", "text/markdown", "image/svg+xml"):
                        assert not html.search(str(data)), (path.name, str(data)[:80])
