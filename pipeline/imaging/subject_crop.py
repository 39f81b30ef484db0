"""The square around a subject and its colours on black, as both releases of TRELLIS prepare an image."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.errors import UnreadableImage

SOLID_ALPHA = 0.8 * 255  # pixels above define the bounding box of the subject


def crop_to_subject(image: Image.Image, *, ratio: float) -> Image.Image:
    """Crop the square around the middle of the subject's bounding box; outside of the image it is transparent black.

    Source: microsoft/TRELLIS@6b0d647, trellis/pipelines/trellis_image_to_3d.py, and microsoft/TRELLIS.2@5565d24,
        trellis2/pipelines/trellis2_image_to_3d.py, preprocess_image: the same but for the margin.

    Args:
        image: RGBA, straight alpha.
        ratio: longer side of the subject over side of the result.

    Raises:
        UnreadableImage: no pixel is above `SOLID_ALPHA`, or the subject is a single pixel.
    """
    rows, columns = np.nonzero(np.asarray(image)[..., 3] > SOLID_ALPHA)
    if len(rows) == 0:
        raise UnreadableImage(f"the image holds no subject: no pixel has an alpha above {SOLID_ALPHA:.0f}")
    left, right, top, bottom = columns.min(), columns.max(), rows.min(), rows.max()
    centre_x, centre_y = (left + right) / 2, (top + bottom) / 2
    half = int(max(right - left, bottom - top) * (1 / ratio)) // 2
    crop = image.crop((centre_x - half, centre_y - half, centre_x + half, centre_y + half))  # rounds halves to even
    if 0 in crop.size:
        raise UnreadableImage("the image holds no subject: its visible part is a single pixel")
    return crop


def on_black(image: Image.Image) -> NDArray[np.uint8]:
    """Composite an RGBA image on black, truncated and not rounded, as released: (H, W) pixels -> (H, W, 3) uint8."""
    rgba = np.asarray(image).astype(np.float32) / 255
    return (rgba[..., :3] * rgba[..., 3:] * 255).astype(np.uint8)
