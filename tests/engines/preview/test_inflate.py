"""Inflation of one silhouette to a solid."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from pipeline.engines.base import GenerationOptions
from pipeline.engines.preview.engine import PreviewEngine
from pipeline.engines.preview.inflate import inflate
from pipeline.errors import UnreadableImage
from pipeline.mesh.measure import measure
from tests.fakes.images import draw_figure

Y, X = np.mgrid[:200, :200] - 99.5


def mask(condition: np.ndarray) -> np.ndarray:
    rows, columns = np.flatnonzero(condition.any(axis=1)), np.flatnonzero(condition.any(axis=0))
    return condition[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].astype(np.float32)


def test_a_disc_becomes_a_sphere() -> None:
    mesh = inflate(mask(np.hypot(X, Y) < 95), resolution=96)
    radius = np.linalg.norm(mesh.vertices, axis=1)
    assert radius.min() > 0.495 and radius.max() < 0.505
    assert mesh.volume() == pytest.approx(np.pi / 6, rel=0.01)


def test_a_ring_keeps_its_hole_and_two_parts_stay_two() -> None:
    ring = measure(inflate(mask((np.hypot(X, Y) < 95) & (np.hypot(X, Y) > 40)), resolution=64))
    assert ring.vertices - ring.faces // 2 == 0  # a torus: V - E + F = 0
    parts = measure(inflate(mask((np.hypot(X - 50, Y) < 40) | (np.hypot(X + 50, Y) < 40)), resolution=64))
    assert parts.components == 2


@settings(max_examples=60, deadline=None)
@given(arrays(np.bool_, (12, 15)), st.sampled_from([64, 70]))
def test_any_mask_gives_a_closed_body_oriented_outward(solid: np.ndarray, resolution: int) -> None:
    solid[5, 5] = True
    report = measure(inflate(solid.astype(np.float32), resolution=resolution))
    assert report.is_watertight and report.is_winding_consistent
    assert report.non_manifold_edges == 0 and report.volume > 0


def test_antennae_thinner_than_a_cell_are_kept() -> None:
    stalk = np.zeros((400, 200), bool)
    stalk[200:, :] = True
    stalk[:200, 99:101] = True
    mesh = inflate(stalk.astype(np.float32), resolution=64)
    assert mesh.bounds()[1, 1] > 0.49


def test_every_body_lies_in_the_unit_cube() -> None:
    for condition in (np.maximum(abs(X), abs(Y)) < 90, abs(X) < 10, abs(Y) < 10):
        low, high = inflate(mask(condition), resolution=64).bounds()
        assert (np.abs([low, high]) <= 0.502).all()


def test_a_warning_names_the_options_that_the_engine_ignores() -> None:
    options = GenerationOptions(seed=1, resolution=64, ss_sampling_steps=50, splat=True)
    generation = PreviewEngine().generate([draw_figure(64)], options)
    assert generation.warnings == ("The preview engine ignores ss_sampling_steps, splat.",)
    assert PreviewEngine().generate([draw_figure(64)], GenerationOptions(seed=2, resolution=64)).warnings == ()


def test_the_draft_notice_names_engines_that_take_as_many_views() -> None:
    figure, options = draw_figure(64), GenerationOptions(seed=1, resolution=64)
    one, two = PreviewEngine().generate([figure], options), PreviewEngine().generate([figure, figure], options)
    assert one.draft.startswith("This is a draft: the back and the thickness are invented. ")
    assert "trellis (needs 4.4 GB of weights and a GPU with 16 GB), triposr (needs 1.7 GB of weights)" in one.draft
    assert "the sides and the thickness are invented" in two.draft and "triposr" not in two.draft


def test_the_front_shows_the_image_and_the_back_its_colours_without_the_badge() -> None:
    figure = draw_figure(128)
    source = PreviewEngine().generate([figure], GenerationOptions(seed=1, resolution=64)).attribute_source
    points = np.zeros((80, 3), np.float32)
    points[:, 0], points[:, 2] = np.linspace(-0.15, 0.15, 80), 0.2
    front = np.tile(np.float32([0, 0, 1]), (80, 1))
    near = source.colours_at(points, front)
    assert near[40, 2] > near[40, 0] and near[2, 0] > near[2, 2]  # a blue badge on a red body
    far = source.colours_at(points * np.float32([1, 1, -1]), -front)
    assert (far[:, 0] > far[:, 2] + 0.3).all()


def test_a_view_without_a_solid_pixel_is_refused() -> None:
    with pytest.raises(UnreadableImage):
        PreviewEngine().generate([np.zeros((64, 64, 4), np.uint8)], GenerationOptions(seed=1))


@pytest.mark.parametrize("views", [1, 3])
def test_foreground_ratio_is_the_share_of_the_grid_that_the_subject_fills(views: int) -> None:
    def faces(ratio: float | None) -> int:
        options = GenerationOptions(seed=1, resolution=128, foreground_ratio=ratio)
        return len(PreviewEngine().generate([draw_figure(128)] * views, options).mesh.faces)

    assert faces(1.0) == faces(None)
    assert 0.25 < faces(0.5) / faces(None) < 0.5  # front and back have a quarter of the cells, the rim half of them
