from __future__ import annotations

import cv2
import numpy as np
import pytest

from pipeline.engines.preview.fringe import without_fringe
from tests.fakes.preview_edges import GROUNDS, edge_error, edge_of, photographed
from tests.fakes.preview_subjects import SUBJECTS

SIDE = 240


def drawn_jar(*, outline_px: int = 0, outline: tuple[int, int, int] = (25, 20, 30)) -> tuple[np.ndarray, np.ndarray]:
    """Colours of the subject, defined everywhere, and its antialiased alpha in [0, 1], both drawn at four times."""
    scale = 4
    pattern = np.random.default_rng(2).normal(0, 3, (SIDE, SIDE, 1))
    mask = np.zeros((SIDE * scale, SIDE * scale), np.uint8)
    cv2.ellipse(mask, (480, 560), (330, 300), 0, 0, 360, 255, -1)
    cv2.rectangle(mask, (380, 90), (580, 400), 255, -1)
    inner = cv2.erode(mask, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * outline_px * scale + 1,) * 2))
    colours = np.empty((SIDE * scale, SIDE * scale, 3), np.float32)
    colours[:] = (190, 60, 40)
    colours[:500] = (40, 70, 160)
    colours[inner == 0] = outline if outline_px else colours[inner == 0]
    small = cv2.resize(colours, (SIDE, SIDE), interpolation=cv2.INTER_AREA) + pattern
    alpha = cv2.resize(mask, (SIDE, SIDE), interpolation=cv2.INTER_AREA).astype(np.float32) / 255
    return np.clip(small, 0, 255), alpha


@pytest.mark.parametrize("blur_px", [0, 1.0])
@pytest.mark.parametrize("is_kept", [True, False])
@pytest.mark.parametrize("ground", GROUNDS)
def test_the_background_in_the_edge_of_a_hard_mask_disappears(ground: str, is_kept: bool, blur_px: float) -> None:
    colours, alpha = drawn_jar()
    view = photographed(colours, alpha, GROUNDS[ground], is_kept=is_kept, blur_px=blur_px)

    found = without_fringe(view)

    assert edge_error(found, colours, alpha) < 0.5 * edge_error(view[..., :3], colours, alpha)


@pytest.mark.parametrize(
    ("outline_px", "outline", "outside"),
    [
        (width, outline, outside)
        for width in (1, 2, 3, 5)
        for outline in ((25, 20, 30), (240, 240, 235))
        for outside in ((0, 0, 0), (255, 255, 255), (127, 127, 127))
        # Nothing tells a white line of one pixel from the rest of a white background.
        if not (width == 1 and outline == (240, 240, 235) and outside == (255, 255, 255))
    ],
)
def test_a_drawn_outline_stays_to_the_bit(
    outline_px: int, outline: tuple[int, int, int], outside: tuple[int, int, int]
) -> None:
    colours, alpha = drawn_jar(outline_px=outline_px, outline=outline)
    view = np.dstack([np.round(colours), (alpha >= 0.5) * 255]).astype(np.uint8)
    view[alpha < 0.5] = (*outside, 0)

    found = without_fringe(view)

    assert np.array_equal(found[alpha >= 0.5], view[alpha >= 0.5, :3])


@pytest.mark.parametrize("ground", GROUNDS)
def test_the_background_goes_from_a_dark_outline_and_the_outline_stays(ground: str) -> None:
    colours, alpha = drawn_jar(outline_px=5)
    view = photographed(colours, alpha, GROUNDS[ground], is_kept=True)

    found = without_fringe(view)

    assert edge_error(found, colours, alpha) < 0.5 * edge_error(view[..., :3], colours, alpha)
    assert found[edge_of(alpha)].mean() < 60


def test_shading_towards_the_edge_is_no_fringe() -> None:
    colours, alpha = drawn_jar()
    depth = cv2.distanceTransform((alpha >= 0.5).astype(np.uint8), cv2.DIST_L2, 5)[..., None]
    shaded = colours + (255 - colours) * np.clip(0.6 - depth / 30, 0, 1)
    view = np.dstack([shaded, (alpha >= 0.5) * 255]).astype(np.uint8)
    view[alpha < 0.5] = (255, 255, 255, 0)

    assert np.array_equal(without_fringe(view)[alpha >= 0.5], view[alpha >= 0.5, :3])


@pytest.mark.parametrize("name", ["bottle", "owl", "car"])
def test_the_edge_of_a_subject_drawn_on_white_comes_closer_to_the_truth(name: str) -> None:
    subject = SUBJECTS[name]()
    colours, alpha = without_fringe(subject).astype(np.float32), subject[..., 3] / np.float32(255)
    view = photographed(colours, alpha, (255, 255, 255), is_kept=True)

    found = without_fringe(view)

    assert edge_error(found, colours, alpha) < 0.5 * edge_error(view[..., :3], colours, alpha)


def test_an_image_without_transparent_pixels_stays_as_it_is() -> None:
    view = np.random.default_rng(0).integers(0, 256, (20, 30, 4), np.uint8)
    view[..., 3] = 255

    assert np.array_equal(without_fringe(view), view[..., :3])


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (9, 1), (3, 3)])
def test_a_subject_of_few_pixels_keeps_its_colours(shape: tuple[int, int]) -> None:
    view = np.zeros((20, 20, 4), np.uint8)
    view[:] = (255, 255, 255, 0)
    view[4 : 4 + shape[0], 4 : 4 + shape[1]] = (200, 30, 30, 255)

    assert (without_fringe(view) == (200, 30, 30)).all()
