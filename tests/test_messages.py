"""Every error of utils.py names the file or the setting, and says what to do next."""

import ast
import re

import pytest

import utils

TREE = ast.parse((utils.PROJECT / "utils.py").read_text(encoding="utf-8"))
TO_DO = re.compile(
    r"\b(say|give|set|free|delete|run|fetch|move|tick|untick|install|remove|use)\b", re.IGNORECASE
)
NAMED = re.compile(r"\{|CXR_|notebook|PUBLISHED")  # a value put in, or a setting
REASONS = ("read_image", "_fetch")  # their errors become reasons within another message


def text(node):
    """The words of a message; what is put in shows as {...}."""
    if isinstance(node, ast.JoinedStr):
        return "".join(v.value if isinstance(v, ast.Constant) else "{" + ast.unparse(v.value) + "}"
                       for v in node.values)  # fmt: skip
    if isinstance(node, ast.BinOp):
        return text(node.left) + text(node.right)
    return node.value if isinstance(node, ast.Constant) else "{" + ast.unparse(node) + "}"


def messages():
    for function in (n for n in ast.walk(TREE) if isinstance(n, ast.FunctionDef)):
        for node in ast.walk(function):
            if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
                name = ast.unparse(node.exc.func)
                if name == "CxrError" and function.name not in REASONS:
                    yield node.lineno, text(node.exc.args[0])
                inner = ("ValueError", "OSError", "zipfile.BadZipFile")  # caught where they arise
                assert name in ("CxrError", *inner), f"line {node.lineno}: raises {name}"


MESSAGES = dict(messages())


@pytest.mark.parametrize("line", MESSAGES)
def test_it_names_something_and_says_what_to_do(line):
    message = MESSAGES[line]
    said = message.replace("{_mended(", "run {_mended(")  # test_corruption reads these words
    assert TO_DO.search(re.sub(r"\{[^}]*\}", "", said)), message
    assert NAMED.search(message), message
    assert message.rstrip()[-1] in ".}", message


def test_all_errors_were_looked_at():
    source = (utils.PROJECT / "utils.py").read_text(encoding="utf-8")
    assert len(MESSAGES) + 4 == source.count("raise CxrError(") > 20


@pytest.mark.parametrize("fault", [k for k in utils._DOWNLOAD_FAULTS if k != "Timeout"])
def test_every_download_fault_says_what_to_do(fault):
    again = re.compile(r"run this cell again|fetch|make a new|make a token|put a new|install")
    assert again.search(utils._DOWNLOAD_FAULTS[fault])
