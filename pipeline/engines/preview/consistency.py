"""How well several views agree about one subject: by their silhouettes, and by the colours that neighbours share.

Works on a coarse grid, in some milliseconds. Knows nothing of how angles are chosen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.engines.preview.placement import Silhouette, place_silhouettes
from pipeline.engines.preview.subject_image import SOLID_ALPHA, SubjectImage, sample_bilinear
from pipeline.engines.preview.view_direction import ViewDirection

CELLS = 48
"""Cells along the unit cube."""
ROWS, POSITIONS, SAMPLES = 48, 33, 12
FAR_COLOURS = 50.0
"""Distance in Lab from which two colours are simply different; black and white are 100 apart."""
LIGHTNESS_WEIGHT = 0.5
"""Weight of the lightness in a distance of colours: it changes with the light, from view to view."""


def unexplained_shares(images: Sequence[SubjectImage], directions: Sequence[ViewDirection]) -> NDArray[np.float64]:
    """Return the share of each silhouette that the visual hull of all does not cover when it is projected back.

    Views of one subject from the stated sides have shares near 0. A border of one cell is forgiven.

    Args:
        images: small views, see `shrink_subject`.
        directions: where each was taken from; at least one is level.

    Returns:
        (V,) 0 to 1.
    """
    silhouettes = place_silhouettes(images, directions, resolution=CELLS)
    axis = (np.arange(CELLS) + 0.5) / CELLS - 0.5
    across = (np.arange(2 * CELLS) + 0.5) / CELLS - 1  # the diagonal of the cube fits in
    x, z = (values.ravel() for values in np.meshgrid(axis, axis, indexing="ij"))
    hull = np.ones((CELLS, CELLS * CELLS), bool)  # rows by height, indexed (x, z) in each
    masks: list[NDArray[np.bool_]] = []
    columns: list[NDArray[np.int64]] = []
    for silhouette in silhouettes:
        direction = silhouette.direction
        right, up = direction.rightward, direction.upward
        if direction.is_level:
            mask = _sample(silhouette, *np.meshgrid(across, axis))
            column = np.floor((x * right[0] + z * right[2] + 1) * CELLS).astype(np.int64)
            hull &= mask[:, column]
        else:
            mask = _sample(silhouette, x * right[0] + z * right[2], x * up[0] + z * up[2])
            column = np.zeros(0, np.int64)
            hull &= mask
        masks.append(mask)
        columns.append(column)
    shares = [
        _unexplained(mask, _projection(hull, column) if len(column) else np.asarray(hull.any(axis=0)))
        for mask, column in zip(masks, columns, strict=True)
    ]
    return np.array(shares)


def _sample(silhouette: Silhouette, right: NDArray[np.float64], up: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Sample a mask at positions on the image plane, in metres: same shape as the positions."""
    column = silhouette.origin_px[0] + silhouette.px_per_metre * right
    row = silhouette.origin_px[1] - silhouette.px_per_metre * up
    return sample_bilinear(silhouette.mask, column.ravel(), row.ravel()).reshape(right.shape) > 0.5


def _projection(hull: NDArray[np.bool_], column: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Project a (rows, cells) hull along the lines of sight of a level view, whose column each cell has."""
    order = np.argsort(column, kind="stable")
    present, starts = np.unique(column[order], return_index=True)
    projection = np.zeros((len(hull), 2 * CELLS), bool)
    projection[:, present] = np.logical_or.reduceat(hull[:, order], starts, axis=1)
    return projection


def _unexplained(mask: NDArray[np.bool_], projection: NDArray[np.bool_]) -> float:
    """Return the share of a mask beyond one cell of a projection; both (rows, columns), or (x z,) seen from above."""
    if mask.ndim == 1:
        mask, projection = mask.reshape(CELLS, CELLS), projection.reshape(CELLS, CELLS)
    near = cv2.dilate(projection.astype(np.uint8), np.ones((3, 3), np.uint8))
    return float((mask & (np.asarray(near) == 0)).sum() / max(1, mask.sum()))


@dataclass(frozen=True, eq=False)
class RowColours:
    """The colours of one view along some rows of the subject.

    Attributes:
        colours: (ROWS, POSITIONS, 3) Lab, from the top of the subject to its bottom; in each row from the left contour
            to the right one.
        is_inside: (ROWS, POSITIONS) bool, false in the gaps of a row.
    """

    colours: NDArray[np.float32]  # (ROWS, POSITIONS, 3)
    is_inside: NDArray[np.bool_]  # (ROWS, POSITIONS)


def row_colours(image: SubjectImage) -> RowColours:
    """Sample the colours of a view along its rows."""
    lab = cv2.cvtColor(image.colours, cv2.COLOR_RGB2LAB)
    solid = image.alpha >= SOLID_ALPHA / 255
    colours, is_inside = np.zeros((ROWS, POSITIONS, 3), np.float32), np.zeros((ROWS, POSITIONS), bool)
    for k, row in enumerate(np.linspace(0.5, image.alpha.shape[0] - 0.5, ROWS).astype(int)):
        inside = np.flatnonzero(solid[row])
        if len(inside):
            columns = np.round(np.linspace(inside[0], inside[-1], POSITIONS)).astype(int)
            colours[k], is_inside[k] = lab[row, columns], solid[row, columns]
    return RowColours(colours, is_inside)


def colour_distance(rows: Sequence[RowColours], directions: Sequence[ViewDirection]) -> float:
    """Return how much the colours of neighbouring level views differ where both see the same, 0 to 1.

    Each row of the subject is taken for an ellipse that touches the contours: the point whose normal is turned by an
    angle from the direction of a view is seen there at the sine of the angle, times half the width.
    """
    level = sorted((d.azimuth_rad, k) for k, d in enumerate(directions) if d.is_level)
    total, weights = 0.0, 0.0
    for (azimuth, k), (next_azimuth, following) in zip(level, level[1:] + level[:1], strict=True):
        gap = (next_azimuth - azimuth) % (2 * np.pi)
        if not 0.1 < gap < np.deg2rad(150):  # more nearly opposite views have too little in common
            continue
        turned = np.linspace(gap - np.pi / 2, np.pi / 2, SAMPLES + 2)[1:-1]
        here, there = (np.round((np.sin(a) + 1) / 2 * (POSITIONS - 1)).astype(int) for a in (turned, turned - gap))
        difference = rows[k].colours[:, here] - rows[following].colours[:, there]
        distance = np.sqrt((LIGHTNESS_WEIGHT * difference[..., 0]) ** 2 + (difference[..., 1:] ** 2).sum(axis=-1))
        weight = rows[k].is_inside[:, here] & rows[following].is_inside[:, there]
        total += float((np.minimum(distance / FAR_COLOURS, 1) * weight).sum()) / max(1, weight.sum())
        weights += 1.0
    return total / weights if weights else 0.0
