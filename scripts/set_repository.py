"""Points badges, set-up cells and clone lines at a public repository: owner/name."""

import re
import sys
import tomllib
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[1]


def repository():
    """owner/name, as pyproject.toml says."""
    return tomllib.loads((PROJECT / "pyproject.toml").read_text())["tool"]["cxr"]["repository"]


def main(new=""):
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", new):
        sys.exit(f"{new!r} is not owner/name: make set-repository REPO=owner/name")
    old = re.compile(rf"{re.escape(repository())}(?![\w-])")
    for path in (p for form in ("notebooks/*.ipynb", "*.md", "*.toml") for p in PROJECT.glob(form)):
        path.write_text(old.sub(new, path.read_text("utf-8")), "utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:2])
