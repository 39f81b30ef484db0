"""Measures of a contour that tell flat subjects from round ones. Knows nothing of heights, colours or cameras."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

SIDE_PX = 256  # the mask is measured at this size, so that the measures do not depend on the image's resolution
MARGIN_PX = 8
LEVEL = 0.5

CHORD = 0.16  # of the longer side: the piece of contour whose straightness is measured
SAGITTA = 0.02  # of the chord: a circle as wide as the subject has 0.04, a digitised line up to 0.015
STRAIGHT_FROM, STRAIGHT_TO = 0.35, 0.6  # straight share of the contour below which nothing, above which all is flat
SYMMETRIC = 0.92  # overlap of the mask with its mirror image
ONE_RUN = 0.85  # share of the rows that hold a single run of the mask
RECTANGULAR = 0.88  # area relative to the bounding rectangle
FLAT_AREAS, FLAT_DEPTHS = (0.0, 0.7, 0.9), (0.1, 0.55, 1.0)
"""Depth of a subject of straight contours by `ContourShape.area`: slender shapes and plates with gaps are thin, and a
subject that is square from the front is taken for a cube or a drum."""


@dataclass(frozen=True)
class ContourShape:
    """Measures of a mask.

    Attributes:
        straight: share of the contour's length that is straight over `CHORD`.
        symmetry: intersection over union with the mirror image about the vertical axis.
        one_run: share of the rows that hold one run of pixels.
        rectangularity: area relative to that of the smallest rectangle around the mask, at any angle.
        area: area relative to the square of that rectangle's longer side.
    """

    straight: float
    symmetry: float
    one_run: float
    rectangularity: float
    area: float

    @property
    def is_symmetric(self) -> bool:
        """Whether the subject is its own mirror image, nearly."""
        return self.symmetry >= SYMMETRIC

    @property
    def is_turned(self) -> bool:
        """Whether the mask is that of a body turned on a lathe: symmetric, one run in each row, and no rectangle."""
        return self.is_symmetric and self.one_run >= ONE_RUN and self.rectangularity < RECTANGULAR

    @property
    def depth(self) -> float:
        """Depth of the subject, 0 to 1: 1 for round contours and turned bodies, less the straighter the contour is."""
        if self.is_turned:
            return 1.0
        flatness = np.clip((self.straight - STRAIGHT_FROM) / (STRAIGHT_TO - STRAIGHT_FROM), 0, 1)
        return float(1 - flatness * (1 - np.interp(self.area, FLAT_AREAS, FLAT_DEPTHS)))


def measure_contour(alpha: NDArray[np.float32]) -> ContourShape:
    """Measure a mask.

    Args:
        alpha: (H, W) float32, 0 to 1, cropped to the subject, with at least one pixel above 0.5.
    """
    scale = SIDE_PX / max(alpha.shape)
    size = (max(1, round(alpha.shape[1] * scale)), max(1, round(alpha.shape[0] * scale)))
    resized = cv2.resize(alpha, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    smooth = cv2.GaussianBlur(np.pad(resized, MARGIN_PX), (0, 0), max(1.0, 0.5 * scale))
    solid = smooth > LEVEL
    if not solid.any():
        return ContourShape(straight=0.0, symmetry=0.0, one_run=0.0, rectangularity=0.0, area=0.0)
    contours = cv2.findContours(solid.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)[0]
    width, height = cv2.minAreaRect(np.concatenate(contours))[1]
    area, longer = float(solid.sum()), max(width, height) + 1
    return ContourShape(
        straight=_straight_share([contour[:, 0].astype(np.float64) for contour in contours]),
        symmetry=_symmetry(solid),
        one_run=_one_run_share(solid),
        rectangularity=area / ((width + 1) * (height + 1)),
        area=area / longer**2,
    )


def _straight_share(contours: list[NDArray[np.float64]]) -> float:
    """Return the share of the length of closed contours, each (N, 2) in pixels, that is straight over `CHORD`."""
    total = straight = 0.0
    for contour in contours:
        steps = np.hypot(*(np.roll(contour, -1, axis=0) - contour).T)
        along = np.concatenate([[0.0], np.cumsum(steps)])
        length, chord = float(along[-1]), CHORD * SIDE_PX
        total += length
        if length < 2 * chord:  # a closed contour this short is no line
            continue
        # A point a pixel, and pieces of `chord` pixels that start at each.
        count, piece = int(length), int(chord)
        at = np.arange(count + piece) * (length / count) % length
        closed = np.concatenate([contour, contour[:1]])
        points = np.stack([np.interp(at, along, closed[:, axis]) for axis in (0, 1)], axis=1)
        # Averaged over 5 pixels: the staircase of pixels is not a property of the contour.
        points = np.mean([np.roll(points, shift, axis=0) for shift in range(-2, 3)], axis=0)
        windows = np.lib.stride_tricks.sliding_window_view(points, piece, axis=0)[2 : count + 1]  # (N, 2, piece)
        first, last = windows[..., 0], windows[..., -1]
        direction = (last - first) / np.maximum(np.linalg.norm(last - first, axis=1, keepdims=True), 1e-9)
        offset = windows - first[..., None]
        sagitta = np.abs(offset[:, 0] * direction[:, 1:] - offset[:, 1] * direction[:, :1]).max(axis=1)
        is_straight = sagitta < SAGITTA * chord
        # A pixel is straight if any straight piece covers it.
        covered = np.zeros(len(points) + 1)
        starts = np.flatnonzero(is_straight) + 2
        np.add.at(covered, starts, 1)
        np.add.at(covered, np.minimum(starts + piece, len(points)), -1)
        on_line = np.cumsum(covered)[: len(points)] > 0
        on_line[: len(points) - count] |= on_line[count:]
        straight += length * float(on_line[:count].mean())
    return straight / total if total else 0.0


def _symmetry(solid: NDArray[np.bool_]) -> float:
    """Return the intersection over union of a mask with its mirror image about the middle of its bounding box."""
    columns = np.flatnonzero(solid.any(axis=0))
    crop = solid[:, columns[0] : columns[-1] + 1]
    return float((crop & crop[:, ::-1]).sum() / (crop | crop[:, ::-1]).sum())


def _one_run_share(solid: NDArray[np.bool_]) -> float:
    """Return the share of the mask's rows that hold exactly one run of pixels."""
    starts = solid[:, 1:] & ~solid[:, :-1]
    runs = starts.sum(axis=1)[solid.any(axis=1)]
    return float((runs == 1).mean())
