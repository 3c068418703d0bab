"""The index and the split into train, validation and test."""

import hashlib

import pandas as pd
import pytest

import utils


def kaggles_index(train=(1341, 2530, 1345), val=(8, 8, 0), test=(234, 242, 148)):
    """An index with Kaggle's counts, about two images per patient, without any file."""
    rows = []
    for split, counts in (("train", train), ("val", val), ("test", test)):
        for label, count in zip(utils.CLASSES[3], counts, strict=True):
            series = {"normal": "IM", "bacterial": "bacteria", "viral": "virus"}[label]
            class2 = "normal" if label == "normal" else "pneumonia"
            for n in range(count):
                file = f"{split}/{label}/{n:05d}.jpeg"
                rows.append((file, split, class2, label, series, f"{series}-{split}-{n // 2}"))
    columns = ["file", "split", "class2", "class3", "series", "patient"]
    return pd.DataFrame(sorted(rows), columns=columns)


def fingerprint(part):
    return hashlib.sha256(",".join(part).encode()).hexdigest()[:16]


# The same on every machine: a change here changes every published number.
FINGERPRINTS = {
    ("image", 0): "dc21adc5008973f1",
    ("image", 1): "29c7db09a70bd299",
    ("patient", 0): "abfedf8b37b1b4c1",
}


@pytest.mark.parametrize(("by", "seed"), FINGERPRINTS)
def test_the_split_is_the_same_on_any_machine(by, seed):
    part = utils.assign_parts(kaggles_index(), seed=seed, by=by)
    assert fingerprint(part) == FINGERPRINTS[by, seed]


@pytest.mark.parametrize("by", ["image", "patient"])
def test_a_fifth_of_train_with_the_classes_shares(by):
    index = kaggles_index()
    part = utils.assign_parts(index, seed=0, by=by)
    assert part.value_counts().sum() == 5856
    assert (part == "unused").sum() == 16 and (part == "test").sum() == 624
    of_train = index["split"] == "train"
    assert (part[~of_train & (index["split"] == "val")] == "unused").all()
    share = (part[of_train] == "validation").groupby(index["class3"]).mean()
    assert share.between(0.19, 0.21).all()


def test_by_patient_no_patient_is_on_both_sides():
    index = kaggles_index()
    for seed in range(3):
        part = utils.assign_parts(index, seed=seed, by="patient")
        patients = index["patient"].groupby(part).agg(set)
        assert not patients["train"] & patients["validation"]


def test_another_seed_gives_another_split_of_the_same_size():
    index = kaggles_index()
    first, second = (utils.assign_parts(index, seed=seed) for seed in (0, 1))
    assert (first != second).any() and (first.value_counts() == second.value_counts()).all()


def test_the_smoke_profile_keeps_the_classes_shares():
    index = kaggles_index()
    part = utils.assign_parts(index, seed=0, smoke=True)
    for name, most in utils.SMOKE.items():
        assert (part == name).sum() == most
    full = utils.assign_parts(index, seed=0)
    assert (full[part == "train"] == "train").all()
    share = index["class3"][part == "train"].value_counts(normalize=True)
    assert share["bacterial"] == pytest.approx(2530 / 5216, abs=0.01)


def test_an_unknown_way_of_drawing_is_refused():
    with pytest.raises(utils.CxrError, match="image or patient"):
        utils.assign_parts(kaggles_index(), seed=0, by="name")


@pytest.mark.parametrize(
    ("kind", "name", "parsed"),
    [
        ("PNEUMONIA", "person1_bacteria_2.jpeg", ("bacterial", "bacteria", 1)),
        ("PNEUMONIA", "person1_virus_12.jpeg", ("viral", "virus", 1)),
        ("PNEUMONIA", "person1372_virus_2365_1.jpeg", ("viral", "virus", 1372)),
        ("NORMAL", "IM-0115-0001.jpeg", ("normal", "IM", 115)),
        ("NORMAL", "NORMAL2-IM-0115-0001-0002.jpeg", ("normal", "NORMAL2-IM", 115)),
        ("NORMAL", "person1_virus_12.jpeg", None),
        ("PNEUMONIA", "IM-0115-0001.jpeg", None),
        ("PNEUMONIA", "person_virus_12.jpeg", None),
        ("NORMAL", "IM-0115-0001.jpeg.txt", None),
    ],
)
def test_names(kind, name, parsed):
    assert utils.parse_name(kind, name) == parsed
