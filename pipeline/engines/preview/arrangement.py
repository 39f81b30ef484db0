"""Decides where several views were taken from, and whether they can show one subject.

The rule, with shares measured by `unexplained_shares` on the chosen angles and colours by `colour_distance`:

- A mean share above `REFUSED_MEAN` is refused: no body looks like that. Where the colours differ by more than
  `REFUSED_COLOURS` too, a mean above `REFUSED_MEAN_OF_OTHER_COLOURS` is enough.
- A share above `DOUBTED_SHARE`, or colours further apart than `DOUBTED_COLOURS`, is warned of, with the numbers. Two
  silhouettes from the side hardly ever contradict each other, so the colours of two must agree better.
- Stated sides are kept, but warned of when the colours of front, back and sides fit the opposite sides better.

Rendered views of one subject have shares up to 0.06 and colours up to 0.41, two of them up to 0.34; views of five
different ones have a mean share of at least 0.1 and colours from 0.55 on (see `scripts.benchmarks preview views`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.engines.base import ForegroundImage
from pipeline.engines.preview.consistency import RowColours, colour_distance, row_colours, unexplained_shares
from pipeline.engines.preview.guess_angles import guess_angles, mirror_penalty
from pipeline.engines.preview.subject_image import SubjectImage, crop_subject, have_common_frame, shrink_subject
from pipeline.engines.preview.view_direction import ViewDirection, in_words, name_of_angle
from pipeline.errors import InvalidRequest, UnreadableImage
from schemas.contract import ViewAngle

COARSE_PX = 96
REFUSED_MEAN = 0.3
REFUSED_COLOURS, REFUSED_MEAN_OF_OTHER_COLOURS = 0.5, 0.1
DOUBTED_SHARE = 0.08
DOUBTED_COLOURS = 0.42
DOUBTED_COLOURS_OF_TWO = 0.36
SWAPPED_PENALTY = 1.2
"""Log-likelihood by which the colours must prefer the opposite sides."""
OFF_AXIS_SHARE = 0.05
"""From this share on, frames of equal size may be something else than the frames of one turntable."""


@dataclass(frozen=True, eq=False)
class Arrangement:
    """Views and where they were taken from.

    Attributes:
        images: the subjects of the views, at full size.
        angles: one for each view.
        confidence: 0 to 1 if the angles are guessed; None if they are given.
        warnings: sentences for the caller.
    """

    images: list[SubjectImage]
    angles: tuple[ViewAngle, ...]
    confidence: float | None = None
    warnings: tuple[str, ...] = ()

    @property
    def directions(self) -> list[ViewDirection]:
        """The direction of each view."""
        return [ViewDirection.of_angle(angle) for angle in self.angles]


@dataclass(frozen=True, eq=False)
class _Candidate:
    images: list[SubjectImage]
    small: list[SubjectImage]
    angles: tuple[ViewAngle, ...]
    confidence: float | None
    shares: NDArray[np.float64]  # (V,)

    @property
    def directions(self) -> list[ViewDirection]:
        return [ViewDirection.of_angle(angle) for angle in self.angles]


def arrange_views(
    views: Sequence[ForegroundImage], angles: tuple[ViewAngle, ...] | None, *, max_side_px: int
) -> Arrangement:
    """Crop the views and find their angles.

    Args:
        views: at least one, each (H, W, 4).
        angles: one for each view; None if they are to be guessed.
        max_side_px: largest side of the images.

    Raises:
        InvalidRequest: the number of angles differs, or several views have none from the side among them.
        UnreadableImage: a view holds no subject, or they cannot show one subject.
    """
    if angles is not None and len(angles) != len(views):
        raise InvalidRequest(f"view_angles must be one angle for each view, got {len(angles)} for {len(views)}")
    if len(views) == 1:
        image = crop_subject(views[0], max_side_px=max_side_px, is_axis_known=False)
        return Arrangement([image], angles or (0.0,))
    if angles is not None and all(isinstance(angle, str) for angle in angles):
        raise InvalidRequest("view_angles must have at least one view from the side, got only top and bottom")
    is_axis_known = have_common_frame(views)
    chosen = _choose(views, angles, max_side_px=max_side_px, is_axis_known=is_axis_known)
    if is_axis_known and chosen.shares.max() > OFF_AXIS_SHARE:
        centred = _choose(views, angles, max_side_px=max_side_px, is_axis_known=False)
        chosen = min(chosen, centred, key=lambda candidate: float(candidate.shares.sum()))
    rows = [row_colours(image) for image in chosen.small]
    distance = colour_distance(rows, chosen.directions)
    _refuse_different_subjects(chosen, distance)
    warnings = [*_assumption(chosen), *_doubts(chosen, distance), *_exchanged_sides(chosen, rows)]
    return Arrangement(chosen.images, chosen.angles, chosen.confidence, tuple(warnings))


def _choose(
    views: Sequence[ForegroundImage],
    angles: tuple[ViewAngle, ...] | None,
    *,
    max_side_px: int,
    is_axis_known: bool,
) -> _Candidate:
    images = [crop_subject(view, max_side_px=max_side_px, is_axis_known=is_axis_known) for view in views]
    small = [shrink_subject(image, max_side_px=COARSE_PX) for image in images]
    confidence = None
    if angles is None:
        guess = guess_angles(small)
        angles, confidence = guess.angles, guess.confidence
    shares = unexplained_shares(small, [ViewDirection.of_angle(angle) for angle in angles])
    return _Candidate(images, small, angles, confidence, shares)


def _refuse_different_subjects(chosen: _Candidate, distance: float) -> None:
    shares = chosen.shares
    most = REFUSED_MEAN_OF_OTHER_COLOURS if distance > REFUSED_COLOURS else REFUSED_MEAN
    if shares.mean() > most:
        raise UnreadableImage(
            f"the views have no body in common: from {in_words(chosen.angles)}, the silhouettes contradict each other "
            f"in {_percentages(shares)} of their areas; they must show one subject, each view from its angle"
        )


def _assumption(chosen: _Candidate) -> list[str]:
    if chosen.confidence is None:
        return []
    return [
        f"The views are taken to be from {in_words(chosen.angles)}, guessed from the images with a confidence of "
        f"{chosen.confidence:.2f}; state where they are from with view_angles."
    ]


def _doubts(chosen: _Candidate, distance: float) -> list[str]:
    """Return warnings about views that disagree."""
    warnings = []
    if chosen.shares.max() > DOUBTED_SHARE:
        warnings.append(
            f"The views disagree: {_percentages(chosen.shares)} of the silhouettes from {in_words(chosen.angles)} "
            "contradict the other views. They may show different subjects, or be from other angles."
        )
    from_the_side = sum(direction.is_level for direction in chosen.directions)
    usual = DOUBTED_COLOURS_OF_TWO if from_the_side == 2 else DOUBTED_COLOURS
    if distance > usual:
        warnings.append(
            f"The colours of neighbouring views differ by {distance:.2f} where they should show the same; up to "
            f"{usual:g} is usual. They may show different subjects, or be from other angles."
        )
    return warnings


def _exchanged_sides(chosen: _Candidate, rows: Sequence[RowColours]) -> list[str]:
    """Return a warning if stated sides look exchanged; without front and back the colours do not tell."""
    sides = [name_of_angle(angle) for angle in chosen.angles if not isinstance(angle, str) and angle % 180]
    if chosen.confidence is not None or not sides or not {0.0, 180.0} <= set(chosen.angles):
        return []
    if mirror_penalty(rows, chosen.directions) < SWAPPED_PENALTY:
        return []
    return [
        f"The sides look exchanged: the colours of the views from {' and '.join(sides)} fit the opposite sides "
        "better. `right` is to the right of somebody who looks at the front."
    ]


def _percentages(shares: NDArray[np.float64]) -> str:
    return ", ".join(f"{share:.0%}" for share in shares)
