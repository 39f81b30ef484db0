"""The visual hull of several views against shapes with known interiors."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

from pipeline.engines.base import Generation, GenerationOptions
from pipeline.engines.preview.engine import PreviewEngine
from pipeline.errors import Cancelled, UnreadableImage
from pipeline.mesh.measure import measure
from pipeline.mesh.simplify import simplify
from pipeline.mesh.tri_mesh import TriMesh
from tests.reference.solids import (
    SHAPES,
    Field,
    filled,
    inside_of,
    mesh_of,
    overlap,
    true_hull,
    views_around,
)

AXIS = np.linspace(-0.503, 0.507, 50)  # no face of a shape lies on a sample


@cache
def carved(name: str, views: int, resolution: int = 192) -> Generation:
    images = views_around(mesh_of(SHAPES[name]), views)
    return PreviewEngine().generate(images, GenerationOptions(seed=1, resolution=resolution))


def best_overlap(mesh: TriMesh, field: Field) -> float:
    """Return the overlap of a mesh with a shape at the best scale and height: the images determine neither."""
    body = filled(mesh, AXIS)
    (low, high), (true_low, true_high) = mesh.bounds()[:, 1], mesh_of(field).bounds()[:, 1]
    found = 0.0
    for stretch in np.linspace(0.96, 1.04, 9):
        scale = stretch * (true_high - true_low) / (high - low)
        for shift in np.linspace(-0.01, 0.01, 5):
            middle = (true_low + true_high) / 2 + shift - scale * (low + high) / 2
            inside = inside_of(lambda p, s=scale, m=middle: field(p * s + np.array([0.0, m, 0.0])), AXIS)
            found = max(found, overlap(body, inside))
    return found


@pytest.mark.parametrize("views", [4, 8])
@pytest.mark.parametrize("name", SHAPES)
def test_a_carved_shape_overlaps_the_true_shape_as_well_as_its_hull_does(name: str, views: int) -> None:
    field = SHAPES[name]
    inside = inside_of(field, AXIS)
    best = overlap(true_hull(inside, field, views, AXIS), inside)
    found = best_overlap(simplify(carved(name, views).mesh, target_faces=20_000), field)
    assert found >= 0.95 * best
    assert found >= 0.85 or best < 0.97  # 0.97: the shape is its own hull, but for the grid


def test_the_surface_is_closed_and_oriented_outward() -> None:
    report = measure(carved("vase", 8).mesh)
    assert report.is_watertight and report.is_winding_consistent and report.volume > 0
    assert max(abs(value) for value in (*report.lowest, *report.highest)) <= 0.5 + 1e-3


def test_a_warning_states_the_assumed_view_directions() -> None:
    assert "from front, 45 degrees, right, 135 degrees, back, " in carved("vase", 8).warnings[-1]


def test_each_side_takes_the_colours_of_its_own_image() -> None:
    views = views_around(mesh_of(SHAPES["box"]), 4)
    colours = np.array([[200, 0, 0], [0, 200, 0], [0, 0, 200], [200, 200, 0]], np.uint8)
    for view, colour in zip(views, colours, strict=True):
        view[..., :3] = colour
    source = PreviewEngine().generate(views, GenerationOptions(seed=1, resolution=64)).attribute_source
    sides = np.array([[0, 0, 1], [1, 0, 0], [0, 0, -1], [-1, 0, 0]], np.float32)
    points = sides * np.array([0.37, 0, 0.25], np.float32)
    assert np.allclose(source.colours_at(points, sides) * 255, colours, atol=2)


def test_views_without_a_common_body_are_refused() -> None:
    # The back would have to be the mirror image of the front.
    view = np.zeros((64, 64, 4), np.uint8)
    view[16:32, 16:32], view[32:48, 32:48] = 255, 255
    options = GenerationOptions(seed=1, resolution=64, view_angles=(0.0, 180.0, 90.0))
    with pytest.raises(UnreadableImage, match="no body in common: from front, back, right, the silhouettes contradict"):
        PreviewEngine().generate([view, view, view], options)


def test_a_cancellation_stops_the_carving() -> None:
    def cancel_late(share: float) -> None:
        if share > 0.3:
            raise Cancelled("stop")

    views = views_around(mesh_of(SHAPES["sphere"]), 4, size=64)
    with pytest.raises(Cancelled):
        PreviewEngine().generate(views, GenerationOptions(seed=1, resolution=64), on_step=cancel_late)
