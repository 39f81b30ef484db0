"""Depth of inflated bodies against solids of known shape, and the measures of the contour that it is guessed from."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.engines.base import GenerationOptions
from pipeline.engines.preview.contour import measure_contour
from pipeline.engines.preview.engine import PreviewEngine
from pipeline.engines.preview.inflate import HALF_DEPTH, inflate, limit_heights, solve_poisson
from pipeline.engines.preview.mask_grid import sample_mask
from pipeline.engines.preview.silhouette_mesh import mesh_between_sheets
from pipeline.mesh.measure import measure
from pipeline.mesh.tri_mesh import TriMesh
from tests.fakes.images import draw_figure
from tests.fakes.solids import HELD_OUT, SOLIDS, Rendering, depth_error, mesh_depths, render_solid

SIDE = 96  # pixels of the rendered cube of 1.5
RESOLUTION = 64

MUCH_BETTER = ("box", "chair", "bottle", "book", "turned plate", "star", "wardrobe", "egg", "figure", "barrel")
"""Solids whose error falls by a quarter or more."""
NEVER_WORSE = ("table", "torus", "mushroom", "cone", "cottage")


def error_percent(rendering: Rendering, mesh: TriMesh) -> float:
    return 100 * depth_error(rendering, *mesh_depths(mesh.vertices, rendering.front.shape))


def generated(rendering: Rendering, depth: float | None = None) -> TriMesh:
    options = GenerationOptions(seed=1, resolution=RESOLUTION, depth=depth)
    return PreviewEngine().generate([rendering.image], options).mesh


def plainly_inflated(rendering: Rendering) -> TriMesh:
    """The bare solution of Poisson's equation, with neither round sections nor a cap."""
    grid = sample_mask((rendering.image[..., 3] / 255).astype(np.float32), resolution=RESOLUTION)
    heights = np.sqrt(solve_poisson(grid)) * grid.cell_m
    return mesh_between_sheets(grid, heights * min(1.0, HALF_DEPTH / heights.max()))


@pytest.mark.parametrize("name", [*SOLIDS, *NEVER_WORSE, *(name for name in MUCH_BETTER if name not in SOLIDS)])
def test_the_depth_is_nearer_the_truth_than_that_of_a_plain_inflation(name: str) -> None:
    rendering = render_solid({**SOLIDS, **HELD_OUT}[name], side=SIDE)

    plain, error = (error_percent(rendering, make(rendering)) for make in (plainly_inflated, generated))

    assert error <= plain + 0.02  # equal for a sphere
    if name in MUCH_BETTER:
        assert error < 0.75 * plain


def test_the_guess_is_near_the_best_depth_of_a_plate_and_of_a_ball() -> None:
    plate, ball = render_solid(HELD_OUT["turned plate"], side=SIDE), render_solid(SOLIDS["sphere"], side=SIDE)

    assert error_percent(plate, generated(plate)) < error_percent(plate, generated(plate, 1.0)) / 1.3
    assert error_percent(ball, generated(ball)) == error_percent(ball, generated(ball, 1.0))


def test_sections_are_round_whatever_their_direction() -> None:
    y, x = np.mgrid[:200, :200] - 99.5
    for strip in (abs(x) < 20, abs(y) < 20, abs(x + y) < 28):
        low, high = inflate(np.float32(strip & (np.hypot(x, y) < 99)), resolution=128).bounds()
        assert high[2] - low[2] == pytest.approx(0.2, rel=0.12)


def test_depth_limits_wide_parts_and_keeps_thin_ones() -> None:
    heights = np.array([[0.02, 0.5]])

    flat, half = limit_heights(heights, 0.0), limit_heights(heights, 0.5)

    assert limit_heights(heights, 1.0) is heights
    assert half[0] == pytest.approx([0.02, 0.24], abs=2e-3)
    assert flat.max() == pytest.approx(0.01, rel=0.01)


@pytest.mark.parametrize("depth", [0.0, 0.3, 1.0])
def test_a_body_of_any_depth_is_closed_and_whole(depth: float) -> None:
    generation = PreviewEngine().generate([draw_figure(128)], GenerationOptions(seed=1, resolution=96, depth=depth))

    report = measure(generation.mesh)
    assert report.is_watertight and report.components == 1 and report.volume > 0
    assert generation.depth == depth


def test_the_guessed_depth_requested_again_gives_the_same_mesh() -> None:
    image = render_solid(SOLIDS["box"], side=SIDE).image
    guessed = PreviewEngine().generate([image], GenerationOptions(seed=1, resolution=RESOLUTION))

    options = GenerationOptions(seed=1, resolution=RESOLUTION, depth=guessed.depth)
    requested = PreviewEngine().generate([image], options)

    assert guessed.depth is not None and 0.3 < guessed.depth < 0.8
    assert guessed.mesh.vertices.tobytes() == requested.mesh.vertices.tobytes()


def test_several_views_have_no_depth_and_say_so() -> None:
    figure = draw_figure(96)
    generation = PreviewEngine().generate([figure] * 3, GenerationOptions(seed=1, resolution=64, depth=0.5))

    assert generation.depth is None
    assert "The preview engine ignores depth." in generation.warnings


@pytest.mark.parametrize("side", [100, 256, 700])
def test_the_measures_do_not_depend_on_the_size_of_the_image(side: int) -> None:
    y, x = (np.mgrid[:side, :side] + 0.5) / side - 0.5
    disc = measure_contour(np.float32(np.hypot(x, y) < 0.5))
    square = measure_contour(np.ones((side, side), np.float32))

    assert disc.straight < 0.1 and disc.is_turned and disc.depth == 1
    assert square.straight > 0.95 and square.rectangularity > 0.95 and not square.is_turned
    assert disc.area == pytest.approx(np.pi / 4, rel=0.05) and square.area == pytest.approx(1, rel=0.05)


def test_a_mask_of_one_pixel_has_measures() -> None:
    assert 0 <= measure_contour(np.ones((1, 1), np.float32)).depth <= 1
