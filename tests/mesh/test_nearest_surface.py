"""Nearest places: those of a search through all faces, and never on the other side of a thin wall."""

from __future__ import annotations

import numpy as np

from pipeline.mesh.clean import clean
from pipeline.mesh.nearest_surface import LEAST_COSINE, NO_FACE, NearestSurface
from pipeline.mesh.tri_mesh import TriMesh
from tests.mesh.shapes import cuboid, organic


def test_the_nearest_place_is_that_of_a_search_through_all_faces() -> None:
    mesh = clean(organic(20))
    rng = np.random.default_rng(3)
    chosen = rng.integers(0, len(mesh.vertices), 300)
    normals = mesh.vertex_normals()[chosen]
    points = (mesh.vertices[chosen] + rng.normal(0, 0.008, (300, 3))).astype(np.float32)
    faces, weights = NearestSurface(mesh).find(points, normals)
    assert (faces != NO_FACE).all() and weights.min() >= 0
    np.testing.assert_allclose(weights.sum(axis=1), 1, rtol=1e-6)
    found = np.einsum("pk,pki->pi", weights, mesh.corners[faces])
    # Against many points spread over every face that looks the same way.
    shares = rng.dirichlet((0.5, 0.5, 0.5), 60)
    spread = np.einsum("sk,fki->fsi", shares, mesh.corners)
    across = mesh.face_cross_products()
    across /= np.linalg.norm(across, axis=1, keepdims=True)
    for point, normal, place in zip(points, normals, found, strict=True):
        candidates = spread[across @ normal >= LEAST_COSINE].reshape(-1, 3)
        least = np.linalg.norm(candidates - point, axis=1).min()
        assert np.linalg.norm(place - point) <= least + 1e-6


def test_a_thin_wall_gives_the_normals_of_the_side_that_is_asked_for() -> None:
    wall = cuboid((1.0, 0.7, 0.004))
    points = np.array([[0.1, 0.1, 0.0005], [0.1, 0.1, -0.0005]], np.float32)
    front = np.tile(np.float32([0, 0, 1]), (2, 1))
    faces, _ = NearestSurface(wall).find(points, front)
    assert (wall.face_cross_products()[faces][:, 2] > 0).all()


def test_far_from_the_surface_a_point_keeps_its_own_normal() -> None:
    mesh = TriMesh(cuboid().vertices, cuboid().faces)
    own = np.array([[0.6, 0.0, 0.8]], np.float32)
    np.testing.assert_allclose(NearestSurface(mesh).normals_at(np.array([[5.0, 5, 5]], np.float32), own), own)
