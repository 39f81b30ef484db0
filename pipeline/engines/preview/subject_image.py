"""Cut-out views as the preview engine samples them: mask and colours of the subject, cropped, at a bounded size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.engines.base import ForegroundImage
from pipeline.errors import UnreadableImage

SOLID_ALPHA = 128  # the mask is where alpha reaches this
MOST_HEIGHT_RATIO = 1.15  # perspective shows near parts larger; more than this is another crop
PURE_ALPHA = 250  # pixels below are mixed with the background and take the colour of the nearest pure one


@dataclass(frozen=True, eq=False)
class SubjectImage:
    """The subject of one view, cropped to its bounding box.

    Attributes:
        alpha: (H, W) float32, 0 to 1.
        colours: (H, W, 3) float32 sRGB, 0 to 1; defined everywhere, also outside the mask.
        centre_px: column and row of the crop where the axis around which the views stand meets their common height.
        unit_px: a length that is the same in all views of a subject, as this image shows it.
    """

    alpha: NDArray[np.float32]
    colours: NDArray[np.float32]
    centre_px: tuple[float, float]
    unit_px: float


def crop_subject(view: ForegroundImage, *, max_side_px: int, is_axis_known: bool) -> SubjectImage:
    """Crop a view to its subject and shrink it where it is larger than needed.

    Args:
        view: (H, W, 4) uint8 RGBA, straight alpha.
        max_side_px: longest side of the result.
        is_axis_known: the views share one frame, whose middle is on the axis; else the middle of each view's subject
            is, and the subject is as high in all of them.

    Raises:
        UnreadableImage: no pixel is solid.
    """
    solid = view[..., 3] >= SOLID_ALPHA
    rows, columns = np.flatnonzero(solid.any(axis=1)), np.flatnonzero(solid.any(axis=0))
    if len(rows) == 0:
        raise UnreadableImage("the image holds no subject: every pixel is transparent")
    top, bottom, left, right = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
    crop = view[top:bottom, left:right]
    alpha = (crop[..., 3] / 255).astype(np.float32)
    colours = (_without_fringe(crop) / 255).astype(np.float32)

    if is_axis_known:
        centre = (view.shape[1] / 2 - left, view.shape[0] / 2 - top)
        unit = float(view.shape[0])
    else:
        centre = ((right - left) / 2, (bottom - top) / 2)
        unit = float(bottom - top)
    scale = min(1.0, max_side_px / max(alpha.shape))
    if scale < 1:
        size = (max(1, round(alpha.shape[1] * scale)), max(1, round(alpha.shape[0] * scale)))
        alpha = np.asarray(cv2.resize(alpha, size, interpolation=cv2.INTER_AREA), np.float32)
        colours = np.asarray(cv2.resize(colours, size, interpolation=cv2.INTER_AREA), np.float32)
    return SubjectImage(alpha, colours, (float(centre[0] * scale), float(centre[1] * scale)), unit * scale)


def have_common_frame(views: Sequence[ForegroundImage]) -> bool:
    """Whether views come from one turntable: frames of one size, in which the subject is about as high in all."""
    if len(views) < 2 or len({view.shape for view in views}) > 1:
        return False
    heights = [int((view[..., 3] >= SOLID_ALPHA).any(axis=1).sum()) for view in views]
    return max(heights) <= MOST_HEIGHT_RATIO * min(heights)


def _without_fringe(crop: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Colours (H, W, 3) in which every pixel that the background shines through has its nearest pure pixel's."""
    pure = crop[..., 3] >= PURE_ALPHA
    if pure.all():
        return crop[..., :3]
    if not pure.any():
        pure = crop[..., 3] >= crop[..., 3].max()
    impure = (~pure).astype(np.uint8)
    labels = np.asarray(cv2.distanceTransformWithLabels(impure, cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL)[1], int)
    colour_of_label = np.zeros((labels.max() + 1, 3), np.uint8)
    colour_of_label[labels[pure]] = crop[..., :3][pure]
    return colour_of_label[labels]


def guess_back_colours(image: SubjectImage) -> NDArray[np.float32]:
    """Colours (H, W, 3) for the side that nobody has seen: the near side's, without its details.

    A blur that stops at the mask, wide enough that writing is gone and narrow enough that stripes stay stripes.
    """
    sigma_px = 0.03 * max(image.alpha.shape)
    weight = (image.alpha >= 0.5).astype(np.float32)
    blurred = cv2.GaussianBlur(image.colours * weight[..., None], (0, 0), sigma_px)
    total = cv2.GaussianBlur(weight, (0, 0), sigma_px)[..., None]
    return np.where(total > 1e-3, blurred / np.maximum(total, 1e-3), image.colours)


def sample_bilinear(
    image: NDArray[np.float32] | NDArray[np.uint8], x_px: NDArray[np.floating], y_px: NDArray[np.floating]
) -> NDArray[np.float32]:
    """Values of an image between its pixels; beyond its border, those of the border.

    Args:
        image: (H, W) or (H, W, C).
        x_px: (P,) columns, where 0.5 is the middle of the first.
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
        to_right, to_bottom = to_right[:, None], to_bottom[:, None]
    upper = image[top, left] * (1 - to_right) + image[top, right] * to_right
    lower = image[bottom, left] * (1 - to_right) + image[bottom, right] * to_right
    return (upper * (1 - to_bottom) + lower * to_bottom).astype(np.float32, copy=False)
