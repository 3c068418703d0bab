"""The commands, and what they promise about installing."""

import os
import shutil
import subprocess
import sys

import badges
import nbformat
import pytest
import run
from packaging.requirements import Requirement

import utils


def lines(name):
    text = (utils.PROJECT / name).read_text(encoding="utf-8")
    return [line for line in text.splitlines() if line and not line.startswith("#")]


def test_requirements_admit_what_colab_has():
    colab = dict(line.split("==") for line in lines("tests/colab.txt"))
    wanted = [Requirement(line) for line in lines("requirements.txt")]
    assert {r.name for r in wanted} - set(colab) == {"nbval", "ruff"}  # new there, not reinstalled
    for requirement in wanted:
        if requirement.name in colab:
            assert requirement.specifier.contains(colab[requirement.name]), requirement


def test_every_requirement_has_an_upper_end_or_is_a_tool():
    tools = {"ipykernel", "nbclient", "nbformat", "nbval", "psutil", "pytest", "ruff", "tqdm",
             "pillow", "packaging"}  # fmt: skip
    for requirement in map(Requirement, lines("requirements.txt")):
        assert "<" in str(requirement.specifier) or requirement.name in tools, requirement


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A copy of what the tools rewrite, with a one-cell notebook beside the real ones."""
    for name in ("notebooks", "README.md", "pyproject.toml"):
        source = utils.PROJECT / name
        copy = shutil.copytree if source.is_dir() else shutil.copy
        copy(source, tmp_path / name)
    monkeypatch.setattr(badges, "PROJECT", tmp_path)
    monkeypatch.setattr(run, "PROJECT", tmp_path)
    return tmp_path


def test_make_badges_changes_every_place_and_back(project):
    before = {p: p.read_text() for p in project.rglob("*") if p.is_file()}
    old, _ = badges.repository()
    badges.main("some-body/else.where")
    assert badges.repository()[0] == "some-body/else.where"
    for path in (project / "notebooks").glob("*.ipynb"):
        assert old not in path.read_text() and "some-body/else.where" in path.read_text()
    assert (
        "git clone https://github.com/some-body/else.where" in (project / "README.md").read_text()
    )
    badges.main(old)
    assert before == {p: p.read_text() for p in project.rglob("*") if p.is_file()}


def test_make_badges_refuses_what_is_no_repository(project):
    with pytest.raises(SystemExit, match="owner/name"):
        badges.main("https://github.com/a/b")


def add_notebook(project, name, source):
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)])
    nbformat.write(notebook, project / "notebooks" / f"{name}.ipynb")


@pytest.mark.parametrize("publish", [False, True])
def test_run_touches_the_committed_notebooks_only_when_told(project, monkeypatch, publish):
    add_notebook(project, "99_extra", "print(6 * 7)")
    out = project / "out"
    monkeypatch.setenv("CXR_OUT", str(out))
    before = (project / "notebooks" / "99_extra.ipynb").read_text()
    monkeypatch.setattr(sys, "argv", ["run", *["--publish"] * publish, "99_extra"])
    run.main()
    [cell] = nbformat.read(out / "executed" / "99_extra.ipynb", 4).cells
    assert cell.outputs[0].text == "42\n" and cell.execution_count == 1
    assert ((project / "notebooks" / "99_extra.ipynb").read_text() != before) == publish


def test_a_failing_notebook_stops_the_run_and_publishes_nothing(project, monkeypatch):
    add_notebook(project, "98_good", "print(1)")
    add_notebook(project, "99_bad", "raise ValueError('say this')")
    before = (project / "notebooks" / "98_good.ipynb").read_text()
    monkeypatch.setenv("CXR_OUT", str(project / "out"))
    monkeypatch.setattr(sys, "argv", ["run", "--publish", "98_good", "99_bad"])
    with pytest.raises(SystemExit, match="(?s)say this.*99_bad stopped"):
        run.main()
    assert (project / "notebooks" / "98_good.ipynb").read_text() == before


def test_form_fields_are_filled_and_unknown_ones_refused(project):
    source = 'TRIAL = ""  #@param ["", "a"]\nAGAIN = False  #@param\nprint(TRIAL, AGAIN)'
    add_notebook(project, "99_form", source)
    path = project / "notebooks" / "99_form.ipynb"
    notebook, _ = run.execute(path, {"TRIAL": "a", "AGAIN": "True"})
    assert notebook.cells[0].outputs[0].text == "a True\n"
    with pytest.raises(SystemExit, match="OTHER is no form field"):
        run.execute(path, {"OTHER": "1"})


def test_progress_bars_leave_one_line(project, monkeypatch):
    source = "for i in range(3):\n    print('step', i, end='\\r', flush=True)\nprint('done   ')"
    add_notebook(project, "99_bar", source)
    notebook, error = run.execute(project / "notebooks" / "99_bar.ipynb")
    assert error is None and notebook.cells[0].outputs[0].text == "done   \n"


def test_make_lists_the_commands_and_refuses_other_pythons(tmp_path):
    shown = subprocess.run(["make"], cwd=utils.PROJECT, capture_output=True, text=True, check=True)
    assert all(word in shown.stdout for word in ("run", "test", "bench", "badges", "publish"))
    old = tmp_path / "python3"
    old.write_text(
        f'#!/bin/sh\nexec {sys.executable} -c "import sys; sys.version_info = (3, 10)\n$2"\n'
    )
    old.chmod(0o755)
    venv = tmp_path / "venv"
    said = subprocess.run(
        ["make", "run", f"PYTHON={old}", f"VENV={venv}"],
        cwd=utils.PROJECT, capture_output=True, text=True, env=dict(os.environ),
    )  # fmt: skip
    assert said.returncode and "This is Python 3.10" in said.stderr and not venv.exists()
