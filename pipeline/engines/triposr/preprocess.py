"""From a cut-out view to the square image that the encoder sees, as the released command makes it."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from pipeline.engines.triposr.spec import FOREGROUND_RATIO, GREY
from pipeline.errors import UnreadableImage


def frame_foreground(view: NDArray[np.uint8], *, ratio: float = FOREGROUND_RATIO) -> NDArray[np.uint8]:
    """Crop the subject, make it square, and leave a margin; nothing is resampled.

    The last row and the last column of the subject are lost, as in the release.
    Source: VAST-AI-Research/TripoSR@d26e331, tsr/utils.py, resize_foreground.

    Args:
        view: (H, W, 4) uint8 RGBA, straight alpha.
        ratio: of the subject's longer side to the result's.

    Returns:
        (S, S, 4) uint8 RGBA.

    Raises:
        UnreadableImage: there is no subject, or it is one pixel wide.
    """
    rows, columns = np.nonzero(view[..., 3])
    if len(rows) == 0:
        raise UnreadableImage("the image holds no subject: every pixel is transparent")
    crop = view[rows.min() : rows.max(), columns.min() : columns.max()]
    if crop.size == 0:
        raise UnreadableImage("the image holds no subject: what is not transparent is one pixel wide")
    size = max(crop.shape[:2])
    return _padded(_padded(crop, size), int(size / ratio))


def _padded(image: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """The image in the middle of a square of zeros; an odd rest goes below and to the right."""
    low = [(size - side) // 2 for side in image.shape[:2]]
    widths = [(before, size - side - before) for before, side in zip(low, image.shape[:2], strict=True)]
    return np.pad(image, [*widths, (0, 0)])


def composite_on_grey(rgba: NDArray[np.uint8], *, background: float = GREY) -> NDArray[np.uint8]:
    """Composite in float32 and cut to 8 bits, not rounded: (H, W, 4) -> (H, W, 3) uint8."""
    unit = rgba.astype(np.float32) / 255
    alpha = unit[..., 3:]
    return ((unit[..., :3] * alpha + (1 - alpha) * np.float32(background)) * 255).astype(np.uint8)


def resize_images(images: Tensor, *, size: int) -> Tensor:
    """Images as the encoder takes them; their aspect ratio is not kept.

    Args:
        images: (P, H, W, 3) uint8, or float32 that is taken as it is.

    Returns:
        (P, size, size, 3) float32, in [0, 1] where uint8 came in.
    """
    unit = images.float() / 255 if images.dtype == torch.uint8 else images
    resized = F.interpolate(
        unit.permute(0, 3, 1, 2), (size, size), mode="bilinear", align_corners=False, antialias=True
    )
    return resized.permute(0, 2, 3, 1)
