"""Cut-out views as the preview engine samples them: mask and colours of the subject, cropped, at a bounded size."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.engines.base import View
from pipeline.errors import UnreadableImage

SOLID_ALPHA = 128  # the mask is where alpha reaches this
PURE_ALPHA = 250  # pixels below are mixed with the background and take the colour of the nearest pure one


@dataclass(frozen=True, eq=False)
class Picture:
    """The subject of one view, cropped to its bounding box.

    Attributes:
        alpha: (H, W) float32, 0 to 1.
        colours: (H, W, 3) float32 sRGB, 0 to 1; defined everywhere, also outside the mask.
        centre_x_px: column of the crop that lies on the axis around which the views stand.
    """

    alpha: NDArray[np.float32]
    colours: NDArray[np.float32]
    centre_x_px: float


def crop_subject(view: View, *, max_side_px: int, is_axis_known: bool) -> Picture:
    """Crop a view to its subject and shrink it where it is larger than needed.

    Args:
        view: (H, W, 4) uint8 RGBA, straight alpha.
        max_side_px: longest side of the result.
        is_axis_known: the middle of the frame is the axis; else the middle of the subject is.

    Raises:
        UnreadableImage: no pixel is solid.
    """
    solid = view[..., 3] >= SOLID_ALPHA
    rows, columns = np.flatnonzero(solid.any(axis=1)), np.flatnonzero(solid.any(axis=0))
    if len(rows) == 0:
        raise UnreadableImage("the picture holds no subject: every pixel is transparent")
    top, bottom, left, right = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
    crop = view[top:bottom, left:right]
    alpha = (crop[..., 3] / 255).astype(np.float32)
    colours = (_without_fringe(crop) / 255).astype(np.float32)

    centre_x = view.shape[1] / 2 - left if is_axis_known else (right - left) / 2
    scale = min(1.0, max_side_px / max(alpha.shape))
    if scale < 1:
        size = (max(1, round(alpha.shape[1] * scale)), max(1, round(alpha.shape[0] * scale)))
        centre_x *= size[0] / alpha.shape[1]
        alpha = np.asarray(cv2.resize(alpha, size, interpolation=cv2.INTER_AREA), np.float32)
        colours = np.asarray(cv2.resize(colours, size, interpolation=cv2.INTER_AREA), np.float32)
    return Picture(alpha, colours, float(centre_x))


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


def far_side(picture: Picture) -> NDArray[np.float32]:
    """Colours (H, W, 3) for the side that nobody has seen: the near side's, without its details.

    A blur that stops at the mask, wide enough that eyes and writing are gone and narrow enough that trousers stay blue.
    """
    sigma_px = 0.08 * max(picture.alpha.shape)
    weight = (picture.alpha >= 0.5).astype(np.float32)
    blurred = cv2.GaussianBlur(picture.colours * weight[..., None], (0, 0), sigma_px)
    total = cv2.GaussianBlur(weight, (0, 0), sigma_px)[..., None]
    return np.where(total > 1e-3, blurred / np.maximum(total, 1e-3), picture.colours)


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
