"""One image: from a file to an array, as `load_img` does."""

import numpy as np
from PIL import Image

from cxr.files import UserError

IMAGE_SIZE = 224  # pixels, the report's choice (section I)
MAX_PIXELS, MIN_SIDE = 60_000_000, 32  # the largest original has 5 million


def to_rgb(pixels):
    """One or more cached images, uint8 (..., 224, 224), as (..., 224, 224, 3)."""
    return pixels if pixels.shape[-1] == 3 else np.repeat(pixels[..., None], 3, axis=-1)


def downsample(pixels):
    """Means of 7 x 7 pixels, float32 (images, 1024), of cached images."""
    grey = to_rgb(pixels).mean(-1)
    return grey.reshape(len(grey), 32, 7, 32, 7).mean((2, 4)).reshape(len(grey), -1).astype("f4")


def read_image(path):
    """Decodes one image as `keras.utils.load_img(path, target_size=(224, 224),
    interpolation="nearest")` does (report, section I).

    Returns (pixels, size, mode): uint8 (224, 224), or (224, 224, 3) where the channels differ;
    (width, height) and Pillow's mode of the original. An exception's message says why a file
    cannot be used.
    """
    with Image.open(path) as image:
        width, height = image.size
        if width * height > MAX_PIXELS or min(width, height) < MIN_SIDE:
            raise UserError(f"{width} x {height} pixels: too large or too small for an X-ray")
        if image.mode.startswith(("I", "F")):
            raise UserError("more than 8 bits per channel, which load_img would cut off at 255")
        # Nearest neighbours first, then colours: the same pixels, for a tenth of the work.
        small = image.resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.NEAREST)
        pixels = np.asarray(small if small.mode == "L" else small.convert("RGB"))
        if pixels.ndim == 3 and (pixels == pixels[..., :1]).all():
            pixels = np.ascontiguousarray(pixels[..., 0])
        return pixels, (width, height), image.mode
