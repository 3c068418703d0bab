"""Drawn pictures: cheap files for tests of plumbing, and chests whose opacities are known."""

import numpy as np
from PIL import Image
from scipy.ndimage import gaussian_filter

ROWS, COLUMNS = np.meshgrid(*2 * [np.linspace(-1, 1, 224, dtype="float32")], indexing="ij")


def make_tiny_set(folder):
    """Writes 24 small noisy pictures in Kaggle's layout and naming; returns the folder."""
    rng = np.random.default_rng(0)
    for split in ("train", "val", "test"):
        for n in range(1, 5):
            for name in (f"NORMAL/IM-{n:04d}-0001.jpeg", f"PNEUMONIA/person{n}_bacteria_{n}.jpeg"):
                path = folder / split / name
                path.parent.mkdir(parents=True, exist_ok=True)
                pixels = rng.integers(0, 256, (50, 60), np.uint8)
                Image.fromarray(pixels).save(path, "JPEG", quality=90)
    return folder


def draw_chest(label, rng):
    """A chest-like picture: clear lungs, one white patch (bacterial), or both lungs full of a
    fine pattern (viral).

    Returns:
        (pixels, opacities): uint8 (224, 224), and where the opacities are, bool (224, 224).
    """

    def ellipse(centre, radii):  # 1 inside, 0 outside, with a soft edge
        distance = np.hypot((x - centre[0]) / radii[0], (y - centre[1]) / radii[1])
        return 1 / (1 + np.exp(np.clip((distance - 1) / 0.08, -50, 50)))

    def texture(fine, coarse):
        white = rng.standard_normal(ROWS.shape, dtype="float32")
        band = gaussian_filter(white, fine) - gaussian_filter(white, coarse)
        return band / band.std()

    dx, dy, scale = *rng.normal(0, 0.05, 2), rng.uniform(0.85, 1.1)
    x, y = (COLUMNS - dx) / scale, (ROWS - dy) / scale
    sides = [(-0.45, 0.0), (0.45, 0.0)]
    lungs = sum(ellipse(side, (0.36, 0.7)) for side in sides)
    heart = ellipse((0.13, 0.3), (0.32, 0.35))
    lungs *= 1 - 0.85 * heart
    picture = 0.65 - 0.4 * lungs + 0.1 * heart + 0.02 * lungs * texture(2, 6)
    picture += 0.06 * (np.cos(y * 38 + 8 * x**2) > 0.8)  # ribs
    opacities = np.zeros_like(ROWS)
    if label == "bacterial":
        side, angle = sides[rng.integers(2)], rng.uniform(0, 2 * np.pi)
        centre = side[0] + 0.2 * np.cos(angle), side[1] + 0.45 * np.sin(angle)
        opacities = ellipse(centre, rng.uniform(0.14, 0.26, 2))
        picture += rng.uniform(0.2, 0.4) * opacities
    elif label == "viral":
        opacities = lungs
        picture += lungs * (0.08 + rng.uniform(0.04, 0.08) * texture(1, 3))
    picture = (picture - 0.5) * rng.uniform(0.8, 1.1) + 0.5 + rng.normal(0, 0.03)
    picture += 0.01 * rng.standard_normal(ROWS.shape)
    return (np.clip(picture, 0, 1) * 255).astype(np.uint8), opacities > 0.5
