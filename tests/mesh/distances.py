"""Distances of points to a surface, exact but for the choice of the faces that are looked at. Slow and plain."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from pipeline.mesh.tri_mesh import TriMesh


def to_surface(points: NDArray[np.float64], mesh: TriMesh, *, faces: int) -> NDArray[np.float64]:
    """Distance of each point (P, 3) to the nearest of the `faces` faces whose middles are nearest to it: (P,)."""
    corners = mesh.corners.astype(np.float64)
    near = cKDTree(corners.mean(axis=1)).query(points, faces)[1]
    return np.min([to_triangles(points, corners[near[:, k]]) for k in range(faces)], axis=0)


def to_triangles(points: NDArray[np.float64], corners: NDArray[np.float64]) -> NDArray[np.float64]:
    """Distance of each point (P, 3) to a triangle of its own (P, 3, 3): (P,)."""
    a, b, c = corners[:, 0], corners[:, 1], corners[:, 2]
    edges = ((a, b), (b, c), (c, a))
    to_edges = np.full(len(points), np.inf)
    for start, end in edges:
        along = end - start
        share = np.clip(((points - start) * along).sum(axis=1) / np.maximum((along**2).sum(axis=1), 1e-30), 0, 1)
        to_edges = np.minimum(to_edges, np.linalg.norm(points - start - share[:, None] * along, axis=1))
    normal = np.cross(b - a, c - a)
    length = np.linalg.norm(normal, axis=1)
    normal /= np.maximum(length, 1e-30)[:, None]
    height = ((points - a) * normal).sum(axis=1)
    foot = points - height[:, None] * normal
    is_inside = length > 0
    for start, end in edges:
        is_inside &= (np.cross(end - start, foot - start) * normal).sum(axis=1) >= 0
    return np.where(is_inside, np.abs(height), to_edges)


def surface_errors(small: TriMesh, mesh: TriMesh) -> tuple[float, float]:
    """Mean distance of a simplified surface from the mesh, and the largest in either direction."""
    rng = np.random.default_rng(0)
    area = np.linalg.norm(small.face_cross_products(), axis=1)
    face = rng.choice(len(area), 20_000, p=area / area.sum())
    points = np.einsum("nk,nki->ni", rng.dirichlet((1, 1, 1), 20_000), small.corners[face].astype(np.float64))
    there = to_surface(points, mesh, faces=12)
    vertices = mesh.vertices[rng.choice(len(mesh.vertices), 10_000, replace=False)].astype(np.float64)
    back = to_surface(vertices, small, faces=60)  # its faces are large and uneven
    return float(there.mean()), float(max(there.max(), back.max()))
