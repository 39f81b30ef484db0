"""Mesh repair: any triangles in, closed manifolds out."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from pipeline.mesh.clean import clean, separate_coincident_vertices
from pipeline.mesh.measure import measure
from pipeline.mesh.tri_mesh import TriMesh
from tests.mesh.shapes import ALL, joined, of_field, sphere, tetrahedron, torus, welded_report


@pytest.mark.parametrize("name", ALL)
def test_a_closed_mesh_keeps_its_faces_and_volume(name: str) -> None:
    mesh = ALL[name]()
    cleaned = clean(mesh)
    assert len(cleaned.faces) == pytest.approx(len(mesh.faces), rel=0.06)
    assert cleaned.volume() == pytest.approx(mesh.volume(), rel=1e-3)
    assert welded_report(cleaned)[:3] == (True, True, 0)


@settings(max_examples=80, deadline=None)
@given(arrays(np.bool_, (5, 5, 5)))
def test_blocks_that_touch_at_edges_and_corners_come_out_closed_and_manifold(solid: np.ndarray) -> None:
    solid[2, 2, 2] = True
    cleaned = clean(blocks(solid))
    closed, consistent, non_manifold, volume = welded_report(cleaned)
    assert closed and consistent and non_manifold == 0
    assert volume == pytest.approx(solid.sum() / 5**3, rel=0.02)


def blocks(solid: np.ndarray) -> TriMesh:
    """The outer squares of filled cells, two triangles each, vertices shared: non-manifold where blocks touch."""
    padded = np.pad(solid, 1)
    quads = []
    for axis in range(3):
        for side in (0, 1):
            neighbour = np.roll(padded, 1 if side == 0 else -1, axis=axis)
            for cell in np.argwhere(padded & ~neighbour):
                corner = cell.copy()
                corner[axis] += side
                u, v = np.eye(3, dtype=int)[(axis + 1) % 3], np.eye(3, dtype=int)[(axis + 2) % 3]
                square = [corner, corner + u, corner + u + v, corner + v]
                quads.append(square if side == 1 else square[::-1])
    points = np.array(quads).reshape(-1, 3)
    unique, number = np.unique(points, axis=0, return_inverse=True)
    a, b, c, d = number.reshape(-1, 4).T
    faces = np.concatenate([np.stack([a, b, c], 1), np.stack([a, c, d], 1)])
    return TriMesh((unique / 5 - 0.7).astype(np.float32), faces.astype(np.int32))


def test_split_vertices_are_merged_and_degenerate_faces_dropped() -> None:
    mesh = sphere(24)
    soup = TriMesh(mesh.corners.reshape(-1, 3), np.arange(3 * len(mesh.faces), dtype=np.int32).reshape(-1, 3))
    needle = np.array([[0, 0, 5]], np.int32)
    doubled = TriMesh(soup.vertices, np.concatenate([soup.faces, soup.faces[:7], needle]).astype(np.int32))
    report = measure(clean(doubled))
    assert report.is_watertight and report.vertices == pytest.approx(len(mesh.vertices), abs=10)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_reversed_faces_are_reversed_back(seed: int) -> None:
    mesh = torus(20)
    faces = mesh.faces.copy()
    turned = np.random.default_rng(seed).random(len(faces)) < 0.4
    faces[turned] = faces[turned][:, ::-1]
    cleaned = clean(TriMesh(mesh.vertices, faces))
    assert measure(cleaned).is_winding_consistent
    assert cleaned.volume() == pytest.approx(mesh.volume(), rel=1e-3)


@pytest.mark.parametrize("missing", [1, 2, 40])
def test_holes_are_filled(missing: int) -> None:
    mesh = sphere(24)
    order = np.argsort(-mesh.corners[:, :, 1].mean(axis=1))
    report = measure(clean(TriMesh(mesh.vertices, mesh.faces[np.sort(order[missing:])])))
    assert report.is_watertight and report.volume == pytest.approx(mesh.volume(), rel=0.02)


def test_a_hole_with_a_longer_boundary_than_the_limit_stays() -> None:
    mesh = sphere(24)
    half = TriMesh(mesh.vertices, mesh.faces[mesh.corners[:, :, 1].mean(axis=1) < 0])
    assert measure(clean(half, max_hole_edges=20)).boundary_edges > 20
    assert measure(clean(half)).is_watertight


def test_components_are_wound_outward_and_cavities_inward() -> None:
    inside_out = sphere(24)
    mesh = joined(TriMesh(inside_out.vertices, inside_out.faces[:, ::-1].copy()), tetrahedron((0.45, 0.45, 0.45), 0.05))
    assert clean(mesh).volume() == pytest.approx(inside_out.volume(), rel=0.01)
    cavity = sphere(24, radius=0.2)
    hollow = joined(sphere(24), TriMesh(cavity.vertices, cavity.faces[:, ::-1].copy()))
    assert clean(hollow).volume() == pytest.approx(sphere(24).volume() - cavity.volume(), rel=0.01)


def test_small_components_are_dropped_and_parts_stay() -> None:
    mesh = joined(sphere(24, radius=0.2), tetrahedron((0.4, 0.4, 0.4), 0.08), tetrahedron((-0.4, 0.4, 0.4), 0.002))
    assert measure(clean(mesh)).components == 2


def test_vertices_that_are_not_finite_are_dropped() -> None:
    mesh = sphere(24)
    vertices = mesh.vertices.copy()
    vertices[5] = np.nan
    cleaned = clean(TriMesh(vertices, mesh.faces))
    assert np.isfinite(cleaned.vertices).all() and measure(cleaned).is_watertight


def test_a_surface_that_encloses_nothing_gives_an_empty_mesh() -> None:
    membrane = np.array([[0, 1, 2], [0, 2, 1]], np.int32)
    assert len(clean(TriMesh(np.eye(3, dtype=np.float32), membrane)).faces) == 0
    assert len(clean(TriMesh(np.zeros((0, 3), np.float32), np.zeros((0, 3), np.int32))).faces) == 0


def test_coincident_vertices_are_separated() -> None:
    apart = separate_coincident_vertices(joined(tetrahedron(), tetrahedron()))
    assert len(np.unique(np.round(apart.vertices.astype(float) * 1e6), axis=0)) == 8
    assert np.abs(apart.vertices - joined(tetrahedron(), tetrahedron()).vertices).max() < 1e-4


def test_cleaning_is_repeatable() -> None:
    rng = np.random.default_rng(4)
    mesh = of_field(rng.normal(size=(14, 14, 14)))
    assert np.array_equal(clean(mesh).vertices, clean(mesh).vertices)
    assert np.array_equal(clean(mesh).faces, clean(mesh).faces)
