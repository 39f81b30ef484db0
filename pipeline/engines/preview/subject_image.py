"""Foreground images prepared for the preview engine: mask and colours of the subject, cropped, of bounded size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.engines.base import ForegroundImage
from pipeline.engines.preview.fringe import without_fringe
from pipeline.errors import UnreadableImage

SOLID_ALPHA = 128  # pixels with at least this alpha belong to the mask
MAX_HEIGHT_RATIO = 1.15  # perspective varies the height of a subject by less; a larger ratio means separate crops
LEAST_LINE = 4
"""Length of a line in pixels of the shrunk mask; shorter ones are crumbs."""
LEAST_COVER = 0.3
"""Least share of a pixel's width that a line covers in it; below, the line runs through the next pixel."""
SOLID_LINE = np.float32(0.75)
MARGIN = 0.05  # around the subject, relative to its longer side: shows what colour the background had


@dataclass(frozen=True, eq=False)
class SubjectImage:
    """The subject of one view, cropped to its bounding box.

    Attributes:
        alpha: (H, W) float32, 0 to 1.
        colours: (H, W, 3) float32 sRGB, 0 to 1; defined outside the mask too.
        centre_px: column and row in the crop of the point where the rotation axis meets the common height of all views.
        unit_px: length in this image of a unit that all views of the subject share.
    """

    alpha: NDArray[np.float32]  # (H, W)
    colours: NDArray[np.float32]  # (H, W, 3)
    centre_px: tuple[float, float]
    unit_px: float


def crop_subject(view: ForegroundImage, *, max_side_px: int, is_axis_known: bool) -> SubjectImage:
    """Crop a view to its subject and shrink it to a largest size.

    Args:
        view: (H, W, 4) uint8 RGBA, straight alpha.
        max_side_px: largest longer side of the result.
        is_axis_known: the rotation axis is in the middle of the frame. Otherwise it is assumed in the middle of the
            subject, and the subject is assumed equally high in all views.

    Raises:
        UnreadableImage: no pixel reaches `SOLID_ALPHA`.
    """
    solid = view[..., 3] >= SOLID_ALPHA
    rows, columns = np.flatnonzero(solid.any(axis=1)), np.flatnonzero(solid.any(axis=0))
    if len(rows) == 0:
        raise UnreadableImage("the image holds no subject: every pixel is transparent")
    top, bottom, left, right = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
    crop = view[top:bottom, left:right]  # (H, W, 4)
    alpha = (crop[..., 3] / 255).astype(np.float32)
    margin = int(MARGIN * max(crop.shape)) + 8
    above, before = min(top, margin), min(left, margin)
    surrounded = without_fringe(view[top - above : bottom + margin, left - before : right + margin])
    colours = (surrounded[above : above + bottom - top, before : before + right - left] / 255).astype(np.float32)

    if is_axis_known:
        centre = (view.shape[1] / 2 - left, view.shape[0] / 2 - top)
        unit = float(view.shape[0])
    else:
        centre = ((right - left) / 2, (bottom - top) / 2)
        unit = float(bottom - top)
    image = SubjectImage(alpha, colours, (float(centre[0]), float(centre[1])), unit)
    small = shrink_subject(image, max_side_px=max_side_px)
    return replace(small, alpha=_with_thin_parts(small.alpha, alpha))


def _with_thin_parts(small: NDArray[np.float32], alpha: NDArray[np.float32]) -> NDArray[np.float32]:
    """Make lines solid in a shrunk mask (h, w) that are thinner than its pixels: (H, W) has them at full size.

    They are what an opening by a pixel of the shrunk mask removes, but for crumbs along curved edges.
    """
    factor = max(alpha.shape) / max(small.shape)
    if factor <= 2:  # a line of a pixel covers half of one still
        return small
    reach = int(np.ceil(factor))
    solid = (alpha > 0.5).astype(np.uint8)
    thin = solid - cv2.morphologyEx(solid, cv2.MORPH_OPEN, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (reach, reach)))
    _, labels, stats, _ = cv2.connectedComponentsWithStats(thin, connectivity=8)
    longest = np.asarray(stats)[:, [cv2.CC_STAT_WIDTH, cv2.CC_STAT_HEIGHT]].max(axis=1)
    is_line = longest > LEAST_LINE * factor
    is_line[0] = False
    lines = is_line[np.asarray(labels)].astype(np.float32)
    covered = np.asarray(cv2.resize(lines, small.shape[::-1], interpolation=cv2.INTER_AREA))
    return np.where(covered > LEAST_COVER / factor, np.maximum(small, SOLID_LINE), small).astype(np.float32)


def shrink_subject(image: SubjectImage, *, max_side_px: int) -> SubjectImage:
    """Return a copy whose longer side has at most so many pixels."""
    scale = max_side_px / max(image.alpha.shape)
    if scale >= 1:
        return image
    size = (max(1, round(image.alpha.shape[1] * scale)), max(1, round(image.alpha.shape[0] * scale)))
    return SubjectImage(
        np.asarray(cv2.resize(image.alpha, size, interpolation=cv2.INTER_AREA), np.float32),
        np.asarray(cv2.resize(image.colours, size, interpolation=cv2.INTER_AREA), np.float32),
        (image.centre_px[0] * scale, image.centre_px[1] * scale),
        image.unit_px * scale,
    )


def have_common_frame(views: Sequence[ForegroundImage]) -> bool:
    """Return whether the views are frames of one turntable: equal in size and nearly in the height of the subject."""
    if len(views) < 2 or len({view.shape for view in views}) > 1:
        return False
    heights = [int((view[..., 3] >= SOLID_ALPHA).any(axis=1).sum()) for view in views]
    return max(heights) <= MAX_HEIGHT_RATIO * min(heights)


def as_bytes(colours: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Convert colours in [0, 1] to 0 to 255."""
    return np.round(colours * 255).astype(np.uint8)


def sample_bilinear(
    image: NDArray[np.float32] | NDArray[np.uint8],  # (H, W) or (H, W, C)
    x_px: NDArray[np.floating],  # (P,)
    y_px: NDArray[np.floating],  # (P,)
) -> NDArray[np.float32]:  # (P,) or (P, C)
    """Sample an image bilinearly; positions outside are clamped to the border.

    Args:
        image: (H, W) or (H, W, C).
        x_px: (P,) columns; 0.5 is the centre of the first pixel.
        y_px: (P,) rows, likewise.

    Returns:
        (P,) or (P, C).
    """
    height, width = image.shape[:2]
    x = np.clip(x_px - 0.5, 0, width - 1).astype(np.float32)
    y = np.clip(y_px - 0.5, 0, height - 1).astype(np.float32)
    left, top = x.astype(np.int32), y.astype(np.int32)
    right, bottom = np.minimum(left + 1, width - 1), np.minimum(top + 1, height - 1)
    to_right, to_bottom = x - left, y - top
    if image.ndim == 3:
        to_right, to_bottom = to_right[:, None], to_bottom[:, None]  # (P, 1)
    upper = image[top, left] * (1 - to_right) + image[top, right] * to_right
    lower = image[bottom, left] * (1 - to_right) + image[bottom, right] * to_right
    return (upper * (1 - to_bottom) + lower * to_bottom).astype(np.float32, copy=False)
