"""What the names of folders and files say: class, series, patient."""

import os
import re
from pathlib import Path

import pandas as pd

from cxr.files import UserError

CLASS_NAMES = {2: ("normal", "pneumonia"), 3: ("normal", "bacterial", "viral")}
SOURCE_SPLITS, KINDS = ("train", "val", "test"), ("NORMAL", "PNEUMONIA")  # Kaggle's folders
_NAMES = {
    "NORMAL": re.compile(r"(?P<series>NORMAL2-IM|IM)-(?P<n>\d+)-\d+(-\d+)?\.(jpe?g|png)", re.I),
    "PNEUMONIA": re.compile(
        r"person(?P<n>\d+)_(?P<series>bacteria|virus)_\d+(_\d+)?\.(jpe?g|png)", re.I
    ),
}
_CAUSES = {"bacteria": "bacterial", "virus": "viral"}


def parse_name(kind, name):
    """(class, series, number) of a file name in a folder NORMAL or PNEUMONIA, else None."""
    if not (kind in _NAMES and (match := _NAMES[kind].fullmatch(name))):
        return None
    series = match["series"].upper() if kind == "NORMAL" else match["series"].lower()
    return _CAUSES.get(series, "normal"), series, int(match["n"])


def read_metadata(root):
    """One row per image, from folder and file names alone.

    Args:
        root: the folder that holds train/, val/ and test/.

    Returns:
        DataFrame, sorted by `file`, of strings: file (relative, with slashes), source_split
        (Kaggle's folder), class2 and class3 (names from CLASS_NAMES), series (bacteria, virus,
        IM or NORMAL2-IM) and patient: series and number, because each series counts anew.

    Raises:
        UserError: folders that are missing or empty and names of an unknown form, all at once.
    """
    rows, problems = [], []
    for split, kind in ((split, kind) for split in SOURCE_SPLITS for kind in KINDS):
        try:
            names = [n for n in os.listdir(Path(root) / split / kind) if n[0] != "."]
        except OSError as error:
            problems.append(f"{split}/{kind}: {error.strerror}")
            continue
        if not names:
            problems.append(f"{split}/{kind}: empty folder")
        for name in sorted(names):
            if (parsed := parse_name(kind, name)) is None:
                problems.append(f"{split}/{kind}/{name}: not a name of this data set")
                continue
            class3, series, number = parsed
            rows.append((f"{split}/{kind}/{name}", split, kind.lower(), class3, series,
                         f"{series}-{number}"))  # fmt: skip
    if problems:
        raise UserError(f"{root} is not the data set in Kaggle's layout:\n  "
                        + "\n  ".join(problems) + "\nFetch it again as data/README.md says, or "
                        "move what does not belong there.")  # fmt: skip
    columns = ["file", "source_split", "class2", "class3", "series", "patient"]
    return pd.DataFrame(sorted(rows), columns=columns)
