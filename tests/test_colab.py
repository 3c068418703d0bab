"""A rehearsal of Colab: its Python, its versions (see CONTRIBUTING.md), its Drive, Run all. Each
notebook is opened on its own and clones the project as in Colab; git is told to fetch it from here.
Then the machine is thrown away, Drive stays, and a second session follows."""

import json
import os
import shutil
import subprocess
import sys
import types
from pathlib import Path

import pytest
import run_notebooks
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient

import utils

PROJECT = utils.PROJECT
NOTEBOOKS = sorted((PROJECT / "notebooks").glob("*.ipynb"))
AGAIN = ("02_cnn1_2class", "05_cnn1_transfer")  # the second session; 05 needs every kind of file
COLAB = PROJECT / "tests" / "colab.txt"
VERSIONS = dict(line.split("==") for line in COLAB.read_text().splitlines() if "==" in line)


def find_python():
    places = [sys.executable, shutil.which("python3.13")]
    places += sorted(Path("~/.pyenv/versions").expanduser().glob("3.13*/bin/python"))
    code = "import sys; sys.exit(sys.version_info[:2] != (3, 13))"
    runs = ((p, subprocess.run([p, "-c", code], capture_output=True)) for p in filter(None, places))
    return next((place for place, run in runs if run.returncode == 0), None)


PYTHON = find_python()
NO_PYTHON = pytest.mark.skipif(PYTHON is None, reason="no Python 3.13 here, which Colab has")
pytestmark = [pytest.mark.slow, NO_PYTHON]


@pytest.fixture(scope="module")
def python(pytestconfig):
    """The interpreter of an environment with Colab's versions, made once."""
    folder = Path(os.environ.get("CXR_TEST_COLAB") or "~/.cache/cxr-colab").expanduser()
    python = folder / "bin" / "python"
    if not python.exists():
        with pytestconfig.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
            print(f"\nInstalling Colab's packages in {folder}, about 3 GB", file=sys.stderr)
        subprocess.run([PYTHON, "-m", "venv", folder], check=True)
    subprocess.run([python, "-m", "pip", "install", "-q", "-r", COLAB], check=True)
    return python


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    """A repository with the tracked files as they lie here, committed or not."""
    folder = tmp_path_factory.mktemp("repository")
    names = subprocess.run(["git", "ls-files", "-z"], cwd=PROJECT, capture_output=True, check=True)
    for name in names.stdout.decode().split("\0")[:-1]:
        if (PROJECT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(PROJECT / name, folder / name)
    for command in ("init -q", "add -A -f", "-c user.name=x -c user.email=x@x commit -q -m now"):
        subprocess.run(["git", *command.split()], cwd=folder, check=True)
    return folder


class Machine:
    """A Colab session: a home, /content, a folder for temporary files, and Drive once mounted."""

    def __init__(self, folder, drive, python, repository):
        self.folder = folder
        for name in ("content", "home", "tmp", "kernels/python3"):
            (folder / name).mkdir(parents=True)
        shutil.copytree(PROJECT / "tests" / "colab", folder / "colab")
        command = [str(python), "-m", "ipykernel_launcher", "-f", "{connection_file}"]
        kernel = {"argv": command, "display_name": "Colab", "language": "python"}
        (folder / "kernels" / "python3" / "kernel.json").write_text(json.dumps(kernel))
        source = (PROJECT / "pyproject.toml").read_text().split('repository = "')[1].split('"')[0]
        self.environment = {
            "PATH": f"{python.parent}:/usr/local/bin:/usr/bin:/bin", "LANG": "C.UTF-8",
            "HOME": str(folder / "home"), "TMPDIR": str(folder / "tmp"),
            "PYTHONPATH": str(folder / "colab"),
            "CXR_INCEPTION_WEIGHTS": "random", "CXR_XCEPTION_WEIGHTS": "random",
            "CXR_TEST_CONTENT": str(folder / "content"), "CXR_TEST_DRIVE": str(drive),
            "GIT_CONFIG_COUNT": "1", "GIT_TERMINAL_PROMPT": "0",
            "GIT_CONFIG_KEY_0": f"url.{repository.as_uri()}.insteadOf",
            "GIT_CONFIG_VALUE_0": f"https://github.com/{source}",
        }  # fmt: skip

    def run_all(self, path):
        """Runs a notebook in quick mode, in a folder where nothing else lies; returns its text."""
        notebook = run_notebooks.edited(path, {"MODE": "quick"})
        for cell in notebook.cells:
            if cell.cell_type == "code":
                cell.outputs, cell.execution_count = [], None
        place = self.folder / "content" / path.stem
        place.mkdir()
        specs = KernelSpecManager(kernel_dirs=[str(self.folder / "kernels")])
        specs.ensure_native_kernel = False
        manager = AsyncKernelManager(kernel_name="python3", kernel_spec_manager=specs)
        # nbclient tells the kernel that nobody can answer: `input()` raises.
        NotebookClient(notebook, timeout=1200, km=manager, coalesce_streams=True).execute(
            env=self.environment, cwd=str(place), cleanup_kc=True
        )
        return "".join(o.get("text", "") for c in notebook.cells for o in c.get("outputs", []))


def files_in(folder):
    """(size, time) of every file, by its name in the folder."""
    skipped = {"__pycache__", ".git"}
    files = (p for p in folder.rglob("*") if p.is_file() and not skipped & set(p.parts))
    return {str(p.relative_to(folder)): (p.stat().st_size, p.stat().st_mtime_ns) for p in files}


@pytest.fixture(scope="module")
def rehearsal(tmp_path_factory, python, repository):
    """What the two sessions printed and left."""
    place, found = tmp_path_factory.mktemp("colab"), types.SimpleNamespace()
    drive = place / "drive"
    drive.mkdir()
    before = files_in(python.parent.parent)
    first = Machine(place / "first", drive, python, repository)
    found.first = {path.stem: first.run_all(path) for path in NOTEBOOKS}
    found.left, found.kept = files_in(first.folder / "content"), files_in(drive)
    shutil.rmtree(first.folder)
    second = Machine(place / "second", drive, python, repository)
    found.second = {path.stem: second.run_all(path) for path in NOTEBOOKS if path.stem in AGAIN}
    found.kept_after = files_in(drive)
    found.installed = before != files_in(python.parent.parent)
    yield found
    shutil.rmtree(place)


def test_all_notebooks_run_with_colabs_versions_and_its_drive(rehearsal):
    for printed in rehearsal.first.values():
        assert "Mounted at" in printed and "Python 3.13" in printed
        assert f"TensorFlow {VERSIONS['tensorflow']}, Keras {VERSIONS['keras']}" in printed
        assert "chest_xray_pneumonia/quick/seed-0 (Drive" in printed
    assert not rehearsal.installed, "a package was installed or changed"


def test_drive_holds_what_is_worth_keeping_and_nothing_is_left_elsewhere(rehearsal):
    runs, cache = "chest_xray_pneumonia/quick/seed-0/", "chest_xray_pneumonia/cache/images-sample"
    assert not [name for name in rehearsal.kept if not name.startswith((runs, cache))]
    made = [name.removeprefix(runs).split("/") for name in rehearsal.kept if name.startswith(runs)]
    trained = {path.stem for path in NOTEBOOKS} - {"06_beyond"} | {"06_beyond-trust"}
    assert {run for run, _ in made} >= trained
    names = {"run.json", "model.weights.h5", "history.csv", "predictions.csv"}
    assert {name for _, name in made} == names
    places = tuple(f"{path.stem}/" for path in NOTEBOOKS) + ("cxr_output/", "drive/")
    assert not [name for name in rehearsal.left if not name.startswith(places)]


def test_the_second_session_goes_on_from_drive_and_trains_nothing_again(rehearsal):
    for name, printed in rehearsal.second.items():
        assert f"{name}: trained before" in printed and "ms/step" not in printed
        assert "Epoch 1/" in rehearsal.first[name]
    assert "features of cnn_1" not in rehearsal.second["05_cnn1_transfer"]
    assert rehearsal.kept_after == rehearsal.kept
