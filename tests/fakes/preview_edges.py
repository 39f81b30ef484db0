"""Subjects photographed on a ground and cut out with a hard mask: for tests and benchmarks of the preview engine."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

GROUNDS = {"white": (255, 255, 255), "grey": (127, 127, 127), "green": (40, 170, 60)}


def photographed(
    colours: NDArray[np.floating],
    alpha: NDArray[np.floating],
    ground: tuple[int, int, int],
    *,
    is_kept: bool,
    blur_px: float = 0,
) -> NDArray[np.uint8]:
    """Return a subject on a ground, cut out where alpha is at least one half.

    Args:
        colours: (H, W, 3) sRGB, 0 to 255, defined outside the subject too.
        alpha: (H, W), 0 to 1.
        is_kept: transparent pixels keep the colour of the ground; otherwise they are black.
        blur_px: standard deviation of the camera's blur.
    """
    image = colours * alpha[..., None] + np.array(ground) * (1 - alpha[..., None])
    if blur_px:
        image = cv2.GaussianBlur(image, (0, 0), blur_px)
    mask = alpha >= 0.5
    image = np.where(mask[..., None] | is_kept, image, 0)
    return np.dstack([np.round(image), mask * 255]).astype(np.uint8)


def edge_of(alpha: NDArray[np.floating]) -> NDArray[np.bool_]:
    """Return the pixels of the mask that touch its outside, (H, W): the engine pulls their colours over the flanks."""
    mask = (alpha >= 0.5).astype(np.uint8)
    return (mask > 0) & (cv2.erode(mask, np.ones((3, 3), np.uint8)) == 0)


def edge_error(found: NDArray[np.uint8], colours: NDArray[np.floating], alpha: NDArray[np.floating]) -> float:
    """Return the mean error of the colours along the edge, 0 to 255."""
    edge = edge_of(alpha)
    return float(np.abs(found[edge].astype(np.float64) - colours[edge]).mean())
