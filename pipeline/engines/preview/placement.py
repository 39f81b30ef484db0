"""Places the silhouettes of several views around one subject: their scale and the position of the rotation axis.

Every level view is scaled so that the subject has the same height in all. A view from above or below gets the scale and
the position at which its extents fit those of the level views. Knows nothing of colours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.engines.preview.subject_image import SubjectImage
from pipeline.engines.preview.view_direction import ViewDirection

BLUR_CELLS = 0.35
"""Standard deviation of the blur of the masks, which lets the surface run between pixels."""


@dataclass(frozen=True, eq=False)
class Silhouette:
    """The mask of one view and its orthographic camera.

    Attributes:
        mask: (H, W) float32, 0 to 1, blurred by `BLUR_CELLS`.
        direction: from the subject to the camera.
        px_per_metre: scale of the image.
        origin_px: x and y of the origin in the image.
    """

    mask: NDArray[np.float32]  # (H, W)
    direction: ViewDirection
    px_per_metre: float
    origin_px: tuple[float, float]


def place_silhouettes(
    images: Sequence[SubjectImage], directions: Sequence[ViewDirection], *, resolution: int
) -> list[Silhouette]:
    """Place the views around the subject, scaled so that it fills the unit cube.

    Args:
        images: views of one subject.
        directions: where each was taken from; at least one is level.
        resolution: cells along the unit cube.
    """
    images = _fit_vertical_views(images, directions)
    level = [image for image, direction in zip(images, directions, strict=True) if direction.is_level]
    # Lengths in `unit_px` are the same in all views. The body is as high as the lowest top and the highest bottom.
    up = min(p.centre_px[1] / p.unit_px for p in level)
    down = min((p.alpha.shape[0] - p.centre_px[1]) / p.unit_px for p in level)
    metres_per_unit = min(1 / (up + down), 0.5 / _reach(images, directions))
    silhouettes = []
    for image, direction in zip(images, directions, strict=True):
        px_per_metre = image.unit_px / metres_per_unit
        margin = int(np.ceil(3 * px_per_metre / resolution)) + 2
        sigma_px = max(BLUR_CELLS * px_per_metre / resolution, 0.4)
        blurred = cv2.GaussianBlur(np.pad(image.alpha, margin), (0, 0), sigma_px)
        middle = image.centre_px[1] - ((up - down) / 2 * image.unit_px if direction.is_level else 0.0)
        origin = (image.centre_px[0] + margin, middle + margin)
        silhouettes.append(Silhouette(np.asarray(blurred, np.float32), direction, px_per_metre, origin))
    return silhouettes


def _extents(image: SubjectImage) -> tuple[float, float, float, float]:
    """Return how far an image reaches from its centre to the left, right, top and bottom, in units."""
    height, width = image.alpha.shape
    x, y = image.centre_px
    return x / image.unit_px, (width - x) / image.unit_px, y / image.unit_px, (height - y) / image.unit_px


def _reach(images: Sequence[SubjectImage], directions: Sequence[ViewDirection]) -> float:
    """Return how far the intersection of all views can extend from the axis along x or z.

    Seen from above, each view bounds a strip, or a rectangle; the corners of their intersection are crossings of their
    borders.
    """
    normals_, limits_ = [], []
    for image, direction in zip(images, directions, strict=True):
        left, right, up, down = _extents(image)
        across = direction.rightward[[0, 2]]
        normals_ += [across, -across]
        limits_ += [right, left]
        if not direction.is_level:
            normals_ += [direction.upward[[0, 2]], -direction.upward[[0, 2]]]
            limits_ += [up, down]
    normals, limits = np.array(normals_), np.array(limits_)
    reach = 0.0
    for first in range(len(normals)):
        for second in range(first):
            pair = normals[[first, second]]
            if abs(np.linalg.det(pair)) > 1e-6:
                corner = np.linalg.solve(pair, limits[[first, second]])
                if (normals @ corner <= limits + 1e-9).all():
                    reach = max(reach, float(np.abs(corner).max()))
    return max(reach, float(limits.max()))


def _fit_vertical_views(images: Sequence[SubjectImage], directions: Sequence[ViewDirection]) -> list[SubjectImage]:
    """Give the views from above and below the scale and the centre at which they fit the level views.

    Seen from the side of a level view, the subject in a vertical view spans an interval, which is as wide as the level
    view and has its middle at the same place.
    """
    level = [(image, direction) for image, direction in zip(images, directions, strict=True) if direction.is_level]
    fitted = []
    for image, direction in zip(images, directions, strict=True):
        if direction.is_level:
            fitted.append(image)
            continue
        rows, columns = np.nonzero(image.alpha >= 0.5)
        axes, middles, widths, wanted_middles, wanted_widths = [], [], [], [], []
        for other, side in level:
            # The level view's axis across, along the right and the lower side of the vertical image.
            axis = np.array([direction.rightward @ side.rightward, -direction.upward @ side.rightward])
            across = columns * axis[0] + rows * axis[1]
            left, right, _, _ = _extents(other)
            axes.append(axis)
            middles.append((across.min() + across.max() + axis.sum()) / 2)
            widths.append(across.max() - across.min() + np.abs(axis).sum())
            wanted_middles.append((right - left) / 2)
            wanted_widths.append(right + left)
        unit_px = float(np.mean(np.array(widths) / np.array(wanted_widths)))
        bare_middle = np.array([image.alpha.shape[1], image.alpha.shape[0]]) / 2
        offsets = np.array(middles) - unit_px * np.array(wanted_middles) - np.array(axes) @ bare_middle
        moved = np.linalg.lstsq(np.array(axes), offsets, rcond=None)[0]  # the least move if one side is unknown
        x, y = bare_middle + moved
        fitted.append(replace(image, centre_px=(float(x), float(y)), unit_px=unit_px))
    return fitted
