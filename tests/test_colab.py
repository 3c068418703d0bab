"""A rehearsal of Colab: its Python, its versions of the packages, its Drive, Run all.

Runs where there is a Python 3.13. The packages of tests/colab.txt are installed once, into the
folder that the variable CXR_TEST_COLAB names, by default ~/.cache/cxr-colab (about 3 GB).
Each notebook is opened on its own and fetches the project as it does in Colab; git is told to
fetch it from here. Then the machine is thrown away, Drive stays, and a second session follows.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import badges
import nbformat
import pytest
import run
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

import utils

PROJECT = utils.PROJECT
NOTEBOOKS = sorted((PROJECT / "notebooks").glob("*.ipynb"))
AGAIN = ("02_cnn1_2class", "05_cnn1_transfer")  # the second session; 05 needs every kind of file
HOME_FILES = re.compile(  # what Jupyter, matplotlib, fontconfig and Keras keep in any home folder
    r"\.ipython/|\.cache/(matplotlib|fontconfig)/|\.config/matplotlib/|\.keras/keras\.json"
)
VERSIONS = dict(
    line.split("==")
    for line in (PROJECT / "tests" / "colab.txt").read_text().splitlines()
    if "==" in line
)


def has_version(python, wanted):
    """Whether this interpreter runs and is of a version: pyenv has shims that do not."""
    code = "import sys; print('%d.%d' % sys.version_info[:2])"
    try:
        done = subprocess.run([python, "-c", code], capture_output=True, text=True)
    except OSError:
        return False
    return done.stdout.strip() == wanted


def find_python():
    places = [sys.executable, shutil.which("python3.13")]
    places += sorted(Path("~/.pyenv/versions").expanduser().glob("3.13*/bin/python"))
    return next((place for place in places if place and has_version(place, "3.13")), None)


PYTHON = find_python()
pytestmark = pytest.mark.skipif(PYTHON is None, reason="no Python 3.13 here, which Colab has")


@pytest.fixture(scope="module")
def python():
    """The interpreter of an environment with Colab's versions, made once."""
    folder = Path(os.environ.get("CXR_TEST_COLAB") or "~/.cache/cxr-colab").expanduser()
    python = folder / "bin" / "python"
    code = (
        "import sys, importlib.metadata as m\n"
        "for name in sys.argv[1:]: print(name, m.version(name), sep='==')"
    )

    def found():
        if not python.exists():
            return {}
        done = subprocess.run([python, "-c", code, *VERSIONS], capture_output=True, text=True)
        return dict(line.split("==") for line in done.stdout.split())

    if found() != VERSIONS:
        subprocess.run([PYTHON, "-m", "venv", folder], check=True)
        wanted = PROJECT / "tests" / "colab.txt"
        subprocess.run([python, "-m", "pip", "install", "-q", "-r", wanted], check=True)
    assert found() == VERSIONS, f"{folder} has not Colab's versions: delete it and try again"
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
    author = ["-c", "user.name=rehearsal", "-c", "user.email=rehearsal@example.org"]
    for command in (["init", "-q"], ["add", "-A", "-f"], [*author, "commit", "-q", "-m", "now"]):
        subprocess.run(["git", *command], cwd=folder, check=True)
    return folder


def files_in(folder, but=()):
    """(size, time) of every file, by its name in the folder."""
    skip = {"__pycache__", ".git", ".pytest_cache", ".ruff_cache", ".ipynb_checkpoints", *but}
    found = {}
    for root, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if name not in skip]
        for name in names:
            facts = os.lstat(os.path.join(root, name))
            path = Path(root, name).relative_to(folder).as_posix()
            found[path] = (facts.st_size, facts.st_mtime_ns)
    return found


class Machine:
    """A Colab session: a home, /content, a folder for temporary files, and Drive once mounted."""

    def __init__(self, folder, drive, python, repository):
        self.folder, self.python = folder, python
        for name in ("content", "home", "tmp", "kernels/python3"):
            (folder / name).mkdir(parents=True)
        shutil.copytree(Path(__file__).parent / "tools" / "colab", folder / "colab")
        command = [str(python), "-m", "ipykernel_launcher", "-f", "{connection_file}"]
        kernel = {"argv": command, "display_name": "Colab", "language": "python"}
        (folder / "kernels" / "python3" / "kernel.json").write_text(json.dumps(kernel))
        public = f"https://github.com/{badges.repository()[0]}"
        self.environment = {
            "PATH": f"{python.parent}:/usr/local/bin:/usr/bin:/bin",
            "HOME": str(folder / "home"),
            "TMPDIR": str(folder / "tmp"),
            "LANG": "C.UTF-8",
            "PYTHONPATH": str(folder / "colab"),
            "CXR_TEST_CONTENT": str(folder / "content"),
            "CXR_TEST_DRIVE": str(drive),
            "GIT_CONFIG_COUNT": "1",
            "GIT_CONFIG_KEY_0": f"url.{repository.as_uri()}.insteadOf",
            "GIT_CONFIG_VALUE_0": public,
            "GIT_TERMINAL_PROMPT": "0",
        }

    def run_all(self, notebook, name):
        """Opens a notebook in a folder where nothing else lies, and runs all of it."""
        place = self.folder / "content" / name
        place.mkdir()
        nbformat.write(notebook, place / f"{name}.ipynb")
        manager = AsyncKernelManager(
            kernel_name="python3",
            kernel_spec_manager=KernelSpecManager(
                kernel_dirs=[str(self.folder / "kernels")], ensure_native_kernel=False
            ),
        )
        # nbclient tells the kernel that nobody can answer: `input()` raises. A kernel that ends
        # or restarts is an error of nbclient's own.
        NotebookClient(notebook, timeout=1200, km=manager, coalesce_streams=True).execute(
            env=self.environment, cwd=str(place), cleanup_kc=True
        )
        return printed(notebook)


def printed(notebook):
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert not [o for c in cells for o in c.outputs if o.output_type == "error"]
    return "".join(o.get("text", "") for cell in cells for o in cell.outputs)


def opened(path):
    """A notebook as a person opens it: form fields filled, outputs of the published run gone."""
    notebook = nbformat.read(path, as_version=4)
    run.set_fields(notebook, {"DATA": "phantom", "PROFILE": "smoke"})
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    return notebook


def outside(venv):
    """What must not change: the files of the installed packages, and which files lie here."""
    installed = {(name, *facts) for name, facts in files_in(venv).items()}
    return installed | set(files_in(PROJECT, but={"artifacts", ".venv"}))


class Rehearsal:
    """What the two sessions printed and left."""


@pytest.fixture(scope="module")
def rehearsal(tmp_path_factory, python, repository):
    place, said = tmp_path_factory.mktemp("colab"), Rehearsal()
    said.drive = place / "drive"
    said.drive.mkdir()
    venv = python.parent.parent
    said.outside = outside(venv)
    first = Machine(place / "first", said.drive, python, repository)
    said.first = {path.stem: first.run_all(opened(path), path.stem) for path in NOTEBOOKS}
    said.left = files_in(first.folder)
    said.kept = files_in(said.drive)
    shutil.rmtree(first.folder)
    second = Machine(place / "second", said.drive, python, repository)
    said.second = {
        path.stem: second.run_all(opened(path), path.stem)
        for path in NOTEBOOKS
        if path.stem in AGAIN
    }
    said.left_again = files_in(second.folder)
    said.kept_after = files_in(said.drive)
    said.outside_after = outside(venv)
    yield said
    shutil.rmtree(place)


def test_a_question_to_a_person_would_stop_a_notebook(tmp_path, python, repository):
    machine = Machine(tmp_path / "machine", tmp_path, python, repository)
    cells = [nbformat.v4.new_code_cell("import sys; assert 'google.colab' in sys.modules; input()")]
    with pytest.raises(CellExecutionError, match="StdinNotImplementedError"):
        machine.run_all(nbformat.v4.new_notebook(cells=cells), "asks")


def test_all_notebooks_run_with_colabs_versions_and_its_drive(rehearsal):
    assert set(rehearsal.first) == {path.stem for path in NOTEBOOKS}
    for said in rehearsal.first.values():
        assert "Mounted at /content/drive" in said
        assert f"TensorFlow {VERSIONS['tensorflow']}, Keras {VERSIONS['keras']}" in said
        assert "Python 3.13" in said and "Another session" not in said
        assert re.search(r"results  \S+/drive/MyDrive/chest_xray_pneumonia/phantom-smoke", said)


def test_drive_holds_what_is_worth_keeping_and_nothing_else(rehearsal):
    place = "chest_xray_pneumonia/"
    pack = f"{place}cache/images-v{utils.PACK_VERSION}-phantoms-v"
    stages = f"{place}phantom-smoke/seed-0/"
    others = [name for name in rehearsal.kept if not name.startswith((pack, stages))]
    assert not others
    made = [name[len(stages) :].split("/") for name in rehearsal.kept if name.startswith(stages)]
    assert {stage for stage, _ in made} >= {path.stem for path in NOTEBOOKS}
    assert {name for _, name in made} == {"run.json", *utils.STAGE_FILES}
    assert len(rehearsal.kept) - len(made) == 5  # pixels, their index, three examples


def test_the_second_session_goes_on_from_drive_and_trains_nothing_again(rehearsal):
    assert set(rehearsal.second) == set(AGAIN)
    for said in rehearsal.second.values():
        assert "is trained already (2 epochs)" in said and "min left" not in said
        assert "packing images" not in said and "Another session" not in said
    assert "min left" in rehearsal.first[AGAIN[0]] and "packing" in rehearsal.first["01_data"]
    assert "features cnn_1: not needed" in rehearsal.second["05_cnn1_transfer"]
    assert rehearsal.kept_after == rehearsal.kept


def test_nothing_is_written_elsewhere_and_nothing_is_installed(rehearsal):
    sessions = (rehearsal.left, rehearsal.first), (rehearsal.left_again, rehearsal.second)
    for left, names in sessions:
        places = tuple(f"content/{name}/cxr/" for name in names) + ("content/cxr_local/",)
        given = {f"content/{name}/{name}.ipynb" for name in names} | {"content/drive/MyDrive"}
        elsewhere = {
            name for name in left
            if not name.startswith((*places, "kernels/", "colab/")) and name not in given
            and not (name.startswith("home/") and HOME_FILES.match(name[5:]))
        }  # fmt: skip
        assert not elsewhere
    assert not rehearsal.outside_after ^ rehearsal.outside
