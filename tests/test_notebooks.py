"""The committed notebooks: their form, their terms, and that numbers are those of results/."""

import json
import os
import re
import tomllib
from pathlib import Path

import nbformat
import pandas as pd
import pytest

import cxr
import utils

PROJECT = utils.PROJECT
PATHS = sorted((PROJECT / "notebooks").glob("*.ipynb"))
SEED_0 = PROJECT / "results" / "chest_xray_nearest224" / "seed-0"
WRONG_TERMS = re.compile(
    r"yardstick|\bledger\b|\bphantom|smoke profile|past the stop|against the report|left in peace|"
    r"least to most|one more run|\bsoak\b|\bpacked\b|calls it ill|Grad-CAM|"
    r"with whom|the report's trials|what would it take|repartition(?!.*validation and test)", re.I
)  # fmt: skip
REPORT = os.environ.get("CXR_TEST_REPORT")


@pytest.fixture(params=PATHS, ids=lambda path: path.stem)
def notebook(request):
    found = nbformat.read(request.param, as_version=4)
    found.path = request.param
    found.code = [cell for cell in found.cells if cell.cell_type == "code"]
    found.prose = [cell.source for cell in found.cells if cell.cell_type == "markdown"]
    found.outputs = [output for cell in found.code for output in cell.outputs]
    return found


def printed(notebook):
    data = [o.get("data", {}) for o in notebook.outputs]
    return "".join(o.get("text", "") for o in notebook.outputs) + "".join(
        d.get("text/plain", "") for d in data
    )


def without_quotations(text):
    return re.sub(r"^> .*$", "", text, flags=re.M)


def test_cells_are_short_and_half_is_prose(notebook):
    sizes = sorted(len(cell.source.splitlines()) for cell in notebook.code)
    assert sizes[len(sizes) // 2] <= 6 and sizes[int(len(sizes) * 0.9)] <= 15
    assert not [line for c in notebook.code for line in c.source.splitlines() if len(line) > 100]
    prose = sum(map(len, notebook.prose))
    assert prose / (prose + sum(len(cell.source) for cell in notebook.code)) >= 0.5


def test_headings_make_an_outline(notebook):
    levels = [len(h) for h in re.findall(r"^(#+) ", "\n".join(notebook.prose), re.M)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after - before <= 1 for before, after in zip(levels, levels[1:], strict=False))


def test_outputs_are_those_of_one_clean_full_run(notebook):
    assert [cell.execution_count for cell in notebook.code] == [*range(1, len(notebook.code) + 1)]
    assert not [
        o for o in notebook.outputs if o.output_type == "error" or o.get("name") == "stderr"
    ]
    text = notebook.path.read_text(encoding="utf-8")
    assert len(text) < 1_000_000 and "widget-view" not in text
    assert not re.search(r"/(root|work|tmp|home)/", text)
    assert "full mode, seed 0" in printed(notebook)
    assert "5,216 of 5,216 training images" in printed(notebook)


def test_set_up_cells_are_alike_and_name_this_version_and_repository():
    cells = {
        next(c.source for c in nbformat.read(p, 4).cells if c.cell_type == "code") for p in PATHS
    }
    assert len(cells) == 1
    [source] = cells
    repository = tomllib.loads((PROJECT / "pyproject.toml").read_text())["tool"]["cxr"][
        "repository"
    ]
    assert f'VERSION, REPOSITORY = "{cxr.VERSION}", "https://github.com/{repository}"' in source


def test_badges_open_this_notebook(notebook):
    repository = tomllib.loads((PROJECT / "pyproject.toml").read_text())["tool"]["cxr"][
        "repository"
    ]
    address = f"github.com/{repository}/blob/main/notebooks/{notebook.path.name}"
    assert notebook.prose[0].count(address.removeprefix("github.com")) == 2


@pytest.mark.parametrize("name", ["README.md", "data/README.md", *(p.name for p in PATHS)])
def test_words_are_the_fields(name):
    path = PROJECT / ("notebooks" if name.endswith("ipynb") else "") / name
    text = path.read_text(encoding="utf-8")
    if name.endswith("ipynb"):
        text = "\n".join("".join(c["source"]) for c in json.loads(text)["cells"])
    assert not WRONG_TERMS.findall(without_quotations(text))


@pytest.mark.parametrize("path", [*PATHS, PROJECT / "README.md", PROJECT / "data" / "README.md"],
                         ids=lambda path: path.name)  # fmt: skip
def test_links_lead_somewhere_and_every_number_is_filled_in(path):
    text = path.read_text(encoding="utf-8")
    for link in re.findall(r"\]\((?!http)([^)#]+)\)", text):
        assert (path.parent / link).exists(), link
    assert "-->?<!---->" not in text


def test_every_claim_is_compared_in_its_notebook():
    found = {}
    for path in PATHS:
        source = "\n".join(c.source for c in nbformat.read(path, 4).cells if c.cell_type == "code")
        for claim in re.findall(r'"(C\d\d)":', source.split("compare_with_report")[-1]):
            found.setdefault(claim, []).append(path.stem[:2])
    assert sorted(found) == [f"C{number:02d}" for number in range(1, 30)]
    assert {claim: where for claim, where in found.items() if len(where) > 1} == {
        "C09": ["01", "02"]
    }


def test_tables_are_those_of_results(notebook):
    claims = pd.read_csv(PROJECT / "results" / "claims.csv", keep_default_na=False).set_index(
        "claim"
    )
    html = "".join(
        o.data["text/html"] for o in notebook.outputs if "text/html" in o.get("data", {})
    )
    for claim in re.findall(r"<th>(C\d\d)</th>", html):
        row = re.search(rf"<th>{claim}</th>(.*?)</tr>", html, re.S)[1]
        cells = [re.sub(r"&\w+;", "", c) for c in re.findall(r"<td>(.*?)</td>", row, re.S)]
        assert cells[0] == claims.loc[claim, "report"] and cells[3] == claims.loc[claim, "verdict"]
        assert cells[2] == claims.loc[claim, "published"]


@pytest.mark.parametrize("path", PATHS[1:], ids=lambda path: path.stem)
def test_printed_measures_are_those_of_the_published_run(path):
    info = json.loads((SEED_0 / path.stem / "run.json").read_text(encoding="utf-8"))
    history = pd.read_csv(SEED_0 / path.stem / "history.csv")
    cells = nbformat.read(path, 4).cells
    html = "".join(o.data["text/html"] for c in cells if c.cell_type == "code" for o in c.outputs
                   if "text/html" in o.get("data", {}))  # fmt: skip
    assert f"{info['metrics']['test']['accuracy']:.1%}" in html
    assert f"<td>{len(history)} epochs" in html


@pytest.mark.skipif(not REPORT, reason="CXR_TEST_REPORT does not name the report's text")
def test_quotations_are_the_reports_words(notebook):
    def plain(text):
        text = text.replace("\\", "").replace("*", "").replace("“", '"').replace("”", '"')
        return re.sub(r"\s+", " ", text).strip().lower()

    report = plain(Path(REPORT).read_text(encoding="utf-8"))
    for quotation in re.findall(r"^> \*(.*)\*$", "\n".join(notebook.prose), re.M):
        for part in plain(quotation).split("[...]"):
            assert part.strip(" .") in report, part
