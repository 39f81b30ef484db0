"""Preprocessing of a foreground image to the square image of the encoder, as in the released command line."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from pipeline.engines.triposr.spec import FOREGROUND_RATIO, GREY
from pipeline.errors import UnreadableImage


def frame_foreground(view: NDArray[np.uint8], *, ratio: float = FOREGROUND_RATIO) -> NDArray[np.uint8]:
    """Crop the subject, pad it to a square and add a margin; nothing is resampled.

    Drops the last row and column of the subject, as the release does: its slice excludes the largest index.
    Source: VAST-AI-Research/TripoSR@d26e331, tsr/utils.py, resize_foreground.

    Args:
        view: (H, W, 4) uint8 RGBA, straight alpha.
        ratio: longer side of the subject over side of the result.

    Returns:
        (S, S, 4) uint8 RGBA.

    Raises:
        UnreadableImage: no pixel is visible, or the subject is one pixel wide.
    """
    rows, columns = np.nonzero(view[..., 3])
    if len(rows) == 0:
        raise UnreadableImage("the image holds no subject: every pixel is transparent")
    crop = view[rows.min() : rows.max(), columns.min() : columns.max()]
    if crop.size == 0:
        raise UnreadableImage("the image holds no subject: its visible part is one pixel wide")
    size = max(crop.shape[:2])
    return _padded(_padded(crop, size), int(size / ratio))  # (h, w, 4) -> (size, size, 4) -> (S, S, 4)


def _padded(image: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """Centre an (H, W, C) image in a square of zeros; an odd remainder goes below and to the right."""
    low = [(size - side) // 2 for side in image.shape[:2]]
    widths = [(before, size - side - before) for before, side in zip(low, image.shape[:2], strict=True)]
    return np.pad(image, [*widths, (0, 0)])


def composite_on_grey(rgba: NDArray[np.uint8], *, background: float = GREY) -> NDArray[np.uint8]:
    """Composite on a grey background in float32 and truncate to 8 bits, as the release does.

    Args:
        rgba: (H, W, 4) uint8, straight alpha.
        background: grey level in [0, 1].

    Returns:
        (H, W, 3) uint8.
    """
    unit = rgba.astype(np.float32) / 255
    alpha = unit[..., 3:]
    return ((unit[..., :3] * alpha + (1 - alpha) * np.float32(background)) * 255).astype(np.uint8)


def resize_images(images: Tensor, *, size: int) -> Tensor:
    """Resize images to the size of the encoder, without keeping the aspect ratio.

    Args:
        images: (P, H, W, 3), uint8 or float32; float32 is not rescaled.
        size: target side in pixels.

    Returns:
        (P, size, size, 3) float32, in [0, 1] for uint8 input.
    """
    unit = images.float() / 255 if images.dtype == torch.uint8 else images
    resized = F.interpolate(
        unit.permute(0, 3, 1, 2), (size, size), mode="bilinear", align_corners=False, antialias=True
    )
    return resized.permute(0, 2, 3, 1)  # (P, 3, size, size) -> (P, size, size, 3)
