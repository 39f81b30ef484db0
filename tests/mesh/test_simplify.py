"""Simplification: the face count is met, and a closed manifold stays one."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from scipy.spatial import cKDTree

from pipeline.mesh.clean import clean
from pipeline.mesh.measure import measure
from pipeline.mesh.simplify import simplify
from pipeline.mesh.tri_mesh import TriMesh
from tests.mesh.shapes import (
    ALL,
    border_distance,
    hemisphere,
    joined,
    leaf,
    of_field,
    sphere,
    stalks,
    tetrahedron,
    torus,
    welded_report,
)


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
    middles = small.corners.mean(axis=1)
    distance, nearest = cKDTree(mesh.vertices).query(middles)
    along = np.abs(((middles - mesh.vertices[nearest]) * mesh.vertex_normals()[nearest]).sum(axis=1))
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


def test_simplifying_is_repeatable() -> None:
    mesh = clean(torus())
    first, second = (simplify(mesh, target_faces=500) for _ in range(2))
    assert np.array_equal(first.vertices, second.vertices) and np.array_equal(first.faces, second.faces)
