"""The committed notebooks' form: what a person opening one relies on."""

import json
import re

import badges
import nbformat
import pytest

import utils

PATHS = sorted((utils.PROJECT / "notebooks").glob("*.ipynb"))
FIGURES = {  # the report's figures, by the notebook that reproduces them
    "01_data": (1, 2),
    "02_cnn1_2class": (3, 4, 5),
    "03_cnn1_3class": (6, 7),
    "04_inceptionv3": (8, 9, 10),
    "05_cnn1_transfer": (11, 12, 13),
}


def code(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


@pytest.fixture(params=PATHS, ids=lambda path: path.stem)
def path(request):
    return request.param


@pytest.fixture
def notebook(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    return notebook


def test_the_notebooks_are_there():
    assert set(FIGURES) == {path.stem for path in PATHS}


def test_title_cell(path, notebook):
    first = notebook.cells[0].source
    assert re.match(rf"# {path.stem[:2]} · .+\n", first)
    assert all(f"**{word}**" in first for word in ("Reads", "Writes", "Takes"))
    headings = [line for c in notebook.cells if c.cell_type == "markdown"
                for line in c.source.splitlines() if line.startswith("#")]  # fmt: skip
    assert "## Against the report" in headings


def test_badges_lead_to_this_notebook(path, notebook):
    repo, branch = badges.repository()
    place = f"{repo}/blob/{branch}/notebooks/{path.name}"
    links = re.findall(r"\]\((https://[^)]+)\)", notebook.cells[0].source)
    assert f"https://colab.research.google.com/github/{place}" in links
    assert f"https://kaggle.com/kernels/welcome?src=https://github.com/{place}" in links


def test_badges_are_what_make_badges_would_write(path):
    text = path.read_text(encoding="utf-8")
    assert badges.rewritten(text, *badges.repository()) == text
    other = badges.rewritten(text, "somebody/else", "trunk")
    assert badges.repository()[0] not in other
    assert other.count("somebody/else") == 3
    json.loads(other)


def test_set_up_cells_are_identical_and_short(notebook):
    cell = code(notebook)[0]
    first = code(nbformat.read(PATHS[0], as_version=4))[0]
    assert cell.source == first.source
    assert len(cell.source.splitlines()) <= 15
    fields = re.findall(r'^([A-Z_]+) = ""  #@param', cell.source, re.M)
    assert fields == ["DATA", "PROFILE", "SEED", "OUT", "INCEPTION_WEIGHTS"]


def test_the_reports_figures_are_there(path, notebook):
    headings = "\n".join(c.source for c in notebook.cells if c.cell_type == "markdown")
    for number in FIGURES[path.stem]:
        assert re.search(rf"^#+ Figure {number}\b", headings, re.M), number


def test_colab_opens_it_with_a_gpu(notebook):
    assert notebook.metadata["accelerator"] == "GPU"
    assert notebook.metadata["colab"]["gpuType"] == "T4"


def test_executed_in_order_on_the_real_set(notebook):
    cells = [cell for cell in code(notebook) if cell.source.strip()]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    printed = "".join(output.get("text", "") for output in cells[0].outputs)
    assert "profile full, seed 0" in printed
    assert "phantom" not in json.dumps([cell.outputs for cell in cells]).lower()
    opened = next(cell for cell in cells if "open_images(" in cell.source)
    assert "5,856 from" in "".join(output.get("text", "") for output in opened.outputs)


def test_outputs_are_clean(path, notebook):
    text = path.read_text(encoding="utf-8")
    assert len(text.encode()) < 1_000_000
    assert not re.search(r"/(root|work|tmp|home|Users)/", text)
    assert "application/vnd.jupyter.widget" not in text and "widgets" not in notebook.metadata
    for cell in code(notebook):
        for output in cell.outputs:
            assert output.output_type != "error"
            assert output.get("name") != "stderr"
            assert "\r" not in output.get("text", "")
            for kind, data in output.get("data", {}).items():
                assert kind in ("text/plain", "text/html", "text/markdown", "image/png"), kind
                assert "<script" not in str(data)


def test_some_outputs_are_compared_by_nbval(notebook):
    assert any("# NBVAL_CHECK_OUTPUT" in cell.source for cell in code(notebook))
