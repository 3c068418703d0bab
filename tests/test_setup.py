"""What the set-up cell says about a missing GPU, and a Kaggle notebook's folders."""

import os
import shutil
import sys
import tempfile
from pathlib import Path

import pytest

import utils


@pytest.fixture
def said(make_run, capsys, monkeypatch, tmp_path):
    """The line about the GPU that set-up prints, or None."""

    def line(profile="full", gpus=0, host=""):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(utils, "accelerators", lambda: [object()] * gpus)
            patch.setattr(utils, "device_name", lambda: "something")
            patch.setattr(utils, "KAGGLE_WORKING", tmp_path / "working")
            if host == "kaggle":
                utils.KAGGLE_WORKING.mkdir()
            if host == "colab":
                patch.setitem(sys.modules, "google.colab", None)
            capsys.readouterr()
            make_run("phantom", profile=profile)
        lines = [x for x in capsys.readouterr().out.splitlines() if x.startswith("no GPU")]
        assert len(lines) <= 1
        return lines[0] if lines else None

    return line


@pytest.mark.parametrize(
    ("host", "switch"),
    [("colab", "Runtime > Change runtime type > T4 GPU"), ("kaggle", "Settings > Accelerator")],
)
def test_a_missing_gpu_is_said_with_the_time_and_the_switch(said, host, switch):
    line = said(host=host)
    assert switch in line and "run all again" in line
    assert "an hour on 2 CPU cores (measured)" in line and "T4 (estimated)" in line


def test_without_a_switch_the_time_alone_is_said(said):
    line = said()
    assert "an hour on 2 CPU cores (measured)" in line and ">" not in line and "T4" not in line


def test_nothing_is_said_with_a_gpu_or_in_the_smoke_profile(said):
    assert said(gpus=1) is None
    assert said(profile="smoke") is None


@pytest.mark.skipif(sys.platform == "win32", reason="needs Unix permissions")
@pytest.mark.parametrize("mounted", ["{name}", "datasets/{owner}/{name}/chest_xray"])
def test_a_kaggle_notebook(tiny_set, monkeypatch, mounted, capsys):
    """Input that is really read-only, a working folder, and nothing written anywhere else."""
    owner, name = utils.KAGGLE_SET.split("/")
    with tempfile.TemporaryDirectory() as kaggle:  # pytest's own folders shut others out
        kaggle = Path(kaggle)
        data = tiny_set(kaggle / "input" / mounted.format(owner=owner, name=name))
        working = kaggle / "working"
        working.mkdir()
        for name in ("CXR_DATA", "CXR_OUT"):
            monkeypatch.delenv(name)
        monkeypatch.setattr(utils, "KAGGLE_INPUT", kaggle / "input")
        monkeypatch.setattr(utils, "KAGGLE_WORKING", working)
        given = [p for p in (kaggle / "input").rglob("*")]
        before = {p: p.stat().st_mtime_ns for p in given}
        for path in [kaggle / "input", *given]:
            path.chmod(0o555 if path.is_dir() else 0o444)
        kaggle.chmod(0o555)
        working.chmod(0o777)
        if os.geteuid() == 0:  # root writes everywhere: be somebody else for a moment
            os.seteuid(65534)
        try:
            with pytest.raises(PermissionError):
                (data / "train" / "x").touch()
            run = utils.setup(profile="full")
            assert utils.find_images(run) == (data, "folder")
            images = utils.open_images(run)
            again = utils.open_images(utils.setup(profile="full"))
        finally:
            if os.getuid() == 0:
                os.seteuid(0)
            for path in [kaggle, kaggle / "input", *given]:
                path.chmod(0o755)
        assert len(images.index) == 24 and again.fingerprint == images.fingerprint
        assert run.out == working / "artifacts" / "seed-0" and run.mirror is None
        assert before == {p: p.stat().st_mtime_ns for p in (kaggle / "input").rglob("*")}
        written = [p for p in kaggle.rglob("*") if p.is_file() and p not in before]
        assert written and all(p.is_relative_to(run.cache) for p in written)
        assert "Settings > Accelerator" in capsys.readouterr().out
        shutil.rmtree(working)
