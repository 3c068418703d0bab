"""What the names of folders and files say: class, series, patient."""

import os
import re
from pathlib import Path

import pandas as pd

from cxr.files import UserError

CLASS_NAMES = {2: ("normal", "pneumonia"), 3: ("normal", "bacterial", "viral")}
SOURCE_SPLITS, KINDS = ("train", "val", "test"), ("NORMAL", "PNEUMONIA")  # Kaggle's folders
_PNEUMONIA_NAME = re.compile(r"person(\d+)_(bacteria|virus)_\d+(?:_\d+)?\.(?:jpe?g|png)", re.I)
_NORMAL_NAME = re.compile(r"(NORMAL2-IM|IM)-(\d+)-\d+(?:-\d+)?\.(?:jpe?g|png)", re.I)


def parse_name(kind, name):
    """(class, series, number) of a file name in a folder NORMAL or PNEUMONIA, else None."""
    if kind == "NORMAL" and (match := _NORMAL_NAME.fullmatch(name)):
        return "normal", match[1].upper(), int(match[2])
    if kind == "PNEUMONIA" and (match := _PNEUMONIA_NAME.fullmatch(name)):
        series = match[2].lower()
        return {"bacteria": "bacterial", "virus": "viral"}[series], series, int(match[1])
    return None


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
    root, rows, problems = Path(root), [], []
    for split in SOURCE_SPLITS:
        for kind in KINDS:
            try:
                names = sorted(n for n in os.listdir(root / split / kind) if n[0] != ".")
            except OSError as error:
                problems.append(f"{split}/{kind}: {error.strerror}")
                continue
            if not names:
                problems.append(f"{split}/{kind}: empty folder")
            for name in names:
                parsed = parse_name(kind, name)
                if parsed is None:
                    problems.append(f"{split}/{kind}/{name}: not a name of this data set")
                    continue
                class3, series, number = parsed
                class2 = "normal" if class3 == "normal" else "pneumonia"
                rows.append(
                    (f"{split}/{kind}/{name}", split, class2, class3, series, f"{series}-{number}")
                )
    if problems:
        raise UserError(
            f"{root} is not the data set in Kaggle's layout:\n"
            + "\n".join(f"  {line}" for line in problems)
            + "\nFetch it again as data/README.md says, or move what does not belong there."
        )
    columns = ["file", "source_split", "class2", "class3", "series", "patient"]
    return pd.DataFrame(sorted(rows), columns=columns)
