"""The committed notebooks: their form, and that their numbers are those of results/."""

import ast
import os
import re
import tomllib
from pathlib import Path
from unittest import mock

import nbformat
import pandas as pd
import pytest
from scipy import stats

import utils
from cxr import reference

PROJECT = utils.PROJECT
NOTEBOOKS = [(path, nbformat.read(path, 4)) for path in sorted(PROJECT.glob("notebooks/*.ipynb"))]
SEED_0 = PROJECT / "results" / "chest_xray_nearest224" / "seed-0"
PUBLISHED = r"published_runs\(|cross_test|\bruns[.[]|binomtest"  # cells that need results/ alone
MEASURED = r"|metrics_table|two_classes =|by_class|on_validation =|\.\.\. called"
REPORT_TEXT = os.environ.get("CXR_TEST_REPORT")


def sources(notebook, kind):
    return [cell.source for cell in notebook.cells if cell.cell_type == kind]


def headings(notebook):
    return re.findall(r"^(#+) (.+)", "\n".join(sources(notebook, "markdown")), re.M)


def outputs(notebook):
    return [o for cell in notebook.cells if cell.cell_type == "code" for o in cell.outputs]


def html(notebook):
    return "".join(o.data.get("text/html", "") for o in outputs(notebook) if "data" in o)


def test_cells_are_short_and_half_is_prose_in_an_outline():
    for path, notebook in NOTEBOOKS:
        code, prose = "".join(sources(notebook, "code")), "".join(sources(notebook, "markdown"))
        sizes = sorted(len(source.splitlines()) for source in sources(notebook, "code"))
        assert sizes[len(sizes) // 2] <= 6 and sizes[int(len(sizes) * 0.9)] <= 15, path.name
        assert len(prose) >= len(code), path.name
        levels = [len(signs) for signs, _ in headings(notebook)]
        assert levels[0] == 1 and levels.count(1) == 1, path.name
        steps = zip(levels, levels[1:], strict=False)
        assert all(after - before <= 1 for before, after in steps), path.name


def test_outputs_are_those_of_one_clean_full_run():
    for path, notebook in NOTEBOOKS:
        counts = [cell.execution_count for cell in notebook.cells if cell.cell_type == "code"]
        assert counts == [*range(1, len(counts) + 1)], path.name
        kinds = [(o.output_type, o.get("name")) for o in outputs(notebook)]
        assert not [kind for kind in kinds if "error" in kind or "stderr" in kind], path.name
        text = path.read_text(encoding="utf-8")
        assert len(text) < 1_000_000 and "widget-view" not in text, path.name
        assert not re.search(r"/(root|work|tmp|home)/", text), path.name
        printed = "".join(o.get("text", "") for o in outputs(notebook))
        assert "full mode, seed 0" in printed, path.name
        assert "5,216 of 5,216 training images" in printed, path.name


def test_set_up_cells_and_badges_name_this_version_repository_and_notebook():
    settings = tomllib.loads((PROJECT / "pyproject.toml").read_text())["tool"]["cxr"]
    repository, cells = settings["repository"], set()
    for path, notebook in NOTEBOOKS:
        cells.add(sources(notebook, "code")[0])
        badges = f"/{repository}/blob/main/notebooks/{path.name}"
        assert sources(notebook, "markdown")[0].count(badges) == 2, path.name
    [source] = cells
    version = f'"{utils.cxr.VERSION}"'
    assert f'VERSION, REPOSITORY = {version}, "https://github.com/{repository}"' in source


def test_links_lead_somewhere_and_every_number_is_filled_in():
    pages = [p for form in ("*.md", "data/*.md", "results/**/*.md") for p in PROJECT.glob(form)]
    for path in pages + [path for path, _ in NOTEBOOKS]:
        text = path.read_text(encoding="utf-8")
        links = re.findall(r"\]\((?!http)([^)#]+)\)", text)
        assert not [link for link in links if not (path.parent / link).exists()], path
        assert "-->?<!---->" not in text, path


def test_every_claim_is_compared_in_its_notebook_and_names_a_section():
    found, titles = [], {path.name[:2]: headings(notebook) for path, notebook in NOTEBOOKS}
    for path, notebook in NOTEBOOKS:
        source = "\n".join(sources(notebook, "code")).split("compare_with_report")[-1]
        found += [(claim, path.stem[:2]) for claim in re.findall(r'"(C\d\d)":', source)]
    assert sorted({claim for claim, _ in found}) == [f"C{number:02d}" for number in range(1, 30)]
    assert len(found) == 30 and {("C09", "01"), ("C09", "02")} < set(found)  # C09 has two parts
    for claim, (places, _) in reference.CLAIMS.items():
        for place in places.split(", "):
            assert any(h.startswith(place[3:]) for _, h in titles[place[:2]]), (claim, place)


def test_tables_and_printed_measures_are_those_of_results():
    claims = pd.read_csv(PROJECT / "results/claims.csv", keep_default_na=False, index_col="claim")
    for _, notebook in NOTEBOOKS:
        for claim, row in re.findall(r"<th>(C\d\d)</th>(.*?)</tr>", html(notebook), re.S):
            cells = [re.sub(r"&\w+;", "", c) for c in re.findall(r"<td>(.*?)</td>", row, re.S)]
            expected = claims.loc[claim, ["report", "published", "verdict"]].tolist()
            assert [cells[0], *cells[2:]] == expected, claim
    for path, notebook in NOTEBOOKS[1:]:
        run, said = utils.ModelRun(SEED_0 / path.stem), [o.get("text") for o in outputs(notebook)]
        shown = run.history[["epoch", "loss", "accuracy", "val_loss", "val_accuracy"]].round(4)
        assert shown.to_string(index=False) in "".join(filter(None, said)), path.name
        accuracy, low, high = (f"{run.info['metrics']['test'][f'accuracy{end}']:.1%}"
                               for end in ("", "_low", "_high"))  # fmt: skip
        cells = re.findall(rf"<td>(.*?)</td>\s*<td>{low} to {high}</td>", html(notebook))
        assert set(cells) == {accuracy}, path.name
        assert f"<td>{len(shown)} epochs" in html(notebook) or path.stem == "06_beyond", path.name


def test_tables_of_published_runs_are_what_their_cells_give_today(monkeypatch, capsys):
    def rows(page):
        found = re.findall("<tr.*?</tr>", page, re.S)
        return [row for row in found if not re.search("majority|nearest neighbours<", row)]

    saved = {path.stem: utils.ModelRun(SEED_0 / path.stem) for path, _ in NOTEBOOKS}
    monkeypatch.setattr(utils, "load_run", lambda config, name, *_: saved[name])
    monkeypatch.setattr(utils, "baselines", lambda *_: {})  # they need all training images
    compared = 0
    for path, notebook in NOTEBOOKS[1:]:
        predictions = saved[path.stem].predictions
        test = predictions[predictions["split"] == "test"]
        names = dict.fromkeys(("config", "images", "train", "cnn_1", "model", "NUM_CLASSES"))
        names |= {"utils": utils, "pd": pd, "stats": stats, "test": test, "test_predictions": test}
        names |= {"checkpoint": mock.Mock(is_new=False), "predictions": predictions}
        pattern = PUBLISHED + MEASURED * (path.stem != "06_beyond")
        for cell in (cell for cell in notebook.cells if cell.cell_type == "code"):
            if "plt" not in cell.source and re.search(pattern, cell.source):
                exec(cell.source, names)  # noqa: S102
                said = "".join(o.text for o in cell.outputs if o.output_type == "stream")
                assert said.endswith(capsys.readouterr().out), cell.source
                last = ast.unparse(ast.parse(cell.source).body[-1].value)
                shown = eval(last, names)  # noqa: S307
                for output in (o for o in cell.outputs if "text/html" in o.get("data", {})):
                    assert rows(output.data["text/html"]) == rows(shown._repr_html_()), cell.source
                    compared += 1
    assert compared == 19


@pytest.mark.skipif(not REPORT_TEXT, reason="CXR_TEST_REPORT does not name the report's text")
def test_quotations_are_the_reports_words():
    def plain(text):
        text = text.replace("\\", "").replace("*", "").replace("“", '"').replace("”", '"')
        return re.sub(r"\s+", " ", text).strip().lower()

    report = plain(Path(REPORT_TEXT).read_text(encoding="utf-8"))
    squeezed = report.replace(" ", "")
    for run in reference.REPORTED.values():
        counts = f"{run['parameters']:,}", f"{run['trainable']:,}"
        for said in (*counts, f"{run['accuracy']:.0%}", f"{run['epochs']}epochs"):
            assert said in squeezed, said
    (_, wrong), (missed, found) = reference.REPORTED["02_cnn1_2class"]["confusion"]
    size = "{} x {} pixels".format(*reference.REPORT["average_size"])
    assert f"({found}/{found + missed})" in report and f"({wrong}/234)" in report
    assert size in report and f"{reference.REPORT['images']} x-ray" in report
    for _, notebook in NOTEBOOKS:
        prose = "\n".join(sources(notebook, "markdown"))
        for quotation in re.findall(r"^> \*(.*)\*$", prose, re.M):
            for part in plain(quotation).split("[...]"):
                assert part.strip(" .") in report, part
