"""Points badges, set-up cells and the README's clone line at the public repository.

    python tests/tools/badges.py [owner/name]

The repository is named in pyproject.toml, [tool.cxr]; an argument is written there first.
"""

import re
import sys
import tomllib
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]
NAME = r"[\w.-]+/[\w.-]+"
PLACES = [  # what stands before and after owner/name, and the branch where there is one
    (
        rf"(colab\.research\.google\.com/github/|src=https://github\.com/){NAME}/blob/[\w.-]+(/)",
        r"\g<1>{repo}/blob/{branch}\g<2>",
    ),
    (rf'(--depth=1\\?", \\?"https://github\.com/){NAME}(\\?")', r"\g<1>{repo}\g<2>"),
    (rf"(git clone https://github\.com/){NAME}(\s)", r"\g<1>{repo}\g<2>"),
]  # fmt: skip


def repository():
    """(owner/name, branch) as pyproject.toml names them."""
    settings = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))
    return settings["tool"]["cxr"]["repository"], settings["tool"]["cxr"]["branch"]


def rewritten(text, repo, branch):
    for pattern, to in PLACES:
        text = re.sub(pattern, to.format(repo=repo, branch=branch), text)
    return text


def main(repo=None):
    if repo:
        if not re.fullmatch(NAME, repo):
            sys.exit(f"{repo!r} is not of the form owner/name: make badges REPO=owner/name")
        path = PROJECT / "pyproject.toml"
        text = path.read_text(encoding="utf-8")
        path.write_text(re.sub(r'(?m)^repository = ".*"', f'repository = "{repo}"', text))
    for path in [*sorted((PROJECT / "notebooks").glob("*.ipynb")), PROJECT / "README.md"]:
        text = path.read_text(encoding="utf-8")
        if (new := rewritten(text, *repository())) != text:
            path.write_text(new, encoding="utf-8")
            print(f"rewrote {path.relative_to(PROJECT)}")


if __name__ == "__main__":
    main(*sys.argv[1:2])
