"""What the names of folders and files say: class, series, patient."""

import os
import re
from itertools import product
from pathlib import Path

import pandas as pd

from cxr.files import UserError

CLASS_NAMES = {2: ("normal", "pneumonia"), 3: ("normal", "bacterial", "viral")}
SOURCE_SPLITS, KINDS = ("train", "val", "test"), ("NORMAL", "PNEUMONIA")  # Kaggle's folders
_NAMES = {
    "NORMAL": r"(?P<series>NORMAL2-IM|IM)-(?P<n>\d+)-\d+(-\d+)?\.(jpe?g|png)",
    "PNEUMONIA": r"person(?P<n>\d+)_(?P<series>bacteria|virus)_\d+(_\d+)?\.(jpe?g|png)",
}
_CAUSES = {"bacteria": "bacterial", "virus": "viral"}


def parse_name(kind, name):
    """(class, series, number) of a file name in a folder NORMAL or PNEUMONIA, else None."""
    if not (kind in _NAMES and (match := re.fullmatch(_NAMES[kind], name, re.I))):
        return None
    series = match["series"].upper() if kind == "NORMAL" else match["series"].lower()
    return _CAUSES.get(series, "normal"), series, int(match["n"])


def read_metadata(root):
    """One row per image, from folder and file names alone.

    Returns a DataFrame, sorted by `file`, of strings: file (relative to `root`, with slashes),
    source_split (Kaggle's folder), class2 and class3 (names from CLASS_NAMES), series (bacteria,
    virus, IM or NORMAL2-IM) and patient: series and number, because each series counts anew.
    UserError lists all folders that are missing or empty and all names of an unknown form.
    """
    rows, problems = [], []
    for split, kind in product(SOURCE_SPLITS, KINDS):
        try:
            names = [n for n in os.listdir(Path(root, split, kind)) if n[0] != "."]
            problems += [] if names else [f"{split}/{kind}: empty folder"]
        except OSError as error:
            names, problems = [], [*problems, f"{split}/{kind}: {error.strerror}"]
        for name in sorted(names):
            file = f"{split}/{kind}/{name}"
            if parsed := parse_name(kind, name):
                class3, series, number = parsed
                rows.append((file, split, kind.lower(), class3, series, f"{series}-{number}"))
            else:
                problems.append(f"{file}: not a name of this data set")
    if problems:
        raise UserError("\n  ".join([f"{root} is not the data set in Kaggle's layout:", *problems])
                        + "\nFetch it again as data/README.md says, or move what does not belong "
                        "there.")  # fmt: skip
    columns = ["file", "source_split", "class2", "class3", "series", "patient"]
    return pd.DataFrame(sorted(rows), columns=columns)
