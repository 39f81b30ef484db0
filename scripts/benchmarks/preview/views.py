"""Several views: overlap with the truth at stated and at guessed angles, right guesses, and unrelated views.

`python -m scripts.benchmarks preview views [--images DIR]`: the images of DIR are single views of different subjects.
"""

from __future__ import annotations

import itertools
import time
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.engines.base import GenerationOptions
from pipeline.engines.preview.arrangement import arrange_views
from pipeline.engines.preview.engine import PreviewEngine
from pipeline.errors import UnreadableImage
from schemas.contract import ViewAngle
from tests.reference.carved_overlap import inside, share_of_hull, visual_hull
from tests.reference.solids import overlap
from tests.reference.subjects import SUBJECTS, crop, subject_views

SETS: tuple[tuple[ViewAngle, ...], ...] = (
    (0.0, 180.0),
    (0.0, 90.0),
    (0.0, 270.0),
    (0.0, 90.0, 180.0),
    (0.0, 270.0, 180.0),
    (0.0, 180.0, 90.0),
    (0.0, 90.0, 270.0),
    (0.0, 120.0, 240.0),
    (0.0, 90.0, "top"),
    (0.0, 90.0, 180.0, 270.0),
    (0.0, 270.0, 180.0, 90.0),
    (0.0, 180.0, 90.0, 270.0),
    (0.0, 90.0, 180.0, "top"),
    (0.0, 90.0, 180.0, 270.0, "top"),
    (0.0, 60.0, 120.0, 180.0, 240.0, 300.0),
    (0.0, 45.0, 90.0, 135.0, 180.0, 225.0, 270.0, 315.0),
)
CARVED = (SETS[3], SETS[4], SETS[7], SETS[8], SETS[9], SETS[13])
NEAR, FAR = 4.0, 12.0
"""Distances of the camera, in sides of the unit cube: with and nearly without perspective."""


@cache
def view(name: str, angle: ViewAngle, distance: float, is_cropped: bool) -> NDArray[np.uint8]:
    """One view of a subject; cropped, its position in the frame is lost."""
    if is_cropped:
        return crop(view(name, angle, distance, False))
    return subject_views(name, [angle], distance=distance)[0]


def main(images: str | None) -> None:
    """Print the tables."""
    _print_overlaps()
    _print_guesses()
    _print_unrelated(images)


def _print_overlaps() -> None:
    print("Overlap with the truth, as a share of that of the true hull (views without perspective, 192 cells)")
    print(f"{'subject':<10} {'angles':<24} {'hull':>6} {'given':>6} {'guessed':>8} {'seconds':>8}  guess")
    for name, angles in itertools.product(SUBJECTS, CARVED):
        views = [view(name, angle, FAR, True) for angle in angles]
        shares = []
        for given in (angles, None):
            started = time.perf_counter()
            options = GenerationOptions(seed=1, resolution=192, view_angles=given)
            generation = PreviewEngine().generate(views, options)
            seconds = time.perf_counter() - started
            shares.append(share_of_hull(generation.mesh, name, angles))
        hull = overlap(visual_hull(name, angles), inside(name))
        guess = "right" if generation.view_angles == angles else str(generation.view_angles)
        print(f"{name:<10} {_short(angles):<24} {hull:6.3f} {shares[0]:6.3f} {shares[1]:8.3f} {seconds:8.2f}  {guess}")


def _print_guesses() -> None:
    print("\nGuessed angles of consistent views: right guesses, warnings about views that disagree, refusals")
    print(
        f"{'distance':<9} {'cropped':<8} {'sets':>5} {'right':>6} {'sure and wrong':>15} {'warned':>7} {'refused':>8}"
    )
    for distance, is_cropped in itertools.product((FAR, NEAR), (False, True)):
        right = wrong = warned = refused = 0
        for name, angles in itertools.product(SUBJECTS, SETS):
            views = [view(name, angle, distance, is_cropped) for angle in angles]
            try:
                arrangement = arrange_views(views, None, max_side_px=1024)
            except UnreadableImage:
                refused += 1
                continue
            is_right = arrangement.angles == angles
            right += is_right
            wrong += not is_right and (arrangement.confidence or 0) > 0.8
            warned += len(arrangement.warnings) > 1
        count = len(SUBJECTS) * len(SETS)
        print(f"{distance:<9g} {is_cropped!s:<8} {count:5} {right:6} {wrong:15} {warned:7} {refused:8}")


def _print_unrelated(images: str | None) -> None:
    """Sets of views of different subjects, all from the front."""
    single = {name: view(name, 0.0, FAR, True) for name in SUBJECTS}
    if images is not None:
        for path in sorted(Path(images).glob("*.png")):
            picture = Image.open(path)
            if picture.mode == "RGBA":
                single[path.stem] = np.asarray(picture)
    print(f"\nViews of different subjects, of {len(single)} subjects")
    print(f"{'views':>5} {'sets':>5} {'refused':>8} {'warned':>7} {'silent':>7}")
    rng = np.random.default_rng(0)
    for count in range(2, min(8, len(single)) + 1):
        refused = warned = silent = 0
        for _ in range(20):
            names = rng.choice(list(single), size=count, replace=False)
            try:
                arrangement = arrange_views([single[str(name)] for name in names], None, max_side_px=1024)
            except UnreadableImage:
                refused += 1
                continue
            is_warned = len(arrangement.warnings) > 1
            warned += is_warned
            silent += not is_warned
        print(f"{count:5} {20:5} {refused:8} {warned:7} {silent:7}")


def _short(angles: tuple[ViewAngle, ...]) -> str:
    return " ".join(angle if isinstance(angle, str) else f"{angle:g}" for angle in angles)
