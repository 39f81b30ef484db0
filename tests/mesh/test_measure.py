"""Measures of solids whose numbers are known."""

from __future__ import annotations

import math

import numpy as np
import pytest

from pipeline.mesh.measure import label_components, measure
from pipeline.mesh.tri_mesh import TriMesh
from tests.mesh.shapes import cuboid, joined, sphere, tetrahedron, torus


def test_a_cuboid_has_its_counts_its_volume_and_its_bounds() -> None:
    report = measure(cuboid((1.0, 0.7, 0.4)))

    assert (report.faces, report.vertices, report.components) == (12, 8, 1)
    assert report.is_watertight and report.is_winding_consistent
    assert (report.boundary_edges, report.non_manifold_edges) == (0, 0)
    assert report.volume == pytest.approx(0.28, rel=1e-6)  # float32 vertices
    assert report.lowest == pytest.approx((-0.5, -0.35, -0.2)) and report.highest == pytest.approx((0.5, 0.35, 0.2))


@pytest.mark.parametrize(
    ("mesh", "volume", "genus"),
    [
        (tetrahedron(scale=0.3), 0.3**3 / 6, 0),
        (sphere(40, radius=0.4), 4 / 3 * math.pi * 0.4**3, 0),
        (torus(), 2 * math.pi**2 * 0.3 * 0.12**2, 1),
    ],
)
def test_volume_and_euler_characteristic_are_those_of_the_solid(mesh: TriMesh, volume: float, genus: int) -> None:
    report = measure(mesh)

    assert report.volume == pytest.approx(volume, rel=0.01)  # marching cubes cut the curvature
    assert report.vertices - report.faces // 2 == 2 - 2 * genus


def test_an_open_mesh_has_boundary_edges_and_a_reversed_face_breaks_the_winding() -> None:
    mesh = tetrahedron()
    turned = mesh.faces.copy()
    turned[0] = turned[0][::-1]

    is_open, is_turned = measure(TriMesh(mesh.vertices, mesh.faces[:3])), measure(TriMesh(mesh.vertices, turned))

    assert not is_open.is_watertight and is_open.boundary_edges == 3 and is_open.is_winding_consistent
    assert is_turned.is_watertight and not is_turned.is_winding_consistent


def test_three_faces_at_an_edge_are_non_manifold() -> None:
    vertices = np.float32([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1], [0, -1, 0]])

    report = measure(TriMesh(vertices, np.array([[0, 1, 2], [0, 1, 3], [0, 1, 4]], np.int32)))

    assert (report.non_manifold_edges, report.boundary_edges) == (1, 6)


def test_components_share_no_vertex_and_unused_vertices_do_not_count() -> None:
    mesh = joined(tetrahedron(), tetrahedron((0.3, 0, 0)))
    padded = TriMesh(np.concatenate([mesh.vertices, np.float32([[9, 9, 9]])]), mesh.faces)

    report = measure(padded)

    assert (report.components, report.vertices) == (2, 8) and max(report.highest) < 1
    assert label_components(padded).tolist() == [0] * 4 + [1] * 4 + [2]


def test_an_empty_mesh_measures_nothing() -> None:
    report = measure(TriMesh(np.zeros((0, 3), np.float32), np.zeros((0, 3), np.int32)))

    assert (report.faces, report.vertices, report.components, report.volume) == (0, 0, 0, 0.0)
    assert not report.is_watertight and report.lowest == (0, 0, 0)
