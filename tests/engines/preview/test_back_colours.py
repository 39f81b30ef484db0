"""The invented back on subjects drawn by script; `python -m scripts.benchmarks preview back` measures more of them."""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import pytest

from pipeline.engines.base import Generation, GenerationOptions
from pipeline.engines.preview.back_colours import (
    find_rarity,
    invent_back_colours,
    is_seen_from_side,
    mirror_overlap,
    relative_energy,
)
from pipeline.engines.preview.engine import PreviewEngine
from pipeline.engines.preview.features import Features
from pipeline.engines.preview.subject_image import SubjectImage, crop_subject
from tests.fakes.preview_subjects import SEEN_FROM_THE_SIDE, SUBJECTS
from tests.fakes.preview_views import (
    gradient_energy,
    histogram_distance,
    orthographic_view,
    repeated_corner_patch,
    repeated_feature,
    rim_step_ratio,
)

FROM_THE_FRONT = sorted(set(SUBJECTS) - set(SEEN_FROM_THE_SIDE))
BLURRED_DISTANCE = {"bear": 0.25, "bottle": 0.63, "head": 0.48, "knight": 0.25, "owl": 0.19, "tower": 0.34}
"""`histogram_distance` of a back that is a blurred copy of the front."""
LEAST_ENERGY = {"bear": 0.3, "bottle": 0.6, "head": 0.6, "knight": 0.6, "owl": 0.6, "tower": 0.6}
"""A blurred copy has 0.01 to 0.03. The bear's eyes hold 64 % of its energy; without its face the front has 0.37."""
MOST_ALIKE_CORNERS = {"bear": 0.9, "bottle": 0.9, "head": 0.9, "knight": 0.9, "owl": 0.9, "tower": 0.97}
"""Of a mirrored front they are 1; bricks are like other bricks."""


@cache
def generation_of(name: str) -> Generation:
    return PreviewEngine().generate([SUBJECTS[name]()], GenerationOptions(seed=1))


def image_of(name: str) -> SubjectImage:
    return crop_subject(SUBJECTS[name](), max_side_px=1024, is_axis_known=False)


@pytest.mark.parametrize("name", FROM_THE_FRONT)
def test_the_back_has_detail_and_the_colours_of_the_outer_front_and_no_second_face(name: str) -> None:
    front, side, back = (orthographic_view(generation_of(name), turn * math.pi / 2) for turn in (0, 1, 2))

    assert gradient_energy(back) > LEAST_ENERGY[name] * gradient_energy(front)
    assert histogram_distance(back, front) < BLURRED_DISTANCE[name]
    assert rim_step_ratio(side) <= 1.5
    assert repeated_feature(back, front) < 0.85  # a mirrored front has 0.99 or more
    assert repeated_corner_patch(back, front) < MOST_ALIKE_CORNERS[name]


@pytest.mark.parametrize("name", SEEN_FROM_THE_SIDE)
def test_the_back_of_a_subject_seen_from_its_side_is_the_mirrored_front(name: str) -> None:
    image = image_of(name)

    assert np.array_equal(invent_back_colours(image, seed=1), image.colours)
    front, back = (orthographic_view(generation_of(name), turn * math.pi) for turn in (0, 1))
    assert repeated_feature(back, front) > 0.95


@pytest.mark.parametrize("name", FROM_THE_FRONT)
def test_a_figure_seen_from_its_front_is_no_side_view(name: str) -> None:
    assert not is_seen_from_side(image_of(name).alpha >= 0.5)


def test_the_mirror_overlap_finds_an_axis_beside_the_middle() -> None:
    mask = np.zeros((40, 60), bool)
    mask[5:35, 4:44] = True
    assert mirror_overlap(mask) > 0.95

    mask[:20, 4:24] = False
    assert mirror_overlap(mask) < 0.8


def test_an_emblem_is_rare_and_a_pattern_is_not() -> None:
    colours = np.zeros((80, 80, 3), np.float32)
    colours[np.indices((80, 80)).sum(axis=0) // 4 % 2 == 0] = 0.6
    colours[36:44, 36:44] = (1, 0, 0)

    rarity = find_rarity(colours, np.ones((80, 80), bool))

    assert rarity[40, 40] > 1
    assert np.median(rarity[:20]) < 0.7


def test_the_energy_of_a_part_is_relative_to_the_whole_and_without_its_silhouette() -> None:
    colours = np.random.default_rng(0).normal(0, 0.01, (160, 160, 3)).astype(np.float32)
    colours[:, 80:] *= 2
    mask = np.zeros((160, 160), bool)
    mask[20:140, 20:140] = True
    colours[~mask] = 1
    part = np.broadcast_to(np.arange(160) < 79, mask.shape)

    assert relative_energy(colours, mask, part) == pytest.approx(1 / 2.5, rel=0.1)  # 1 of (1 + 4) / 2
    assert relative_energy(colours, mask, mask) == 1
    assert relative_energy(colours, mask, ~mask) == 1  # nothing is left of it
    assert relative_energy(np.zeros_like(colours), mask, part) == 1


def test_the_rim_of_the_back_has_the_colours_of_the_front() -> None:
    image = image_of("owl")
    mask = image.alpha >= 0.5
    back = invent_back_colours(image, seed=3)

    rim = mask & ~np.asarray(np.pad(mask, 2)[4:, 2:-2] & np.pad(mask, 2)[:-4, 2:-2] & np.pad(mask, 2)[2:-2, 4:], bool)
    assert np.array_equal(back[rim], image.colours[rim])


def test_the_seed_decides_the_bytes() -> None:
    image = image_of("tower")

    first, again, other = (invent_back_colours(image, seed=seed) for seed in (5, 5, 6))

    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_a_subject_of_one_pixel_has_a_back() -> None:
    image = SubjectImage(np.ones((1, 1), np.float32), np.full((1, 1, 3), 0.3, np.float32), (0.5, 0.5), 1.0)

    np.testing.assert_allclose(invent_back_colours(image, seed=1), 0.3)


def test_a_copied_feature_is_found_in_the_invented_part_and_nowhere_else() -> None:
    front = np.full((120, 90, 3), 0.5, np.float32)
    front[20:31, 20:31] = (0.9, 0.1, 0.1)
    front[23:28, 20:31] = (0.1, 0.1, 0.9)
    mask, target = np.ones((120, 90), bool), np.zeros((120, 90), bool)
    target[60:100, 20:80] = True
    plain, copied = np.full_like(front, 0.5), np.full_like(front, 0.5)
    copied[70:81, 50:61] = front[20:31, 20:31]
    features = Features.of_front(front, mask)

    assert features.find_repeated(copied, target)[25, 25]
    assert not features.find_repeated(plain, target).any()
    assert not features.find_repeated(copied, np.zeros_like(target)).any()


def test_the_measure_of_the_rim_sees_a_hard_border() -> None:
    side = np.ones((40, 60, 4), np.float32)
    side[..., :3] = np.linspace(0.4, 0.5, 60)[None, :, None]
    without = rim_step_ratio(side)
    side[:, 30:, 0] += 0.4

    assert without < 1.5 < rim_step_ratio(side)
