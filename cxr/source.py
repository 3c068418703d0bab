"""Finding the data set (a named folder, the sample, Kaggle's input, data/chest_xray, a download),
and what the names of its folders and files say: class, series, patient."""

import re
import sys
from itertools import product
from pathlib import Path

import pandas as pd

from cxr.files import PROJECT, UserError, checksum

KAGGLE_NAME = "paultimothymooney/chest-xray-pneumonia"
KAGGLE_HANDLE = f"{KAGGLE_NAME}/versions/2"
KAGGLE_INPUT = Path("/kaggle/input")
LOCAL_SET, SAMPLE = PROJECT / "data" / "chest_xray", PROJECT / "data" / "sample"
CLASS_NAMES = {2: ("normal", "pneumonia"), 3: ("normal", "bacterial", "viral")}
SOURCE_SPLITS = ("train", "val", "test")  # Kaggle's folders, and in each of them:
_NAMES = {
    "NORMAL": r"(?P<series>NORMAL2-IM|IM)-(?P<n>\d+)-\d+(-\d+)?\.(jpe?g|png)",
    "PNEUMONIA": r"person(?P<n>\d+)_(?P<series>bacteria|virus)_\d+(_\d+)?\.(jpe?g|png)",
}
_HINTS = {  # HTTP status, or kind of exception, the special ones first: requests' are OSErrors too
    401: "Kaggle refuses the token found here. None is needed: remove ~/.kaggle/kaggle.json, "
    "KAGGLE_USERNAME and KAGGLE_KEY (in Colab also under Secrets)",
    403: f"open https://www.kaggle.com/datasets/{KAGGLE_NAME}, sign in and accept its terms",
    "ConnectionError": "no network (in a Kaggle notebook: Settings, Internet on)",
    "RequestException": "the network or Kaggle fails at the moment; what has arrived is kept",
    "OSError": "look at the disk: 5 GB are needed. KAGGLEHUB_CACHE can name a folder on another",
    "Exception": "try again later, or fetch it by hand (data/README.md)",
}


def find_root(folder):
    """The folder that directly holds train/, val/ and test/, or None. Kaggle's archive nests them
    in chest_xray/, with a second copy in chest_xray/chest_xray/, which is left alone."""
    roots = [Path(folder, *["chest_xray"] * depth) for depth in range(3)]
    return next((r for r in roots if any((r / split).is_dir() for split in SOURCE_SPLITS)), None)


def find_images(data, download=True):
    """Finds the data set that `data` (`Config.data`) names, and no other. Returns (root, source):
    the folder that holds train/, val/ and test/, None where only the download is left and not
    wanted; and "sample", "folder" or "kaggle". UserError lists what was tried, and ways out."""
    if data == "sample":
        check_sample()
        return SAMPLE, "sample"
    mounted, tried = KAGGLE_INPUT / Path(KAGGLE_NAME).name, []
    looked = (mounted, KAGGLE_INPUT / "datasets" / KAGGLE_NAME, LOCAL_SET)
    for folder in {"": looked, "kaggle": ()}.get(data, (Path(data).expanduser(),)):
        if root := find_root(folder):
            fetched = not data and "google.colab" in sys.modules and KAGGLE_INPUT in folder.parents
            return root, "kaggle" if fetched else "folder"  # Colab mounts kagglehub's downloads
        reason = "holds no train, val or test" if folder.is_dir() else "no such folder"
        tried.append(f"{folder}: {reason}")
    if data in ("", "kaggle"):
        if not download:
            return None, "kaggle"
        print(f"Downloading {KAGGLE_HANDLE} with kagglehub (about 2.3 GB, no login needed)")
        try:
            import kagglehub

            folder = kagglehub.dataset_download(KAGGLE_HANDLE)
            if root := find_root(folder):
                return root, "kaggle"
            tried.append(f"kagglehub's {folder}: holds no train, val or test. Delete it, or where "
                         "Colab mounted it, set DISABLE_COLAB_CACHE=1; try again")  # fmt: skip
        except Exception as error:  # network, quota, disk. Its text can hold a token: only its kind
            kinds = [kind.__name__ for kind in type(error).__mro__]
            status = getattr(getattr(error, "response", None), "status_code", None)
            hint = next(_HINTS[key] for key in (status, *kinds) if key in _HINTS)
            tried.append(f"download with kagglehub: {kinds[0]}, HTTP status {status}: {hint}")
    raise UserError(
        "No chest X-ray images found. Tried:\n  " + "\n  ".join(tried) + "\nWays out:\n"
        "  - set DATA (CXR_DATA) to the folder that holds train, val and test;\n"
        "  - fetch the data set by hand into data/chest_xray, as data/README.md says;\n"
        "  - in a Kaggle notebook: Add Input, search chest-xray-pneumonia;\n"
        "  - to see the notebooks on the real X-rays that come with the project: MODE = quick."
    )


def check_sample():
    """UserError, which names every file, where data/sample is not what its manifest lists."""
    found = {p.relative_to(SAMPLE).as_posix(): checksum(p) for p in SAMPLE.glob("*/*/[!.]*")}
    try:
        expected = pd.read_csv(SAMPLE / "manifest.csv", index_col="file")["sha256"].to_dict()
    except (OSError, ValueError, KeyError):
        found, expected = {}, {"manifest.csv": ""}
    if wrong := sorted({name for name, _ in found.items() ^ expected.items()}):
        bad = (f"{x}: {'missing or damaged' if x in expected else 'not part of it'}" for x in wrong)
        lines = f"data/sample is not as published ({len(wrong)}):", *bad
        raise UserError("\n  ".join(lines) + "\nRun git checkout data/sample, or fetch it anew.")


def parse_name(kind, name):
    """(class, series, number) of a file name in a folder NORMAL or PNEUMONIA, else None."""
    if not (match := re.fullmatch(_NAMES.get(kind, ""), name, re.I)):
        return None
    series = match["series"].upper() if kind == "NORMAL" else match["series"].lower()
    cause = {"bacteria": "bacterial", "virus": "viral"}.get(series, "normal")
    return cause, series, int(match["n"])


def read_metadata(root):
    """One row per image, from names alone: a DataFrame of strings, sorted by file (below `root`),
    source_split (Kaggle's folder), class2 and class3 (of CLASS_NAMES), series (bacteria, virus, IM
    or NORMAL2-IM) and patient: series and number, because each series counts anew. UserError lists
    all folders without images and all names of an unknown form."""
    rows, problems = [], []
    for split, kind in product(SOURCE_SPLITS, _NAMES):
        names = sorted(path.name for path in Path(root, split, kind).glob("[!.]*"))
        problems += [] if names else [f"{split}/{kind}: missing or empty folder"]
        parsed = [(f"{split}/{kind}/{name}", parse_name(kind, name)) for name in names]
        problems += [f"{file}: not a name of this data set" for file, found in parsed if not found]
        rows += [(file, split, kind.lower(), *found) for file, found in parsed if found]
    if problems:
        lines = f"{root} is not the data set in Kaggle's layout:", *problems
        raise UserError("\n  ".join(lines) + "\nFetch it again (data/README.md), or mend this.")
    columns = ["file", "source_split", "class2", "class3", "series", "patient"]
    table = pd.DataFrame(sorted(rows), columns=columns)  # of a patient the number, so far
    return table.assign(patient=table["series"] + "-" + table["patient"].astype(str))
