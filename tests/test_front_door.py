"""The notebooks' set-up cell finds the project from wherever a notebook is opened, or says how. It
runs in a Python of its own, with /content, /kaggle and a stand-in for the project in a temporary
folder. No test reaches a network: git's proxy is closed, or git goes elsewhere."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

NOTEBOOK = min((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))
SETUP = next(c.source for c in nbformat.read(NOTEBOOK, 4).cells if c.cell_type == "code")
VERSION, ADDRESS = re.search(r'VERSION, REPOSITORY = "(.+)", "(.+)"', SETUP).groups()
OWNER, NAME = ADDRESS.split("/")[-2:]
KEPT, MARK = f"{OWNER}-{NAME}", "cxr/reported.json"  # where a clone is kept

SECRET = "https://me:s3cret@example.invalid/x"  # noqa: S105
COLAB = """
import os, sys, types
def mount(path):
    print("Drive asks")
    os.rename("{root}/unmounted", path)  # which is not there where Drive is refused
sys.modules["google.colab"] = types.SimpleNamespace(drive=types.SimpleNamespace(mount=mount))
"""
NO_NETWORK = "http.proxy", "http://127.0.0.1:9"  # a setting of git's; nobody answers at this port
WAY_OUT = {
    "colab": "drag the project's zip into Files at the left, put the project into Drive",
    "kaggle": "turn on Settings > Internet, Add Input > Upload the project's zip",
    "own": "put this notebook back into the project's notebooks/, install git",
}


def make_project(folder, version=VERSION):  # a stand-in, whose `utils` says where it lies
    (folder / "cxr").mkdir(parents=True)
    (folder / "notebooks").mkdir()
    (folder / MARK).touch()
    (folder / "cxr/__init__.py").write_text(f'VERSION = "{version}"\n')
    setup = "def setup(*fields): print('taken', __file__, *map(repr, fields), sep='|')\n"
    (folder / "utils.py").write_text(setup)
    return folder


def make_foreign(folder):  # its `utils` must not be imported
    (folder / "cxr").mkdir(parents=True)
    (folder / "cxr/__init__.py").touch()  # somebody else's package
    (folder / "utils.py").write_text("raise SystemExit('a foreign utils was imported')\n")
    return folder


def make_repository(folder):
    for command in ("init", "add .", "-c user.name=x -c user.email=x@x commit -m x"):
        subprocess.run(["git", *command.split()], cwd=folder, check=True, capture_output=True)
    return f"url.{folder.as_uri()}.insteadOf", ADDRESS  # a setting of git's: it answers there


class World:
    """A machine on which the cell is run: `own`, `colab` or `kaggle`. All of it is in `root`; the
    kernel works in `here` and does not look at `far`. `git` is a setting of git's."""

    def __init__(self, root, kind="own"):
        self.root, self.kind, self.git = root, kind, NO_NETWORK
        here = {"own": "home/notes", "colab": "content", "kaggle": "kaggle/working"}[kind]
        self.here, self.far, self.tmp = root / here, root / "far" / "away", root / "tmp"
        self.here.mkdir(parents=True)
        self.tmp.mkdir()
        self.path = os.environ["PATH"]

    def run(self, **fields):
        """Runs the cell with form fields filled; nothing temporary is left."""
        source = re.sub('"(?=/(content|kaggle))', f'"{self.root}', SETUP)
        for name, value in fields.items():
            source, count = re.subn(rf'^{name} = ""', f"{name} = {value!r}", source, flags=re.M)
            assert count == 1
        if self.kind == "colab":
            source = COLAB.format(root=self.root) + source
        env = {"PATH": self.path, "TMPDIR": str(self.tmp), "HOME": str(self.root / "home")}
        env |= {"GIT_CONFIG_COUNT": "1", "PYTHONDONTWRITEBYTECODE": "1"}
        env["GIT_CONFIG_KEY_0"], env["GIT_CONFIG_VALUE_0"] = self.git
        command = [sys.executable, "-S", "-c", source]
        done = subprocess.run(command, cwd=self.here, env=env, capture_output=True, text=True)
        assert not [*self.tmp.iterdir()], "temporary files are left"
        return done

    def finds(self, folder, **fields):
        """Runs the cell, which must take the project in this folder; returns what it printed."""
        done = self.run(**fields)
        assert done.returncode == 0, done.stderr
        printed, taken = done.stdout.split("taken|")
        given = [fields.get(name, "") for name in ("DATA", "MODE", "SEED", "OUT")]
        assert taken.strip().split("|") == [f"{folder.resolve()}/utils.py", *map(repr, given)]
        return printed

    def explains(self, *expected, **fields):
        """As `fails`, with an error that says all of this and the way out on this machine."""
        files = {*self.here.rglob("*")}
        message = self.fails(**fields)
        assert all(text in message for text in (*expected, "PROJECT"))
        assert [kind for kind, way in WAY_OUT.items() if way in message] == [self.kind]
        assert {*self.here.rglob("*")} == files, "files are left"
        return message

    def fails(self, **fields):
        """Runs the cell, which must end in one error; returns its text."""
        done = self.run(**fields)
        assert done.returncode == 1 and "taken" not in done.stdout
        assert done.stderr.count("Traceback") == 1 and "run this cell again" in done.stderr
        return done.stderr.split("\nRuntimeError: ")[1]


@pytest.fixture
def world(tmp_path_factory):
    """Makes a machine of its own at each call."""
    return lambda kind="own": World(tmp_path_factory.mktemp(kind), kind)


def test_cloned_once_where_only_the_notebook_is(world):
    """The badge on Colab, Kaggle with internet, a single .ipynb at home."""
    for kind in WAY_OUT:
        machine = world(kind)
        machine.git = make_repository(make_project(machine.far / "project"))
        assert machine.finds(machine.here / KEPT, SEED="7", MODE="quick") == ""  # Drive not asked
        machine.git, machine.path = NO_NETWORK, "/nowhere"
        machine.finds(machine.here / KEPT)


def test_no_network_or_no_git_or_no_drive(world):
    for kind in WAY_OUT:
        machine = world(kind)
        reasons = [f"\n  {ADDRESS}: ", "127.0.0.1", str(machine.here), "\n  .: not there"]
        message = machine.explains(*reasons)
        assert ("MyDrive: [Errno 2]" in message) == (kind == "colab")
    machine.path = "/nowhere"
    machine.explains("'git'")


def test_project_beside_the_notebook(world):
    """The notebook lies in its own folder, at the top, beside the project, or in a sibling."""
    for place in ("notebooks", ".", "..", "notes"):
        machine = world()
        project = make_project(machine.root / "home/anything")
        machine.here = machine.here if place == "notes" else project / place
        if place in ("notebooks", "."):  # the nearest counts
            make_project(machine.root / "home")
        if place != ".":  # the project's own utils counts, not one beside the notebook
            shutil.copy(make_foreign(machine.far) / "utils.py", machine.here)
        machine.finds(project)


def test_an_uploaded_zip(world):
    machine = world("colab")
    (machine.here / "broken.zip").write_bytes(b"PK")
    shutil.make_archive(machine.here / "another", "zip", make_foreign(machine.far / "another"))
    make_project(machine.far / "main" / f"{NAME}-main")  # GitHub's zips have a folder on top
    shutil.make_archive(machine.here / f"{NAME}-main", "zip", machine.far / "main")
    for _ in range(2):
        machine.finds(machine.here / f"{NAME}-main")
    assert len([*machine.here.iterdir()]) == 4  # the zips, and this project


def test_the_field_project(world):
    """Where PROJECT says, and nowhere else, however near another copy is; without passwords."""
    for value, kept in {"~": "", "../it": "", "~/x.zip": "home-x", SECRET: "example.invalid-x",
                        "https://example.com/me/x.git": "me-x"}.items():  # fmt: skip
        home = (machine := world()).root / "home"
        project = make_project(home / "it")
        make_project(machine.here / "nearer")
        shutil.make_archive(home / "x", "zip", home, "it")
        machine.git = make_repository(project)[0], value  # it answers at this address
        for _ in range(2):
            machine.finds(machine.here / kept if kept else project, PROJECT=f" {value} ")
            machine.git = NO_NETWORK
    assert ADDRESS not in machine.explains("\n  /no/folder: not there", PROJECT="/no/folder")
    assert "s3cret" not in machine.explains("example.invalid", PROJECT=SECRET)


def test_anywhere_in_drive(world):
    for field in ("", "{}/content/drive/MyDrive/a/b/c"):
        machine = world("colab")
        make_project(machine.root / "unmounted/MyDrive/a/b/c")
        make_foreign(machine.root / "unmounted/MyDrive/d")
        found = machine.root / "content/drive/MyDrive/a/b/c"
        assert machine.finds(found, PROJECT=field.format(machine.root)) == "Drive asks\n"


def test_kaggle_with_the_project_as_an_input(world):
    for place in ("x", "datasets/me/x/KAGGLE_Project"):
        machine = world("kaggle")
        make_foreign(machine.root / "kaggle/input/a")
        machine.finds(make_project(machine.root / "kaggle/input" / place))


def test_versions_that_differ(world):
    for cloned in (True, False):
        machine = world()
        project = make_project(machine.far if cloned else machine.root / "home/x", f"{VERSION}1")
        machine.git = make_repository(project) if cloned else NO_NETWORK
        message = machine.fails()
        assert f"ersion {VERSION}" in message
        assert str(machine.here / KEPT if cloned else project) in message
