"""Draws data/sample, the real X-rays that come with the project, from a full copy; or checks it.

The draw depends on file names alone. Files are copied unchanged, so write from a 224 x 224 copy.
"""

import argparse
import shutil
import sys
from pathlib import Path

import numpy as np
import pandas as pd
from run_notebooks import PROJECT, WHOLE

sys.path.insert(0, str(PROJECT))
from cxr.files import checksum
from cxr.source import CLASS_NAMES, SAMPLE, check_sample, read_metadata

SEED, TRAIN_IMAGES = 0, 640


def draw(full):
    """The sample's files: all of val and test, and of each class of train whole patients."""
    metadata = read_metadata(full)
    if len(metadata) != WHOLE:
        sys.exit(f"{full} holds {len(metadata)} images; a full copy holds {WHOLE}.")
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
    return sorted(files)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("full", type=Path, metavar="FULL_COPY", help="in Kaggle's layout")
    parser.add_argument("--check", action="store_true", help="only check what is there")
    options = parser.parse_args()
    files = draw(options.full)
    if not options.check:
        for file in files:
            (SAMPLE / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(options.full / file, SAMPLE / file)
        rows = pd.DataFrame({"file": files, "sha256": [checksum(SAMPLE / f) for f in files]})
        rows.to_csv(SAMPLE / "manifest.csv", index=False, lineterminator="\n")
    check_sample()  # names and bytes against the manifest
    sums = pd.read_csv(SAMPLE / "manifest.csv", index_col="file")["sha256"].to_dict()
    expected = {file: checksum(options.full / file) for file in files}
    if wrong := sorted(f for f in sums.keys() | expected if sums.get(f) != expected.get(f)):
        sys.exit("data/sample is not drawn from that copy:\n  " + "\n  ".join(wrong))
    print(f"{len(files)} files, equal to those of the full copy")


if __name__ == "__main__":
    main()
