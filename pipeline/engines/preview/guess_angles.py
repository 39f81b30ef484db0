"""Guesses where several views were taken from.

The first view is the front. Hypotheses are the usual sets (front, side and back; all four sides; with one from above),
in their usual orders, and views that are evenly spaced or on an arc. A hypothesis is better the more of every
silhouette its visual hull explains, the more alike the colours are along shared rims, and the more common it is; one
that could have failed, because it has more views than a body needs, gains when it fits.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.engines.preview.consistency import RowColours, colour_distance, row_colours, unexplained_shares
from pipeline.engines.preview.subject_image import SubjectImage
from pipeline.engines.preview.view_direction import ViewDirection
from schemas.contract import ViewAngle

SHARE_SCALE = 0.03
"""Unexplained share, summed over the views, that makes a hypothesis e times less likely."""
COLOUR_SCALE = 0.04
"""Distance of colours that makes it e times less likely."""
FIT_BONUS = 2.0
"""Log-likelihood for each view that could have contradicted the others."""

Angles = tuple[ViewAngle, ...]

COMMON_ORDERS: dict[Angles, float] = {
    (0, 180): 1.0,
    (0, 90): 0.7,
    (0, 270): 0.5,
    (0, "top"): 0.02,
    (0, 90, 180): 1.0,
    (0, 270, 180): 0.8,
    (0, 180, 90): 0.3,
    (0, 180, 270): 0.3,
    (0, 90, 270): 0.25,
    (0, 270, 90): 0.25,
    (0, 90, 180, 270): 1.0,
    (0, 270, 180, 90): 0.6,
    (0, 180, 90, 270): 0.3,
    (0, 180, 270, 90): 0.3,
    (0, 90, 270, 180): 0.3,
    (0, 270, 90, 180): 0.3,
}
"""Weights of the usual orders of level views, before the images are seen."""
RARE_ORDER = 0.05
EVEN, EVEN_BACKWARD, ARC = 0.4, 0.2, 0.04
ARC_STEPS = (45.0, 60.0, 30.0)
VERTICAL_FACTOR = 0.1
"""Of a set with one view from above, which usually comes last."""
MOST_PERMUTED = 4
"""More views than this are tried only in their usual orders."""


@dataclass(frozen=True)
class Guess:
    """The most likely angles.

    Attributes:
        angles: one for each view; the first is 0.
        confidence: 0 to 1, their probability among all hypotheses.
    """

    angles: Angles
    confidence: float


def guess_angles(images: Sequence[SubjectImage]) -> Guess:
    """Guess the angles of at least two views.

    Args:
        images: small views, see `shrink_subject`.
    """
    rows = [row_colours(image) for image in images]
    weights = hypotheses(len(images))
    scores = {angles: math.log(weight) + _fit(images, rows, angles) for angles, weight in weights.items()}
    best = max(scores, key=lambda angles: scores[angles])
    total = sum(math.exp(score - scores[best]) for score in scores.values())
    return Guess(best, 1 / total)


def hypotheses(views: int) -> dict[Angles, float]:
    """Return the hypotheses for a number of views, each with its weight before the images are seen."""
    found: dict[Angles, float] = {}

    def add(angles: Sequence[ViewAngle], weight: float) -> None:
        whole: Angles = tuple([angle if isinstance(angle, str) else round(angle % 360, 6) for angle in angles])
        if len(set(whole)) == views:
            found[whole] = max(weight, found.get(whole, 0.0))

    for sign, weight in ((1, EVEN), (-1, EVEN_BACKWARD)):
        add([sign * 360 * k / views for k in range(views)], weight)
        for step in ARC_STEPS:
            if step * (views - 1) < 360 - step:
                add([sign * step * k for k in range(views)], ARC * weight / EVEN)
    if views <= MOST_PERMUTED:
        sides: list[ViewAngle] = [90.0, 180.0, 270.0, "top"]
        for rest in itertools.permutations(sides, views - 1):
            angles: Angles = (0.0, *rest)
            level: Angles = tuple(angle for angle in angles if not isinstance(angle, str))
            factor = 1.0 if level == angles else VERTICAL_FACTOR if angles[-1] == "top" else VERTICAL_FACTOR / 5
            add(angles, COMMON_ORDERS.get(angles, factor * COMMON_ORDERS.get(level, RARE_ORDER)))
        return found
    for order, weight in COMMON_ORDERS.items():
        vertical: Angles = ("top", "bottom")[: views - len(order)]
        if len(order) == 4 and len(order) + len(vertical) == views:
            add((*order, *vertical), weight)
            add((*order, *reversed(vertical)), weight * 0.1)
    return found


def _fit(images: Sequence[SubjectImage], rows: Sequence[RowColours], angles: Angles) -> float:
    """Return the log-likelihood of the views, up to a constant."""
    directions = [ViewDirection.of_angle(angle) for angle in angles]
    # Two level views that are not opposite, or one and a vertical one, agree about some body whatever they show.
    could_fail = len(angles) - (1 if angles == (0, 180) else 2)
    shares = unexplained_shares(images, directions)
    return FIT_BONUS * could_fail - float(shares.sum()) / SHARE_SCALE - mirror_penalty(rows, directions)


def mirror_penalty(rows: Sequence[RowColours], directions: Sequence[ViewDirection]) -> float:
    """Return by how much the colours speak against these sides and for the opposite ones, in log-likelihood.

    Silhouettes do not tell the subject's left side from its right one. Only the difference between the two counts:
    how alike the colours are in general depends on the subject.
    """
    mirrored = [ViewDirection(-d.azimuth_rad % (2 * np.pi), d.elevation_rad) for d in directions]
    return (colour_distance(rows, directions) - colour_distance(rows, mirrored)) / (2 * COLOUR_SCALE)
