"""Preprocessing of a foreground image to the square image of the encoder, byte for byte as in the release."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.imaging.subject_crop import crop_to_subject, on_black

FOREGROUND_RATIO = 1 / 1.2  # longer side of the bounding box over side of the frame


def frame_subject(view: NDArray[np.uint8], *, size: int, ratio: float = FOREGROUND_RATIO) -> NDArray[np.uint8]:
    """Crop the subject with a margin, resize it and composite it on black.

    Source: microsoft/TRELLIS@6b0d647, trellis/pipelines/trellis_image_to_3d.py, preprocess_image.

    Args:
        view: (H, W, 4) uint8 RGBA, straight alpha.
        size: side of the result in pixels.
        ratio: longer side of the subject over side of the result.

    Returns:
        (size, size, 3) uint8.

    Raises:
        UnreadableImage: no pixel is above `SOLID_ALPHA`, or the subject is a single pixel.
    """
    crop = crop_to_subject(Image.fromarray(view), ratio=ratio)
    return on_black(crop.resize((size, size), Image.Resampling.LANCZOS))
