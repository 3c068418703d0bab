"""Finding the data set: a named folder, the sample, Kaggle's input, data/chest_xray, a download."""

from pathlib import Path

import pandas as pd

from cxr.files import PROJECT, UserError, checksum

KAGGLE_NAME = "paultimothymooney/chest-xray-pneumonia"
KAGGLE_HANDLE = f"{KAGGLE_NAME}/versions/2"
KAGGLE_INPUT = Path("/kaggle/input")
LOCAL_SET = PROJECT / "data" / "chest_xray"
SAMPLE = PROJECT / "data" / "sample"
_DOWNLOAD_HINTS = {  # HTTP status, or kind of exception
    401: "Kaggle refuses the token found here. None is needed: remove ~/.kaggle/kaggle.json, "
    "KAGGLE_USERNAME and KAGGLE_KEY (in Colab also under Secrets)",
    403: f"open https://www.kaggle.com/datasets/{KAGGLE_NAME}, sign in and accept its terms",
    429: "too many requests: wait a quarter of an hour",
    "ConnectionError": "no network, or it broke off (in a Kaggle notebook: Settings, Internet on); "
    "what has arrived is kept",
    "Timeout": "the network is too slow at the moment; what has arrived is kept",
    "DataCorruptionError": "the download does not match its checksum and was deleted",
    "OSError": "look at the disk: the download takes 5 GB, unpacked. KAGGLEHUB_CACHE can name a "
    "folder on a larger one",
}


def find_root(folder):
    """The folder that directly holds train/, val/ and test/, or None.

    Kaggle's archive nests them in chest_xray/, with a second copy in chest_xray/chest_xray/
    and a __MACOSX folder of leftovers; both are left alone.
    """
    folder = Path(folder)
    for root in (folder, folder / "chest_xray", folder / "chest_xray" / "chest_xray"):
        if any((root / split).is_dir() for split in ("train", "val", "test")):
            return root
    return None


def find_images(data, download=True):
    """Finds the data set. Only the sample and a named folder are ever taken without being whole.

    Args:
        data: the setting CXR_DATA: a folder, "sample", "kaggle", or "" (look, else Kaggle).
        download: False to stop before the download.

    Returns:
        (root, source): the folder that holds train/, val/ and test/, or None where only the
        download is left; and "sample", "folder" or "kaggle" (version 2 as downloaded).

    Raises:
        UserError: nothing was found; the message lists what was tried and the ways out.
    """
    if data == "sample":
        check_sample()
        return SAMPLE, "sample"
    tried = []
    if data not in ("", "kaggle"):
        places = [(Path(data).expanduser(), f"CXR_DATA={data}")]
    elif data == "":
        owner, name = KAGGLE_NAME.split("/")
        inputs = (KAGGLE_INPUT / name, KAGGLE_INPUT / "datasets" / owner / name)
        places = [*((place, str(place)) for place in inputs), (LOCAL_SET, "data/chest_xray")]
    else:
        places = []
    for folder, name in places:
        if root := find_root(folder):
            return root, "folder"
        reason = "holds no train, val or test" if folder.is_dir() else "no such folder"
        tried.append(f"{name}: {reason}")
    if data in ("", "kaggle"):
        if not download:
            return None, "kaggle"
        if root := _download(tried):
            return root, "kaggle"
    raise UserError(
        "No chest X-ray images found. Tried:\n"
        + "\n".join(f"  {number}. {line}" for number, line in enumerate(tried, 1))
        + "\nWays out:\n"
        "  - set DATA (CXR_DATA) to the folder that holds train, val and test;\n"
        "  - fetch the data set by hand into data/chest_xray, as data/README.md says;\n"
        "  - in a Kaggle notebook: Add Input, search chest-xray-pneumonia;\n"
        "  - to see the notebooks on the real X-rays that come with the project: MODE = quick."
    )


def _download(tried):
    print(f"Downloading {KAGGLE_HANDLE} with kagglehub (about 2.3 GB, no login needed)")
    try:
        import kagglehub

        folder = kagglehub.dataset_download(KAGGLE_HANDLE)
    except Exception as error:  # network, quota, disk: whatever it is, say it and go on
        tried.append(f"download with kagglehub: {_download_hint(error)}")
        return None
    if not (root := find_root(folder)):
        tried.append(
            f"kagglehub's download in {folder}: holds no train, val or test. Delete that folder "
            "and run this cell again; where Colab mounted it, set DISABLE_COLAB_CACHE=1 first"
        )
    return root


def _download_hint(error):
    """What an exception of kagglehub means. Its own text can hold a token or a signed link, so
    only its kind and HTTP status are shown."""
    kinds = [kind.__name__ for kind in type(error).__mro__]
    status = getattr(getattr(error, "response", None), "status_code", None)
    hint = next((_DOWNLOAD_HINTS[key] for key in (status, *kinds) if key in _DOWNLOAD_HINTS), None)
    what = kinds[0] + (f", HTTP {status}" if status else "")
    return f"{what}: {hint or 'try again later, or fetch it by hand (data/README.md)'}"


def check_sample():
    """Raises UserError if data/sample is not what its manifest lists; names every file."""
    manifest = SAMPLE / "manifest.csv"
    try:
        expected = pd.read_csv(manifest).set_index("file")["sha256"].to_dict()
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f"{manifest} is missing or damaged ({type(error).__name__}): fetch the project again."
        ) from error
    found = {p.relative_to(SAMPLE).as_posix(): p for p in SAMPLE.glob("*/*/*") if p.name[0] != "."}
    problems = [f"{name}: missing" for name in sorted(expected.keys() - found.keys())]
    problems += [f"{name}: not part of the sample" for name in sorted(found.keys() - expected)]
    problems += [
        f"{name}: changed"
        for name in sorted(found.keys() & expected.keys())
        if checksum(found[name]) != expected[name]
    ]
    if problems:
        raise UserError(
            f"{len(problems)} files in data/sample are not as they were published:\n"
            + "\n".join(f"  {line}" for line in problems)
            + "\nRestore them: git checkout data/sample, or fetch the project again."
        )
