"""What `make` calls: running, publishing, the study, and what they promise about installing."""

import re
import shutil
import subprocess
import sys

import keras
import kill_and_resume
import nbformat
import numpy as np
import pytest
import run_notebooks
import set_repository
import study
from packaging.requirements import Requirement

from cxr.files import PROJECT, write_json

EXTRA = """A = ""  #@param ["", "a"]
print("counter", end="\\r", flush=True)
print("A", A, "   "); assert A != "bad", "say this" """


def test_requirements_admit_what_colab_has():
    colab = dict(re.findall(r"(?m)^([\w-]+)==(.*)", (PROJECT / "tests/colab.txt").read_text()))
    lines = re.findall(r"(?m)^\w.*", (PROJECT / "requirements.txt").read_text())
    wanted = {r.name: r.specifier for r in map(Requirement, lines)}
    assert set(wanted) - set(colab) == {"nbval", "pytest-xdist", "ruff"}  # nothing reinstalled
    assert all(spec.contains(colab[name]) for name, spec in wanted.items() if name in colab)


def test_make_lists_the_commands_and_refuses_other_pythons(tmp_path, monkeypatch):
    def make(*arguments):
        command = ["make", "--no-print-directory", "-C", PROJECT, *arguments]
        done = subprocess.run(command, capture_output=True, text=True)
        return done.stderr or re.findall(r"(?m)^\S+", done.stdout)

    assert make() == ["help", "run", "test", "test-all", "results"]
    assert {"run", "publish", "study", "bench", "kill-and-resume"} < set(make("help-all"))
    (tmp_path / "sitecustomize.py").write_text("import sys; sys.version_info = (3, 10)")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert "This is Python 3.10" in make("run", f"PYTHON={sys.executable}", f"VENV={tmp_path}")


@pytest.fixture
def project(tmp_path, monkeypatch):
    shutil.copytree(PROJECT / "notebooks", tmp_path / "notebooks")
    shutil.copy(PROJECT / "pyproject.toml", tmp_path)
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(EXTRA)])
    nbformat.write(notebook, tmp_path / "notebooks" / "99_extra.ipynb")
    monkeypatch.setattr(run_notebooks, "PROJECT", tmp_path)
    monkeypatch.setattr(set_repository, "PROJECT", tmp_path)
    monkeypatch.setenv("CXR_OUT", str(tmp_path / "out"))
    for name in ("MODE", "INCEPTION_WEIGHTS", "XCEPTION_WEIGHTS"):
        monkeypatch.delenv(f"CXR_{name}")
    return tmp_path


def test_set_repository_there_and_back(project):
    before, old = {p: p.read_text() for p in project.rglob("*.*")}, set_repository.repository()
    set_repository.main("some-body/else.where")
    assert not [p for p in before if old in p.read_text()]
    set_repository.main(old)
    assert before == {p: p.read_text() for p in before}


def run(monkeypatch, *arguments):
    """Runs the extra notebook; returns the error, or whether the committed one has changed."""
    before = (path := run_notebooks.PROJECT / "notebooks" / "99_extra.ipynb").read_text()
    monkeypatch.setattr(sys, "argv", ["run", *arguments, "99_extra"])
    try:
        run_notebooks.main()
        return path.read_text() != before
    except SystemExit as error:
        return str(error) if path.read_text() == before else "changed"


def leave_run(out, name, label="chest_xray_nearest224", count=0,
              preparation="nearest neighbours", **changed):  # fmt: skip
    images = {"label": label, "count": count, "preparation": preparation}
    info = {"run": name, "mode": "full", "seed": 0, "files": [], "images": images, **changed}
    write_json(out / f"seed-{info['seed']}" / name / "run.json", info)


def test_run_fills_fields_and_leaves_the_committed_notebooks_alone(project, monkeypatch):
    assert run(monkeypatch, "--field", "A=a") is False
    notebook = nbformat.read(project / "out" / "executed" / "99_extra.ipynb", 4)
    assert notebook.cells[0].outputs[0].text == "A a    \n" and not notebook.cells[0].metadata
    assert notebook.metadata == {"language_info": {"name": "python"}}
    assert re.search("(?s)say this.*99_extra stopped", run(monkeypatch, "--field", "A=bad"))
    assert run(monkeypatch, "--field", "OTHER=1") == "2"  # argparse says what is wrong
    monkeypatch.setenv("CXR_OUT", "sample")
    assert run_notebooks.resolve_environment().is_absolute()


def test_publish_refuses_by_the_settings_and_again_by_the_runs(project, monkeypatch):
    for name, value in (("MODE", "quick"), ("SEED", 3), ("DATA", "sample"), ("DATA", ""),
                        ("DATA", project), ("INCEPTION_WEIGHTS", "random")):  # fmt: skip
        with monkeypatch.context() as patch:
            patch.setenv(f"CXR_{name}", str(value))
            assert "Nothing is published" in run(patch, "--publish")
    assert not (project / "out").exists()  # nothing was executed
    monkeypatch.setattr(run_notebooks, "WHOLE", 0)
    monkeypatch.setenv("CXR_DATA", str(project / "chest_xray_nearest224"))
    random = {"pretrained": "random weights, never trained"}
    leave_run(project / "out", "99_before")
    for fault in ({"label": "sample"}, {"count": 1}, {"preparation": "a smoothed copy"},
                  {"mode": "quick"}, random):  # fmt: skip
        leave_run(project / "out", "99_extra", **fault)
        assert "not published" in run(monkeypatch, "--publish")
        assert not (project / "results").exists()
    leave_run(project / "out", "99_extra")
    assert run(monkeypatch, "--publish") is True
    published = {path.parent for path in (project / "results").rglob("run.json")}
    folder = project / "results/chest_xray_nearest224/seed-0"
    assert published == {folder / "99_extra", folder / "99_before"}


def test_every_edit_fits_the_committed_notebooks_once_and_changes_what_it_says():
    steps = [(s.notebook, s.edits, s.until) for group in study.GROUPS.values() for s in group]
    kills = [(*item, kill_and_resume.until(item[0])) for item in kill_and_resume.EDITS.items()]
    for name, *changes in (*steps, *kills):
        path = PROJECT / "notebooks" / f"{name}.ipynb"
        run_notebooks.edited(path, {}, *changes)  # raises ValueError if not
    contrast = study.CONTRAST.replace("config.seed", "0").strip(",")
    layer = eval(contrast, {"layers": keras.layers})  # noqa: S307
    drawn = layer.get_random_transformation(np.zeros((999, 1, 1, 3)))["contrast_factor"]
    assert 0.9 <= np.min(drawn) < 0.91 and 1.09 < np.max(drawn) <= 1.1  # both ways


def test_the_study_never_builds_on_another_seed_and_says_what_it_makes_again(project, monkeypatch):
    monkeypatch.setattr(study.ModelRun, "has_weights", property(lambda r: "out" in str(r.folder)))
    monkeypatch.setattr(study, "RESULTS", project)
    leave_run(project / "label", "03_cnn1_3class", seed=7)
    ours, made = study.Study(project / "out", "label"), []
    ours.out.mkdir()
    ours.execute = lambda step, seed, **fields: leave_run(
        ours.out, made.append((step.notebook, fields)) or step.notebook, seed=seed
    )
    for name in ("03_cnn1_3class", "05_cnn1_transfer", "05_cnn1_transfer"):
        ours.run(study.Step(name), 7)  # 03 is finished: it is published; but 05 needs its weights
    assert made == [("03_cnn1_3class", {"RETRAIN": True}), ("05_cnn1_transfer", {})]
    assert "made again" in (ours.out / "study.log").read_text()
    published = []
    monkeypatch.setattr(run_notebooks, "publish_run", lambda run: published.append(run.name))
    ours.update_results()
    assert published == ["05_cnn1_transfer"]  # the published 03 stays: other runs rest on it
