"""Several views: where they are from, whether they agree, and what is carved from them."""

from __future__ import annotations

import itertools
from functools import cache

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.engines.base import Generation, GenerationOptions
from pipeline.engines.preview.arrangement import arrange_views
from pipeline.engines.preview.engine import PreviewEngine
from pipeline.engines.preview.view_direction import ViewDirection
from pipeline.errors import InvalidRequest, UnreadableImage
from schemas.contract import ViewAngle
from tests.reference.carved_overlap import share_of_hull
from tests.reference.subjects import SUBJECTS, crop, subject_views

USUAL: tuple[ViewAngle, ...] = (0.0, 90.0, 180.0)


@cache
def view(name: str, angle: ViewAngle) -> NDArray[np.uint8]:
    return crop(subject_views(name, [angle], size=160, distance=12.0)[0])


def views(name: str, *angles: ViewAngle) -> list[NDArray[np.uint8]]:
    return [view(name, angle) for angle in angles]


def generated(images: list[NDArray[np.uint8]], angles: tuple[ViewAngle, ...] | None) -> Generation:
    return PreviewEngine().generate(images, GenerationOptions(seed=1, resolution=96, view_angles=angles))


@pytest.mark.parametrize("name", ["animal", "character", "chair"])
def test_the_usual_set_is_recognised_and_fills_the_true_hull(name: str) -> None:
    guessed = generated(views(name, *USUAL), None)
    given = generated(views(name, *USUAL), USUAL)
    assert guessed.view_angles == USUAL and given.view_angles == USUAL
    assert 0 < (guessed.view_angles_confidence or 0) <= 1 and given.view_angles_confidence is None
    assert "from front, right, back, guessed from the images with a confidence of " in guessed.warnings[0]
    assert given.warnings == ()
    assert np.array_equal(guessed.mesh.vertices, given.mesh.vertices)
    assert share_of_hull(given.mesh, name, USUAL) >= 0.95


@pytest.mark.parametrize(
    "angles",
    [
        (0.0, 180.0),
        (0.0, 270.0),
        (0.0, 270.0, 180.0),
        (0.0, 180.0, 90.0),
        (0.0, 120.0, 240.0),
        (0.0, 90.0, 180.0, 270.0),
        (0.0, 270.0, 180.0, 90.0),
        (0.0, 90.0, 180.0, "top"),
        (0.0, 60.0, 120.0, 180.0, 240.0, 300.0),
    ],
)
def test_other_sets_are_recognised(angles: tuple[ViewAngle, ...]) -> None:
    assert arrange_views(views("character", *angles), None, max_side_px=512).angles == angles


def test_a_view_from_above_carves() -> None:
    angles: tuple[ViewAngle, ...] = (*USUAL, "top")
    with_top, without = generated(views("animal", *angles), angles), generated(views("animal", *USUAL), USUAL)
    assert with_top.mesh.volume() < 0.9 * without.mesh.volume()
    assert share_of_hull(with_top.mesh, "animal", angles) >= 0.95


def test_a_view_from_above_colours_what_faces_it() -> None:
    images = views("teapot", *USUAL, "top")
    images[-1][..., :3] = (10, 200, 10)
    source = generated(images, (*USUAL, "top")).attribute_source
    up = np.array([[0, 1, 0]], np.float32)
    assert np.allclose(source.colours_at(up * 0.5, up) * 255, (10, 200, 10), atol=3)


@pytest.mark.parametrize(
    ("angle", "right", "up", "toward"),
    [
        (0.0, (1, 0, 0), (0, 1, 0), (0, 0, 1)),
        (90.0, (0, 0, -1), (0, 1, 0), (1, 0, 0)),
        (180.0, (-1, 0, 0), (0, 1, 0), (0, 0, -1)),
        (270.0, (0, 0, 1), (0, 1, 0), (-1, 0, 0)),
        ("top", (1, 0, 0), (0, 0, -1), (0, 1, 0)),
        ("bottom", (1, 0, 0), (0, 0, 1), (0, -1, 0)),
    ],
)
def test_the_right_is_where_a_viewer_in_front_has_it(
    angle: ViewAngle, right: tuple[float, ...], up: tuple[float, ...], toward: tuple[float, ...]
) -> None:
    direction = ViewDirection.of_angle(angle)
    assert np.allclose([direction.rightward, direction.upward, direction.toward_camera], [right, up, toward])


def test_stated_sides_that_are_exchanged_are_warned_of() -> None:
    images = views("character", 0.0, 270.0, 180.0, 90.0)
    exchanged = arrange_views(images, (0.0, 90.0, 180.0, 270.0), max_side_px=512)
    assert exchanged.warnings[0].startswith("The sides look exchanged: the colours of the views from right and left")
    assert arrange_views(images, (0.0, 270.0, 180.0, 90.0), max_side_px=512).warnings == ()


def test_views_of_different_subjects_are_refused_or_warned_of_with_the_numbers() -> None:
    several = [view(name, 0.0) for name in ("teapot", "chair", "character", "animal", "car")]
    with pytest.raises(UnreadableImage, match=r"silhouettes contradict each other in \d+%, \d+%, \d+%, \d+%, \d+% of"):
        arrange_views(several, None, max_side_px=512)
    two = arrange_views([view("character", 0.0), view("teapot", 0.0)], None, max_side_px=512)
    assert "They may show different subjects" in two.warnings[-1]


@pytest.mark.parametrize(("first", "second"), [*itertools.permutations(SUBJECTS, 2)])
def test_two_views_of_different_subjects_are_refused_or_warned_of(first: str, second: str) -> None:
    try:
        warnings = arrange_views([view(first, 0.0), view(second, 0.0)], None, max_side_px=512).warnings
    except UnreadableImage:
        return
    assert "They may show different subjects" in warnings[-1]


@pytest.mark.parametrize("name", SUBJECTS)
@pytest.mark.parametrize("side", [90.0, 270.0])
def test_two_views_of_one_subject_are_not_warned_of(name: str, side: float) -> None:
    assert arrange_views(views(name, 0.0, side), (0.0, side), max_side_px=512).warnings == ()


def test_a_wrong_angle_is_warned_of() -> None:
    wrong = arrange_views(views("animal", 0.0, 90.0, 150.0), USUAL, max_side_px=512)
    assert wrong.warnings[0].startswith("The views disagree: ")


def test_one_view_is_turned_to_its_side() -> None:
    (image,) = views("car", 90.0)
    front, side = generated([image], None), generated([image], (90.0,))
    turned = np.stack([front.mesh.vertices[:, 2], front.mesh.vertices[:, 1], -front.mesh.vertices[:, 0]], axis=1)
    assert np.allclose(side.mesh.vertices, turned, atol=1e-6)
    assert side.view_angles == (90.0,) and front.view_angles is None
    point, forward = np.array([[0.1, 0.0, 0.2]], np.float32), np.array([[0, 0, 1]], np.float32)
    there, right = np.array([[0.2, 0.0, -0.1]], np.float32), np.array([[1, 0, 0]], np.float32)
    seen = front.attribute_source.attributes_at(point, forward).base_colour
    assert np.allclose(side.attribute_source.attributes_at(there, right).base_colour, seen, atol=1e-3)


def test_a_back_that_comes_first_stays_at_the_back() -> None:
    images = views("character", 180.0, 0.0)
    there, here = generated(images, (180.0, 0.0)), generated(images[::-1], (0.0, 180.0))
    assert np.array_equal(there.mesh.vertices, here.mesh.vertices)


def test_a_side_that_no_view_shows_has_the_mirrored_colours_of_the_other() -> None:
    source = generated(views("animal", *USUAL), USUAL).attribute_source
    right, left = np.array([[0.2, 0.05, 0.1]], np.float32), np.array([[-0.2, 0.05, 0.1]], np.float32)
    normal = np.array([[1, 0, 0]], np.float32)
    assert np.allclose(source.colours_at(left, -normal), source.colours_at(right, normal), atol=0.02)


def test_angles_that_an_engine_cannot_use_are_refused() -> None:
    images = views("car", 0.0, "top")
    with pytest.raises(InvalidRequest, match="at least one view from the side"):
        arrange_views(images, ("bottom", "top"), max_side_px=512)
    with pytest.raises(InvalidRequest, match="got 1 for 2"):
        arrange_views(images, (0.0,), max_side_px=512)
