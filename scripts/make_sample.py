"""Draws data/sample, the real X-rays that come with the project, from a full copy; or checks it.

The draw depends on file names alone. Files are copied unchanged, so write from a 224 x 224 copy.
"""

import argparse
import shutil
import sys
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from cxr.files import PROJECT, UserError, checksum
from cxr.source import CLASS_NAMES, SOURCE_SPLITS, read_metadata

SEED, TRAIN_IMAGES, FULL_IMAGES = 0, 640, 5856
SIZE, TOLERANCE = (224, 224), 2  # pixels; grey levels
MANIFEST = "manifest.csv"


def draw(full):
    """The sample's files: all of val and test, and of each class of train whole patients."""
    metadata = read_metadata(full)
    if len(metadata) != FULL_IMAGES:
        raise UserError(f"{full} holds {len(metadata)} images; a full copy holds {FULL_IMAGES}.")
    train = metadata[metadata.source_split == "train"]
    files = set(metadata.file) - set(train.file)
    rng = np.random.default_rng(SEED)
    for name in CLASS_NAMES[3]:
        images = train[train.class3 == name]
        left = round(TRAIN_IMAGES * len(images) / len(train))
        by_patient = images.groupby("patient").file.agg(list)
        for patient in rng.permutation(sorted(by_patient.index)):
            if len(by_patient[patient]) <= left:
                files.update(by_patient[patient])
                left -= len(by_patient[patient])
    return files


def write(full, sample):
    """Copies the drawn files, then moves them to their place, the manifest last."""
    files = sorted(draw(full))
    sample.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=sample.parent, suffix=".part") as part:
        part = Path(part)
        for file in files:
            (part / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(full / file, part / file)
        rows = pd.DataFrame({"file": files, "sha256": [checksum(part / f) for f in files]})
        rows.to_csv(part / MANIFEST, index=False, lineterminator="\n")
        for name in (*SOURCE_SPLITS, MANIFEST):
            (part / name).rename(sample / name)


def read_grey(path):
    """Grey levels at the sample's size by nearest neighbours, as `keras.utils.load_img` does."""
    with Image.open(path) as image:
        return np.asarray(image.resize(SIZE, Image.Resampling.NEAREST).convert("L"), np.int16)


def compare(path, original):
    """Says "equal" for equal bytes, "within" the tolerance in grey levels, or "beyond" it."""
    if path.read_bytes() == original.read_bytes():
        return "equal"
    try:
        largest = np.abs(read_grey(path) - read_grey(original)).max()
    except OSError:  # not an image that can be read
        return "beyond"
    return "within" if largest <= TOLERANCE else "beyond"


def check(full, sample):
    """Checks the names, bytes and pixels of a sample; gives a summary and a list of problems."""
    files = draw(full)
    paths = (path.relative_to(sample) for path in sample.rglob("*") if not path.is_dir())
    found = {path.as_posix() for path in paths if path.name[0] != "."} - {"README.md", MANIFEST}
    try:
        manifest = pd.read_csv(sample / MANIFEST, index_col="file")["sha256"].to_dict()
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{sample / MANIFEST} cannot be read: {error}") from error
    changed = {f for f in found & manifest.keys() if checksum(sample / f) != manifest[f]}
    problems = [f"missing: {f}" for f in files - found] + [f"extra: {f}" for f in found - files]
    problems += [f"only in draw or manifest: {f}" for f in files ^ manifest.keys()]
    problems += [f"changed: {f}" for f in changed]
    verdicts = {f: compare(sample / f, full / f) for f in (files & found) - changed}
    problems += [f"beyond: {f}" for f, verdict in verdicts.items() if verdict == "beyond"]
    counts = Counter(verdicts.values())
    summary = (
        f"{len(files)} drawn, {len(found)} found, {len(changed)} changed; {counts['equal']} equal "
        f"to the full copy, {counts['within']} within {TOLERANCE} grey levels, "
        f"{counts['beyond']} beyond or unreadable; problems: {len(problems)}"
    )
    return summary, sorted(problems)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("full", type=Path, metavar="FULL_COPY", help="in Kaggle's layout")
    parser.add_argument("--check", action="store_true", help="only check what is there")
    parser.add_argument("--sample", type=Path, default=PROJECT / "data/sample", metavar="FOLDER")
    args = parser.parse_args()
    exists = any((args.sample / name).exists() for name in (*SOURCE_SPLITS, MANIFEST))
    try:
        if not (args.check or exists):
            write(args.full, args.sample)
        summary, problems = check(args.full, args.sample)
    except UserError as error:
        return str(error)
    print(*problems, summary, sep="\n")
    return int(bool(problems))


if __name__ == "__main__":
    sys.exit(main())
