"""Simplification: the face count is met, and a closed manifold stays one."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from pipeline.engines.base import GenerationOptions
from pipeline.engines.preview.engine import PreviewEngine
from pipeline.mesh.clean import clean
from pipeline.mesh.measure import label_components, measure
from pipeline.mesh.simplify import simplify
from pipeline.mesh.tri_mesh import TriMesh
from tests.fakes.images import draw_figure
from tests.mesh.distances import surface_errors
from tests.mesh.shapes import (
    ALL,
    border_distance,
    hemisphere,
    joined,
    leaf,
    of_field,
    organic,
    sphere,
    stalks,
    tetrahedron,
    torus,
    welded_report,
)


def distances(small: TriMesh, mesh: TriMesh) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Distances of the faces' middles to the nearest vertex of the mesh, and to the plane there."""
    middles = small.corners.mean(axis=1)
    distance, nearest = cKDTree(mesh.vertices).query(middles)
    return distance, np.abs(((middles - mesh.vertices[nearest]) * mesh.vertex_normals()[nearest]).sum(axis=1))


def surface_error(small: TriMesh, mesh: TriMesh) -> float:
    """Mean distance of the faces' middles from the mesh's planes there."""
    return float(distances(small, mesh)[1].mean())


@pytest.mark.parametrize("share", [0.5, 0.1, 0.02])
@pytest.mark.parametrize("name", ALL)
def test_the_requested_face_count_is_met_and_the_mesh_stays_closed(name: str, share: float) -> None:
    mesh = clean(ALL[name]())
    target = round(share * len(mesh.faces))
    small = simplify(mesh, target_faces=target)
    assert target - 1 <= len(small.faces) <= target
    closed, consistent, non_manifold, volume = welded_report(small)
    assert closed and consistent and non_manifold == 0
    assert volume == pytest.approx(mesh.volume(), rel=0.03 if share >= 0.1 else 0.1)


def test_the_surface_stays_within_a_fraction_of_a_cell() -> None:
    mesh = clean(ALL["organic"](64))
    small = simplify(mesh, target_faces=len(mesh.faces) // 10)
    distance, along = distances(small, mesh)
    assert along.mean() < 0.05 / 64 and along.max() < 0.7 / 64 and distance.max() < 2 / 64


def test_topology_is_kept_however_few_faces_are_asked_for() -> None:
    ring = simplify(clean(torus()), target_faces=4)
    report = measure(ring)
    assert report.vertices - report.faces // 2 == 0 and report.is_watertight
    assert measure(simplify(clean(sphere()), target_faces=4)).faces == 4


def test_thin_legs_keep_their_length() -> None:
    mesh = clean(stalks())
    small = simplify(mesh, target_faces=len(mesh.faces) // 20)
    assert small.bounds() == pytest.approx(mesh.bounds(), abs=0.01)


def test_separate_parts_stay_separate() -> None:
    mesh = clean(joined(sphere(30, radius=0.2), tetrahedron((0.3, 0.3, 0.3), 0.15)))
    assert measure(simplify(mesh, target_faces=200)).components == 2


def test_a_mesh_that_is_small_enough_is_returned_unchanged() -> None:
    mesh = clean(sphere(12))
    assert simplify(mesh, target_faces=len(mesh.faces)) is mesh


@pytest.mark.parametrize("share", [0.5, 0.1])
@pytest.mark.parametrize(("shape", "cells", "borders"), [(hemisphere, 48, 1), (leaf, 96, 4)])
def test_boundaries_keep_their_place_and_their_number(
    shape: Callable[[int], TriMesh], cells: int, borders: int, share: float
) -> None:
    mesh = shape(cells)
    target = round(share * len(mesh.faces))
    small = simplify(mesh, target_faces=target)
    assert target - 1 <= len(small.faces) <= target
    report = measure(small)
    assert report.is_winding_consistent and report.non_manifold_edges == 0 and report.components == 1
    assert 2 - (report.vertices - (3 * report.faces + report.boundary_edges) // 2 + report.faces) == borders
    assert border_distance(mesh, small) < 0.5 / cells


def test_a_surface_with_boundaries_keeps_them_however_few_faces_are_asked_for() -> None:
    report = measure(simplify(leaf(), target_faces=1))
    # A disc with three holes has the Euler characteristic -2.
    assert report.vertices - (3 * report.faces + report.boundary_edges) // 2 + report.faces == -2
    assert measure(simplify(hemisphere(), target_faces=1)).faces == 1


@pytest.mark.parametrize("seed", range(6))
def test_noise_of_any_shape_stays_closed(seed: int) -> None:
    mesh = clean(of_field(np.random.default_rng(seed).normal(size=(16, 16, 16))))
    small = simplify(mesh, target_faces=len(mesh.faces) // 5)
    assert welded_report(small)[:3] == welded_report(mesh)[:3] or measure(mesh).boundary_edges > 0


def test_a_flat_part_does_not_use_up_the_faces_of_the_others() -> None:
    box = clean(of_field(np.pad(np.ones((30, 30, 30)), 3) - 0.5))
    small = simplify(clean(joined(box, sphere(24, radius=0.2))), target_faces=900)
    assert 899 <= len(small.faces) <= 900 and measure(small).is_watertight
    # The box needs a dozen faces, and has a few more along its rounded edges; the rest are for the sphere.
    component = label_components(small)[small.faces[:, 0]]
    assert np.bincount(component).max() > 500


@pytest.mark.parametrize("share", [0.71, 0.5, 0.23, 0.1, 0.03])
def test_the_faces_are_spread_evenly_wherever_the_last_pass_ends(share: float) -> None:
    mesh = clean(sphere(64))
    middles = simplify(mesh, target_faces=round(share * len(mesh.faces))).corners.mean(axis=1)
    octants = np.bincount((middles > 0) @ [1, 2, 4], minlength=8) / len(middles)
    assert np.abs(octants * 8 - 1).max() < 0.15  # a pass that ended midway through space would leave whole octants


def test_a_vertex_with_thousands_of_neighbours_collapses_too() -> None:
    turn = np.linspace(0, 2 * np.pi, 6000, endpoint=False)
    rim = np.stack([np.cos(turn), np.zeros(6000), np.sin(turn)], axis=1) / 2
    start = np.arange(6000, dtype=np.int32)
    after = np.roll(start, -1)
    top, bottom = np.full(6000, 6000, np.int32), np.full(6000, 6001, np.int32)
    faces = np.concatenate([np.stack([top, after, start], axis=1), np.stack([bottom, start, after], axis=1)])
    cones = TriMesh(np.concatenate([rim, [[0, 0.4, 0], [0, -0.4, 0]]]).astype(np.float32), faces)
    small = simplify(cones, target_faces=100)
    assert len(small.faces) == 100 and measure(small).is_watertight
    assert small.volume() == pytest.approx(cones.volume(), rel=0.02)


def test_edges_with_three_faces_keep_their_place() -> None:
    fins = joined(sphere(24, radius=0.3), TriMesh(np.zeros((0, 3), np.float32), np.zeros((0, 3), np.int32)))
    corner = fins.faces[0]
    vertices = np.concatenate([fins.vertices, [2 * fins.vertices[corner[0]]]]).astype(np.float32)
    mesh = TriMesh(vertices, np.concatenate([fins.faces, [[corner[0], corner[1], len(vertices) - 1]]]).astype(np.int32))
    small = simplify(mesh, target_faces=200)
    assert measure(small).non_manifold_edges == 1
    assert (cKDTree(small.vertices).query(mesh.vertices[corner[:2]])[0] < 1e-6).all()


def test_simplifying_is_repeatable() -> None:
    mesh = clean(torus())
    first, second = (simplify(mesh, target_faces=500) for _ in range(2))
    assert np.array_equal(first.vertices, second.vertices) and np.array_equal(first.faces, second.faces)


def preview_figure() -> TriMesh:
    options = GenerationOptions(seed=1, resolution=256)
    return PreviewEngine().generate([draw_figure(384)], options).mesh


LARGE = {"organic": lambda: organic(160), "torus": lambda: torus(200), "figure": preview_figure}
ERRORS_OF_ONE_HEAP = {
    # Mean and largest distance, in millionths of the unit cube, of commit 1d412bd: all edges in one heap.
    "organic": {1000: (828.3, 4494), 5000: (137.6, 854.8), 50000: (8.99, 211.4)},
    "torus": {1000: (1397.8, 7382), 5000: (159.2, 718.4), 50000: (11.09, 114.9)},
    "figure": {1000: (755.8, 5465), 5000: (181.5, 3484), 50000: (15.52, 3559)},
}


@pytest.mark.parametrize("name", LARGE)
def test_large_meshes_reach_any_count_closed_and_as_near_as_one_heap_does(name: str) -> None:
    mesh = clean(LARGE[name]())
    assert len(mesh.faces) > 100_000
    for count, (mean, largest) in ERRORS_OF_ONE_HEAP[name].items():
        small = simplify(mesh, target_faces=count)
        found = surface_errors(small, mesh)
        assert len(small.faces) == pytest.approx(count, rel=0.01) and measure(small).is_watertight
        # The largest is that of one point: at 50,000 faces at most a twentieth of a cell.
        assert found[0] * 1e6 <= 1.1 * mean and found[1] * 1e6 <= 1.5 * largest, (count, found)
