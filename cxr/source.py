"""Finding the data set: a named folder, the sample, Kaggle's input, data/chest_xray, a download."""

from pathlib import Path

import pandas as pd

from cxr.files import PROJECT, UserError, checksum

KAGGLE_NAME = "paultimothymooney/chest-xray-pneumonia"
KAGGLE_HANDLE = f"{KAGGLE_NAME}/versions/2"
KAGGLE_INPUT = Path("/kaggle/input")
LOCAL_SET, SAMPLE = PROJECT / "data" / "chest_xray", PROJECT / "data" / "sample"
_DOWNLOAD_HINTS = {  # HTTP status, or kind of exception: requests' are OSErrors too
    401: "Kaggle refuses the token found here. None is needed: remove ~/.kaggle/kaggle.json, "
    "KAGGLE_USERNAME and KAGGLE_KEY (in Colab also under Secrets)",
    403: f"open https://www.kaggle.com/datasets/{KAGGLE_NAME}, sign in and accept its terms",
    429: "too many requests: wait a quarter of an hour",
    "ConnectionError": "no network, or it broke off (in a Kaggle notebook: Settings, Internet on); "
    "what has arrived is kept",
    "Timeout": "the network is too slow at the moment; what has arrived is kept",
    "RequestException": "Kaggle does not answer as it should: wait some minutes; what has arrived "
    "is kept",
    "DataCorruptionError": "the download does not match its checksum and was deleted",
    "OSError": "look at the disk: the download takes 5 GB, unpacked. KAGGLEHUB_CACHE can name a "
    "folder on a larger one",
}


def find_root(folder):
    """The folder that directly holds train/, val/ and test/, or None. Kaggle's archive nests them
    in chest_xray/, with a second copy in chest_xray/chest_xray/, which is left alone."""
    for root in (Path(folder, *["chest_xray"] * depth) for depth in range(3)):
        if any((root / split).is_dir() for split in ("train", "val", "test")):
            return root
    return None


def find_images(data, download=True):
    """Finds the data set; never falls back to anything in silence.

    `data` is the setting CXR_DATA (`Config.data`). Returns (root, source): the folder that holds
    train/, val/ and test/, None where only the download is left and not wanted; and "sample",
    "folder" or "kaggle" (version 2 as downloaded). UserError lists what was tried, and ways out.
    """
    if data == "sample":
        check_sample()
        return SAMPLE, "sample"
    owner, name = KAGGLE_NAME.split("/")
    looked = (KAGGLE_INPUT / name, KAGGLE_INPUT / "datasets" / owner / name, LOCAL_SET)
    tried = []
    for folder in {"": looked, "kaggle": ()}.get(data, (Path(data).expanduser(),)):
        if root := find_root(folder):
            return root, "folder"
        reason = "holds no train, val or test" if folder.is_dir() else "no such folder"
        tried.append(f"{folder}: {reason}")
    if data in ("", "kaggle"):
        root = _download(tried) if download else None
        if root or not download:
            return root, "kaggle"
    raise UserError(
        "No chest X-ray images found. Tried:\n  " + "\n  ".join(tried) + "\nWays out:\n"
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
    except Exception as error:  # network, quota, disk. Its text can hold a token: only its kind
        kinds = [kind.__name__ for kind in type(error).__mro__]
        status = getattr(getattr(error, "response", None), "status_code", None)
        hints = (_DOWNLOAD_HINTS.get(key) for key in (status, *kinds))
        hint = next(filter(None, hints), "try again later, or fetch it by hand (data/README.md)")
        tried.append(f"download with kagglehub: {kinds[0]}, HTTP status {status}: {hint}")
        return None
    if not (root := find_root(folder)):
        tried.append(f"kagglehub's download in {folder}: holds no train, val or test. Delete that "
                     "folder and run this cell again; if Colab mounted it, set "
                     "DISABLE_COLAB_CACHE=1 first")  # fmt: skip
    return root


def check_sample():
    """UserError, which names every file, where data/sample is not what its manifest lists."""
    try:
        expected = pd.read_csv(SAMPLE / "manifest.csv", index_col="file")["sha256"].to_dict()
    except (OSError, ValueError, KeyError) as error:
        problems = [f"manifest.csv: missing or damaged ({type(error).__name__})"]
    else:
        found = {p.relative_to(SAMPLE).as_posix(): checksum(p) for p in SAMPLE.glob("*/*/[!.]*")}
        problems = [f"{name}: missing" for name in sorted(expected.keys() - found)]
        problems += [f"{name}: not part of the sample" for name in sorted(found.keys() - expected)]
        both = sorted(found.keys() & expected)
        problems += [f"{name}: changed" for name in both if found[name] != expected[name]]
    if problems:
        raise UserError(f"data/sample is not as it was published ({len(problems)}):\n  "
                        + "\n  ".join(problems) + "\nRestore it: git checkout data/sample, or "
                        "fetch the project again.")  # fmt: skip
