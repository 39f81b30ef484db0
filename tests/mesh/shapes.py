"""Meshes for the tests, built from fields and by hand."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from skimage.measure import marching_cubes

from pipeline.mesh.tri_mesh import TriMesh


def of_field(values: NDArray[np.floating]) -> TriMesh:
    """The zero surface of values on a grid, negative inside, in the unit cube, wound outward."""
    vertices, faces, _, _ = marching_cubes(values.astype(np.float32), 0.0, gradient_direction="descent")
    return TriMesh((vertices / (np.array(values.shape) - 1) - 0.5).astype(np.float32), faces.astype(np.int32))


def grid(cells: int) -> tuple[NDArray[np.float64], ...]:
    axis = np.linspace(-0.5, 0.5, cells + 1)
    return tuple(np.meshgrid(axis, axis, axis, indexing="ij"))


def sphere(cells: int = 40, radius: float = 0.4) -> TriMesh:
    x, y, z = grid(cells)
    return of_field(np.sqrt(x**2 + y**2 + z**2) - radius)


def torus(cells: int = 48) -> TriMesh:
    x, y, z = grid(cells)
    return of_field(np.hypot(np.hypot(x, z) - 0.3, y) - 0.12)


def box(cells: int = 40) -> TriMesh:
    x, y, z = grid(cells)
    return of_field(np.max(np.abs(np.stack([x / 0.41, y / 0.33, z / 0.27])), axis=0) - 1)


def organic(cells: int = 48) -> TriMesh:
    x, y, z = grid(cells)
    lumps = 0.05 * np.sin(13 * x) * np.sin(11 * y + 1) * np.sin(12 * z + 2)
    return of_field(np.sqrt(x**2 + y**2 + z**2) - 0.36 - lumps)


def stalks(cells: int = 60) -> TriMesh:
    """A solid with legs little thicker than a cell."""
    x, y, z = grid(cells)
    legs = np.min([np.hypot(x - a, z - b) - 0.02 for a in (-0.2, 0.2) for b in (-0.15, 0.15)], axis=0)
    legs = np.maximum(legs, np.abs(y + 0.2) - 0.25)
    body = np.max(np.abs(np.stack([x / 0.3, (y - 0.15) / 0.1, z / 0.25])), axis=0) - 1
    return of_field(np.minimum(legs, 0.1 * body))


ALL = {shape.__name__: shape for shape in (sphere, torus, box, organic, stalks)}


def hemisphere(cells: int = 48) -> TriMesh:
    """The lower half of a sphere, open at the top: its border is a circle in a plane."""
    ball = sphere(cells)
    return TriMesh(ball.vertices, ball.faces[ball.corners[:, :, 1].mean(axis=1) < 0])


def leaf(cells: int = 96) -> TriMesh:
    """A curved sheet with a pointed outline and three round holes; its borders follow the grid's cells."""
    axis = np.linspace(-0.5, 0.5, cells + 1)
    x, z = np.meshgrid(axis, axis, indexing="ij")
    inside = np.hypot(x, 0.35 + 0.5 * np.abs(z)) < 0.6
    for a, b, radius in ((0.1, 0.2, 0.08), (-0.15, 0.0, 0.1), (0.05, -0.22, 0.06)):
        inside &= np.hypot(x - a, z - b) > radius
    vertices = np.stack([x, 0.15 * np.cos(3 * x) * np.cos(2 * z), z], axis=-1).reshape(-1, 3)
    number = np.arange(vertices.shape[0]).reshape(x.shape)
    a, b, c, d = number[:-1, :-1], number[1:, :-1], number[1:, 1:], number[:-1, 1:]
    whole = inside[:-1, :-1] & inside[1:, :-1] & inside[1:, 1:] & inside[:-1, 1:]
    faces = np.concatenate([np.stack([a, c, b], axis=-1)[whole], np.stack([a, d, c], axis=-1)[whole]])
    used, numbered = np.unique(faces, return_inverse=True)
    return TriMesh(vertices[used].astype(np.float32), numbered.reshape(-1, 3).astype(np.int32))


def border_distance(mesh: TriMesh, other: TriMesh) -> float:
    """Largest distance of a border vertex of either mesh from the borders of the other. Slow and plain."""

    def segments(of: TriMesh) -> NDArray[np.float64]:
        """(E, 2, 3)."""
        pairs = np.sort(of.faces[:, [0, 1, 1, 2, 2, 0]].reshape(-1, 2), axis=1)
        edges, counts = np.unique(pairs, axis=0, return_counts=True)
        return of.vertices[edges[counts == 1]].astype(np.float64)

    def farthest(points: NDArray[np.float64], ends: NDArray[np.float64]) -> float:
        worst = 0.0
        start, along = ends[:, 0], ends[:, 1] - ends[:, 0]
        for point in points:
            share = np.clip(((point - start) * along).sum(axis=1) / np.maximum((along**2).sum(axis=1), 1e-30), 0, 1)
            worst = max(worst, float(np.linalg.norm(start + share[:, None] * along - point, axis=1).min()))
        return worst

    first, second = segments(mesh), segments(other)
    return max(farthest(first.reshape(-1, 3), second), farthest(second.reshape(-1, 3), first))


def cuboid(size: tuple[float, float, float] = (1.0, 0.7, 0.4)) -> TriMesh:
    """Eight vertices and twelve faces, wound outward."""
    corners = np.array([[x, y, z] for x in (0, 1) for y in (0, 1) for z in (0, 1)], np.float32) - 0.5
    quads = [(0, 1, 3, 2), (4, 6, 7, 5), (0, 4, 5, 1), (2, 3, 7, 6), (0, 2, 6, 4), (1, 5, 7, 3)]
    faces = [triangle for a, b, c, d in quads for triangle in ((a, b, c), (a, c, d))]
    return TriMesh(corners * np.array(size, np.float32), np.array(faces, np.int32))


def tetrahedron(offset: tuple[float, float, float] = (0, 0, 0), scale: float = 0.2) -> TriMesh:
    vertices = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]], np.float32) * scale + np.float32(offset)
    return TriMesh(vertices, np.array([[0, 2, 1], [0, 1, 3], [0, 3, 2], [1, 2, 3]], np.int32))


def joined(*meshes: TriMesh) -> TriMesh:
    """Meshes as one, nothing welded."""
    starts = np.cumsum([0, *(len(mesh.vertices) for mesh in meshes[:-1])])
    faces = np.concatenate([mesh.faces + start for mesh, start in zip(meshes, starts, strict=True)])
    return TriMesh(np.concatenate([mesh.vertices for mesh in meshes]), faces.astype(np.int32))


def welded_report(mesh: TriMesh) -> tuple[bool, bool, int, float]:
    """Report of a reader that merges vertices within a micrometre. Slow and plain.

    Returns:
        Whether it is watertight and consistently wound, the number of non-manifold edges, and the volume.
    """
    places: dict[tuple[int, ...], int] = {}
    number = [
        places.setdefault(tuple(place), len(places))
        for place in np.round(mesh.vertices.astype(float) * 1e6).astype(int).tolist()
    ]
    edges: dict[tuple[int, int], list[int]] = {}
    for face in mesh.faces.tolist():
        a, b, c = (number[corner] for corner in face)
        if len({a, b, c}) < 3:
            continue
        for start, end in ((a, b), (b, c), (c, a)):
            edges.setdefault((min(start, end), max(start, end)), []).append(1 if start < end else -1)
    closed = all(len(uses) == 2 for uses in edges.values())
    consistent = all(sum(uses) == 0 for uses in edges.values())
    return closed, consistent, sum(len(uses) > 2 for uses in edges.values()), mesh.volume()


def turned_over(mesh: TriMesh, *, upside_down: bool = False) -> TriMesh:
    """The same surface wound inward, as a cavity is; or, mirrored at the ground too, wound outward again."""
    flip = np.float32([1, -1, 1]) if upside_down else np.float32([1, 1, 1])
    return TriMesh(mesh.vertices * flip, mesh.faces[:, ::-1].copy())
