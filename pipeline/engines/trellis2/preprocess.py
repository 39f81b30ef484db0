"""Preprocessing of a foreground image for the image encoder, byte for byte as in the release."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from pipeline.imaging.subject_crop import crop_to_subject, on_black

MAX_SIDE_PX = 1024
FOREGROUND_RATIO = 1.0  # longer side of the bounding box over side of the frame: no margin
IMAGE_MEAN = (0.485, 0.456, 0.406)
IMAGE_STD = (0.229, 0.224, 0.225)


def crop_subject(view: NDArray[np.uint8], *, ratio: float = FOREGROUND_RATIO) -> NDArray[np.uint8]:
    """Crop the subject to a square without a margin and composite it on black.

    Source: microsoft/TRELLIS.2@5565d24, trellis2/pipelines/trellis2_image_to_3d.py, preprocess_image.

    Args:
        view: (H, W, 4) uint8 RGBA, straight alpha.
        ratio: longer side of the subject over side of the result.

    Returns:
        (S, S, 3) uint8 of varying size.

    Raises:
        UnreadableImage: no pixel is above `SOLID_ALPHA`, or the subject is a single pixel.
    """
    image = Image.fromarray(view)
    scale = min(1.0, MAX_SIDE_PX / max(image.size))
    if scale < 1:
        image = image.resize((int(image.width * scale), int(image.height * scale)), Image.Resampling.LANCZOS)
    return on_black(crop_to_subject(image, ratio=ratio))


def image_tensor(image: NDArray[np.uint8], *, size: int) -> Tensor:
    """Resize to a square, whatever the aspect ratio, and normalise: (H, W, 3) uint8 -> (3, size, size) float32."""
    resized = Image.fromarray(image).resize((size, size), Image.Resampling.LANCZOS)
    pixels = torch.from_numpy(np.asarray(resized).astype(np.float32) / 255).permute(2, 0, 1)
    mean, std = (torch.tensor(values)[:, None, None] for values in (IMAGE_MEAN, IMAGE_STD))
    return (pixels - mean) / std
