"""The mesh type: normals, volume and bounds of shapes whose numbers are known."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.mesh.tri_mesh import TriMesh
from tests.mesh.shapes import sphere, tetrahedron

EMPTY = TriMesh(np.zeros((0, 3), np.float32), np.zeros((0, 3), np.int32))


def test_normals_of_a_sphere_point_away_from_its_centre() -> None:
    mesh = sphere(37)  # with 40 cells, vertices coincide at the poles and have no face with area

    directions = mesh.vertices / np.linalg.norm(mesh.vertices, axis=1, keepdims=True)

    assert (np.einsum("vi,vi->v", mesh.vertex_normals(), directions) > 0.97).all()
    np.testing.assert_allclose(np.linalg.norm(mesh.vertex_normals(), axis=1), 1, atol=1e-6)  # float32


def test_vertex_normals_are_face_normals_weighted_by_area() -> None:
    mesh = tetrahedron()

    expected = np.zeros((4, 3))
    for face, cross in zip(mesh.faces.tolist(), mesh.face_cross_products(), strict=True):
        for corner in face:
            expected[corner] += cross
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)

    np.testing.assert_allclose(mesh.vertex_normals(), expected, atol=1e-6)  # float32


def test_a_vertex_without_a_face_has_a_zero_normal() -> None:
    mesh = TriMesh(np.eye(4, 3, dtype=np.float32), np.array([[0, 1, 2]], np.int32))

    assert mesh.vertex_normals()[3].tolist() == [0, 0, 0]


def test_the_volume_is_signed_by_the_winding_and_does_not_depend_on_the_position() -> None:
    mesh, moved = tetrahedron(scale=0.5), tetrahedron((3, -2, 1), scale=0.5)
    reversed_ = TriMesh(mesh.vertices, mesh.faces[:, ::-1])

    assert mesh.volume() == pytest.approx(0.125 / 6)
    assert reversed_.volume() == pytest.approx(-0.125 / 6)
    assert moved.volume() == pytest.approx(0.125 / 6, rel=1e-5)  # float32 vertices


def test_an_empty_mesh_has_no_volume_and_bounds_of_zeros() -> None:
    assert EMPTY.volume() == 0 and EMPTY.bounds().tolist() == [[0, 0, 0], [0, 0, 0]]
    assert EMPTY.vertex_normals().shape == (0, 3) and EMPTY.corners.shape == (0, 3, 3)
    assert tetrahedron(scale=0.5).bounds().tolist() == [[0, 0, 0], [0.5, 0.5, 0.5]]
