"""Background removal without weights, against known masks. `python -m scripts.benchmarks cutout` measures the rest."""

from __future__ import annotations

from functools import cache

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.imaging.background_removal import TRUSTED_CONFIDENCE
from pipeline.imaging.cutout import separate
from pipeline.imaging.cutout.ground import smoother_than_ground
from tests.fakes.cutout_scenes import GroundName, draw_subject, make_scene
from tests.fakes.images import mask_iou

SIZE = (400, 300)


@cache
def subject(name: str) -> NDArray[np.uint8]:
    return draw_subject(name, 256)


def result_on(name: str, ground: GroundName, *, seed: int = 1) -> tuple[float, float]:
    """Intersection over union with the truth, and the confidence."""
    scene = make_scene(subject(name), ground, seed=seed, size=SIZE)
    separation = separate(np.ascontiguousarray(scene.image[..., :3]))
    assert separation.confidence is not None
    return mask_iou(separation.alpha >= 128, scene.mask), separation.confidence


@pytest.mark.parametrize(
    ("name", "ground"),
    [
        ("tiger", "plain"),
        ("horse", "wall"),
        ("bust", "gradient"),
        ("knight", "shadow"),
        ("tiger", "wood"),
        ("pot", "grass"),
    ],
)
def test_smooth_and_textured_grounds_are_removed_without_a_warning(name: str, ground: GroundName) -> None:
    iou, confidence = result_on(name, ground)

    assert iou > 0.92
    assert confidence >= TRUSTED_CONFIDENCE


def test_a_vignette_is_removed() -> None:
    assert result_on("horse", "vignette")[0] > 0.92


def test_things_beside_the_subject_are_no_part_of_it() -> None:
    ious = [result_on(name, "clutter")[0] for name in ("horse", "pot", "tiger")]

    assert np.median(ious) > 0.88


def test_a_subject_in_the_colours_of_its_ground_carries_the_warning() -> None:
    iou, confidence = result_on("palm", "grass")

    assert iou < 0.9  # green leaves on grass
    assert confidence < TRUSTED_CONFIDENCE


def test_a_smooth_part_in_the_colours_of_a_lawn_belongs_to_the_subject() -> None:
    scene = make_scene(subject("gnome"), "grass", seed=4, size=SIZE)
    rgb = np.ascontiguousarray(scene.image[..., :3])

    found = separate(rgb).alpha >= 128

    assert mask_iou(found, scene.mask) > 0.95


@pytest.mark.parametrize("ground", ["plain", "wall", "gradient", "clutter", "shadow", "vignette", "wood"])
def test_no_area_is_smoother_than_a_smooth_ground(ground: GroundName) -> None:
    scene = make_scene(subject("tiger"), ground, seed=3, size=SIZE)

    assert not smoother_than_ground(np.ascontiguousarray(scene.image[..., :3])).any()


@pytest.mark.parametrize(("ball", "ground"), [(60, 255), (245, 235), (250, 255)])
def test_a_soft_shadow_under_a_grey_ball_is_background(ball: int, ground: int) -> None:
    y, x = np.mgrid[:320, :256].astype(np.float32)
    shadow = (((x - 138) / 90) ** 2 + ((y - 250) / 24) ** 2 < 1).astype(np.float32)
    image = ground * (1 - 0.4 * cv2.GaussianBlur(shadow, (0, 0), 9))
    truth = np.hypot(x - 128, y - 170) < 80
    shade = 0.75 + 0.25 * np.clip(1 - np.hypot(x - 100, y - 135) / 110, 0, 1)
    image = np.where(truth, np.minimum(ball * shade, 255), image)
    rgb = np.repeat(image[..., None], 3, axis=2).round().astype(np.uint8)

    found = separate(np.ascontiguousarray(rgb)).alpha >= 128

    assert mask_iou(found, truth) > 0.92


def test_enclosed_gaps_show_the_ground() -> None:
    scene = make_scene(subject("wheel"), "gradient", seed=2, size=SIZE)
    rgb = np.ascontiguousarray(scene.image[..., :3])

    alpha = separate(rgb).alpha

    assert mask_iou(alpha >= 128, scene.mask) > 0.85  # the spokes are three pixels thin
