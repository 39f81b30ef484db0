"""Depth order of the limbs that a subject stands on: of two feet, the lower one in the image is nearer.

Feet stand on one ground, and a camera looks at it from above: that orders legs in front and behind without any colour.
Only limbs that the mask shows apart are moved. Knows nothing of images.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from pipeline.engines.preview.mask_grid import MaskGrid

# Lengths are metres: the longer side of the subject is 1.
SHORTEST = 0.12  # limb, from its foot to where it joins the body
LONGEST = 0.6
SLENDER = 1.5  # least length of a limb relative to its mean width
GROUND = 0.15  # height above the lowest foot in which feet stand
LEAST_SPREAD = 0.015  # of the feet's heights; less is the raster, or feet side by side
SLOPE = 5.0  # depth by height of a foot in the image: a camera 12 degrees above the horizon
ROW_STEP = 0.015  # between the heights at which the mask is cut
SMOOTHING = 0.02  # standard deviation of the blur that bends a limb into the body


@dataclass(frozen=True, eq=False)
class Limb:
    """A part that hangs from the body.

    Attributes:
        nodes: (rows, columns) bool, the part below its junction.
        foot_m: height of its lowest node above the lowest row of the grid.
        length_m: from the foot to the junction.
    """

    nodes: NDArray[np.bool_]
    foot_m: float
    length_m: float


def limb_offsets(grid: MaskGrid, heights: NDArray[np.float64]) -> NDArray[np.float64] | None:
    """Return how far to move each node toward the camera, (rows, columns) metres; None if nothing is to be moved.

    Args:
        grid: the mask.
        heights: (rows, columns) metres, half the thickness of the body; limbs stay within its greatest.
    """
    limbs = find_limbs(grid)
    feet = np.array([limb.foot_m for limb in limbs])
    if len(limbs) < 2 or np.ptp(feet) < LEAST_SPREAD:
        return None
    room = min(float(heights[limb.nodes].max()) for limb in limbs)
    reach = min(SLOPE * float(np.ptp(feet)) / 2, float(heights.max()) - room)
    if reach <= 0:
        return None
    offsets = np.zeros_like(heights)
    for limb in limbs:
        offsets[limb.nodes] = reach * (1 - 2 * (limb.foot_m - feet.min()) / np.ptp(feet))
    # A blur that is normalised by the mask bends each limb into the body.
    weight = grid.inside.astype(np.float64)
    sigma = SMOOTHING / grid.cell_m
    blurred = cv2.GaussianBlur(offsets * weight, (0, 0), sigma) / np.maximum(
        cv2.GaussianBlur(weight, (0, 0), sigma), 1e-9
    )
    rows, columns = np.asarray(
        ndimage.distance_transform_edt(~grid.inside, return_distances=False, return_indices=True)
    )
    return np.asarray(blurred[rows, columns], np.float64)  # outside as at the nearest node, for the contour


def find_limbs(grid: MaskGrid) -> list[Limb]:
    """Return the slender parts that the subject stands on.

    The part of the mask below a rising cut falls into pieces. Where two pieces meet they end as limbs, and what they
    become is body.
    """
    inside = grid.inside
    lowest = int(np.flatnonzero(inside.any(axis=1))[0])
    highest = min(inside.shape[0], lowest + round((GROUND + LONGEST) / grid.cell_m))
    found: list[Limb] = []
    before, is_body_before = np.zeros(inside.shape, np.int64), np.zeros(1, bool)
    for cut in range(lowest + 1, highest, max(1, round(ROW_STEP / grid.cell_m))):
        below = inside.copy()
        below[cut:] = False
        labels, count = _label(below)
        is_body = np.zeros(count + 1, bool)
        # A node of each earlier piece tells which piece it is part of now.
        nodes = np.zeros(len(is_body_before), np.int64)
        nodes[before.ravel()] = np.arange(before.size)
        becomes = labels.ravel()[nodes[1:]]  # of the pieces 1, 2, …
        met = np.bincount(becomes, minlength=len(is_body)) > 1
        is_body[becomes[is_body_before[1:]]] = True
        for number in np.flatnonzero(met[becomes] & ~is_body_before[1:]) + 1:
            limb = _limb(before == number, grid)
            if limb.foot_m - lowest * grid.cell_m <= GROUND and _is_slender(limb, grid):
                found.append(limb)
        is_body |= met
        before, is_body_before = labels, is_body
        if count == 1 and is_body[1]:
            break
    return found


def _label(mask: NDArray[np.bool_]) -> tuple[NDArray[np.int64], int]:
    """Return the pieces of a mask, numbered from 1, and their number."""
    labels = np.zeros(mask.shape, np.int64)
    count = ndimage.label(mask, output=labels)
    return labels, int(np.asarray(count))


def _limb(nodes: NDArray[np.bool_], grid: MaskGrid) -> Limb:
    rows = np.flatnonzero(nodes.any(axis=1))
    return Limb(nodes, float(rows[0]) * grid.cell_m, float(rows[-1] - rows[0] + 1) * grid.cell_m)


def _is_slender(limb: Limb, grid: MaskGrid) -> bool:
    width_m = limb.nodes.sum() * grid.cell_m**2 / limb.length_m
    return limb.length_m >= SHORTEST and limb.length_m >= SLENDER * width_m
