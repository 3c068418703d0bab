"""Phantoms: chest-like pictures drawn from a seed, in the layout and naming of Kaggle's set.

They are not X-rays and nothing measured on them says anything about pneumonia. They exist so
that every line of this project can run in minutes without a download, and so that explanations
can be checked: where each opacity really lies is written beside the pictures.

The three classes are drawn as the report's foreword describes them: clear lungs; one condensed
white area (bacterial); a diffuse fine pattern in both lungs (viral). Anatomy belongs to the
patient and stays the same over a patient's pictures; pose, exposure and noise do not.

    python data/phantom.py FOLDER --seed 0
"""

import argparse
import csv
import os
import uuid
from pathlib import Path
from shutil import rmtree

import numpy as np
from PIL import Image
from scipy.ndimage import gaussian_filter

VERSION = 1  # raised whenever the same seed would draw other pictures
GRID = 208  # pictures are composed on GRID x GRID points and then enlarged
SIDECAR = "opacities.csv"
COUNTS = {  # pictures per split and class; val as Kaggle's, without a viral one
    "train": {"normal": 256, "bacterial": 192, "viral": 192},
    "val": {"normal": 8, "bacterial": 8, "viral": 0},
    "test": {"normal": 80, "bacterial": 60, "viral": 60},
}

_AXIS = np.linspace(-1, 1, GRID, dtype=np.float32)
_ROWS, _COLUMNS = np.meshgrid(_AXIS, _AXIS, indexing="ij")


def _inside(distance, softness):
    """1 where `distance` is well below 1, 0 well above, with an edge of width `softness`."""
    return 1 / (1 + np.exp(np.clip((distance - 1) / softness, -50, 50)))


def _ellipse(x, y, centre, radii):
    return np.hypot((x - centre[0]) / radii[0], (y - centre[1]) / radii[1])


def _texture(rng, fine, coarse):
    """Noise between two scales (standard deviations in grid points), with unit variance."""
    white = rng.standard_normal((GRID, GRID), dtype=np.float32)
    band = gaussian_filter(white, fine, truncate=2.5) - gaussian_filter(white, coarse, truncate=2)
    return band / band.std()


def _anatomy(rng):
    """What stays the same over the pictures of one patient, in units of half a picture."""
    return {
        "body": rng.uniform(0.82, 1.02),
        "lung": (rng.uniform(0.31, 0.40), rng.uniform(0.62, 0.78)),
        "apart": rng.uniform(0.41, 0.48),
        "heart": (rng.uniform(0.26, 0.42), rng.uniform(0.28, 0.42)),
        "ribs": rng.uniform(0.14, 0.19),
        "slope": rng.uniform(0.35, 0.9),
        "vessels": rng.uniform(0.008, 0.03),
    }


def draw(label, anatomy, rng, strength=1.0):
    """Draws one phantom.

    Args:
        label: "normal", "bacterial" or "viral".
        anatomy: what `_anatomy` returned for the patient.
        rng: a numpy Generator; the same state draws the same picture.
        strength: of the opacities; 0 draws the same chest without them.

    Returns:
        (picture, opacities): a uint8 array (height, width), and a list of dicts with the keys
        x, y (centre) and rx, ry (radii), in fractions of width and height; empty for "normal".
    """
    tilt = rng.normal(0, 0.05)
    scale, dx, dy = rng.uniform(0.86, 1.08), rng.normal(0, 0.05), rng.normal(0, 0.05)
    x = (np.cos(tilt) * (_COLUMNS - dx) - np.sin(tilt) * (_ROWS - dy)) / scale
    y = (np.sin(tilt) * (_COLUMNS - dx) + np.cos(tilt) * (_ROWS - dy)) / scale

    rx, ry = anatomy["lung"]
    centres = [(-anatomy["apart"], 0.02), (anatomy["apart"], 0.02)]
    taper = 1 - 0.3 * np.clip(-y, 0, 1)  # lungs narrow towards the neck, and towards the middle
    dome = 0.44 + 0.8 * (np.abs(x) - anatomy["apart"]) ** 2
    above = 1 / (1 + np.exp(np.clip((y - dome) / 0.02, -50, 50)))
    lungs = sum(
        _inside(_ellipse(x, y, (cx * taper, cy), (rx * taper, ry)), 0.05) for cx, cy in centres
    )
    heart = _inside(_ellipse(x, y, (0.13, 0.24), anatomy["heart"]), 0.1)
    lungs = np.clip(lungs * above * (1 - 0.85 * heart), 0, 1)

    body = _inside(np.abs(x) / (anatomy["body"] - 0.12 * np.clip(-y - 0.3, 0, 1)), 0.03)
    picture = 0.06 + body * (0.62 - 0.06 * y)
    picture -= 0.40 * lungs
    picture += 0.12 * heart * body
    spine = np.exp(-((x / 0.11) ** 2))
    picture += spine * (0.08 + 0.03 * np.cos(2 * np.pi * y / 0.13))
    for k in range(-7, 4):  # ribs: arcs that fall towards the sides
        arc = y - anatomy["ribs"] * k - anatomy["slope"] * (np.abs(x) - 0.1) ** 2
        picture += 0.07 * np.exp(-((arc / 0.022) ** 2)) * body * (np.abs(x) > 0.08)
    collar = y + 0.62 + 0.25 * np.abs(x)
    picture += 0.08 * np.exp(-((collar / 0.03) ** 2)) * body
    picture += anatomy["vessels"] * lungs * _texture(rng, 2, 6)

    def seen(centre, radii):  # where a point of the chest lies in the picture
        cx, cy = centre[0] * scale, centre[1] * scale
        px = np.cos(tilt) * cx + np.sin(tilt) * cy + dx
        py = -np.sin(tilt) * cx + np.cos(tilt) * cy + dy
        return {
            "x": (px + 1) / 2,
            "y": (py + 1) / 2,
            "rx": radii[0] * scale / 2,
            "ry": radii[1] * scale / 2,
        }

    opacities = []
    if label == "bacterial":
        side = centres[rng.integers(2)]
        angle, reach = rng.uniform(0, 2 * np.pi), np.sqrt(rng.uniform(0, 0.45))
        centre = (
            side[0] + reach * rx * np.cos(angle),
            min(side[1] + reach * ry * np.sin(angle), 0.3),
        )
        radii = rng.uniform(0.14, 0.28, size=2)
        ragged = _ellipse(x, y, centre, radii) + 0.15 * _texture(rng, 5, 15)
        amount = rng.uniform(0.22, 0.48)
        picture += strength * amount * _inside(ragged, 0.18) * (0.25 + 0.75 * lungs)
        opacities.append(seen(centre, radii))
    elif label == "viral":
        haze, amount = rng.uniform(0.05, 0.18), rng.uniform(0.035, 0.08)
        picture += strength * lungs * (haze + amount * _texture(rng, 1, 3))
        opacities += [seen(centre, (rx, ry)) for centre in centres]

    picture = np.clip(picture, 0, 1) ** rng.uniform(0.85, 1.18)
    picture = 0.5 + (picture - 0.5) * rng.uniform(0.8, 1.1) + rng.normal(0, 0.025)
    width = int(rng.integers(280, 520))
    height = int(width * rng.uniform(0.62, 0.95))
    large = Image.fromarray(picture.astype(np.float32)).resize(
        (width, height), Image.Resampling.BICUBIC
    )
    grain = rng.uniform(0.005, 0.03)
    noisy = np.asarray(large) + grain * rng.standard_normal((height, width), dtype=np.float32)
    return (np.clip(noisy, 0, 1) * 255).round().astype(np.uint8), opacities


def _name(label, patient, series_two, shot, picture):
    """A file name as Kaggle's: bacteria and virus patients are numbered independently."""
    if label == "normal":
        prefix = "NORMAL2-IM" if series_two else "IM"
        return f"{prefix}-{patient:04d}-0001{f'-{shot:04d}' if shot > 1 else ''}.jpeg"
    cause = {"bacterial": "bacteria", "viral": "virus"}[label]
    return f"person{patient}_{cause}_{picture}.jpeg"


def make_phantoms(folder, seed=0, counts=COUNTS, progress=iter):
    """Draws a whole set into `folder`, which must not exist, and only then gives it its name.

    Args:
        folder: where train/, val/, test/ and the sidecar `opacities.csv` (columns file, label,
            x, y, rx, ry; fractions of width and height) are written.
        seed: integer.
        counts: pictures per split and class, as COUNTS.
        progress: wraps the iterable over pictures, for instance tqdm.

    Returns:
        The folder, as a Path.

    Raises:
        FileExistsError: `folder` exists.
    """
    folder = Path(folder)
    if folder.exists():
        raise FileExistsError(f"{folder} exists; name a new folder for the phantoms")
    part = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}.part")
    todo, picture = [], 0
    for number, label in enumerate(("normal", "bacterial", "viral")):
        patient = 0
        for split, of_class in counts.items():
            left = of_class[label]
            while left:
                patient += 1
                key = [seed, number, patient]
                shots = min(left, 1 + int(np.random.default_rng(key).geometric(0.75) - 1))
                for shot in range(1, shots + 1):
                    picture += 1
                    todo.append((split, label, number, patient, shot, picture))
                left -= shots
    rows = []
    try:
        for split, label, number, patient, shot, picture in progress(todo):
            anatomy = _anatomy(np.random.default_rng([seed, number, patient, 0]))
            rng = np.random.default_rng([seed, number, patient, shot])
            pixels, opacities = draw(label, anatomy, rng)
            name = _name(label, patient, patient % 2 == 0 or split == "val", shot, picture)
            file = f"{split}/{'NORMAL' if label == 'normal' else 'PNEUMONIA'}/{name}"
            (part / file).parent.mkdir(parents=True, exist_ok=True)
            mode = "RGB" if rng.random() < 0.05 else "L"  # as in Kaggle's set: grey, a few RGB
            Image.fromarray(pixels).convert(mode).save(part / file, "JPEG", quality=90)
            rows += [
                {"file": file, "label": label, **{k: round(float(v), 4) for k, v in o.items()}}
                for o in opacities
            ]
        with open(part / SIDECAR, "w", newline="") as sidecar:
            writer = csv.DictWriter(sidecar, ["file", "label", "x", "y", "rx", "ry"])
            writer.writeheader()
            writer.writerows(rows)
        os.rename(part, folder)
    finally:
        rmtree(part, ignore_errors=True)
    return folder


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Draws chest-like phantoms (not X-rays).")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    print(f"phantoms in {make_phantoms(options.folder, options.seed)}")
