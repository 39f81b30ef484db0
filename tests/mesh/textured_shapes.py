"""Shapes and a colour field for the tests of textures, and the colours that a viewer samples at points of a surface."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from skimage.measure import marching_cubes

from pipeline.mesh.tri_mesh import TriMesh
from pipeline.mesh.unwrap import UnwrappedMesh

FIELD_FREQUENCY = 40.0  # radians per metre: 6 periods over the unit cube
EDGE_TEXELS = 1.0


def torus(*, around: int = 128, across: int = 64, radius: float = 0.33, tube: float = 0.15) -> TriMesh:
    """A closed ring in the xz plane, `2 * around * across` faces, wound outward."""
    i, j = np.meshgrid(np.arange(around), np.arange(across), indexing="ij")
    u, v = 2 * np.pi * i / around, 2 * np.pi * j / across
    ring = radius + tube * np.cos(v)
    vertices = np.stack([ring * np.cos(u), tube * np.sin(v), ring * np.sin(u)], axis=-1).reshape(-1, 3)
    right, up = (i + 1) % around, (j + 1) % across
    a, b, c, d = i * across + j, right * across + j, right * across + up, i * across + up
    faces = np.stack([np.stack([a, c, b], -1), np.stack([a, d, c], -1)], axis=2).reshape(-1, 3)
    return TriMesh(vertices.astype(np.float32), faces.astype(np.int32))


def box(size: tuple[float, float, float] = (1.0, 0.7, 0.4)) -> TriMesh:
    """Eight vertices and twelve faces, wound outward."""
    corners = np.array([[x, y, z] for x in (0, 1) for y in (0, 1) for z in (0, 1)], np.float32) - 0.5
    quads = [(0, 1, 3, 2), (4, 6, 7, 5), (0, 4, 5, 1), (2, 3, 7, 6), (0, 2, 6, 4), (1, 5, 7, 3)]
    faces = [triangle for a, b, c, d in quads for triangle in ((a, b, c), (a, c, d))]
    return TriMesh(corners * np.array(size, np.float32), np.array(faces, np.int32))


def organic(*, cells: int = 48, seed: int = 0) -> TriMesh:
    """Merged balls and bumps from marching cubes, with folds, necks and undersides."""
    rng = np.random.default_rng(seed)
    axis = np.linspace(-0.5, 0.5, cells)
    grid = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), axis=-1)
    field = np.full(grid.shape[:3], -1.0)
    for centre, radius in zip(rng.uniform(-0.25, 0.25, (9, 3)), rng.uniform(0.06, 0.16, 9), strict=True):
        field += np.exp(1 - ((grid - centre) ** 2).sum(axis=-1) / radius**2)
    field += 0.12 * np.sin(45 * grid).prod(axis=-1)
    field[[0, -1]] = field[:, [0, -1]] = field[:, :, [0, -1]] = -1.0
    vertices, faces, _, _ = marching_cubes(field, 0.0, spacing=(1 / (cells - 1),) * 3, gradient_direction="ascent")
    return TriMesh((vertices - 0.5).astype(np.float32), faces.astype(np.int32))


def colour_field(points: NDArray[np.floating], normals: NDArray[np.floating] | None = None) -> NDArray[np.float32]:
    """A smooth colour (P, 3) of every point of space, different in each channel."""
    directions = np.array([[1.0, 0.3, 0.2], [0.1, 1.0, 0.4], [0.3, 0.2, 1.0]])
    return (0.5 + 0.45 * np.sin(FIELD_FREQUENCY * points.astype(np.float64) @ directions.T)).astype(np.float32)


def surface_samples(mesh: UnwrappedMesh, count: int, *, seed: int = 0) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Faces (P,) and barycentric weights (P, 3) of points spread evenly over the surface."""
    rng = np.random.default_rng(seed)
    corners = mesh.vertices[mesh.faces].astype(np.float64)
    area = np.linalg.norm(np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), axis=1)
    face = rng.choice(len(area), count, p=area / area.sum())
    return face, rng.dirichlet((1.0, 1.0, 1.0), count)


def at_weights(
    values: NDArray[np.floating], mesh: UnwrappedMesh, face: NDArray[np.int64], weights: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Values (V, C) of vertices, interpolated at points of faces: (P, C)."""
    return np.einsum("pk,pkc->pc", weights, values[mesh.faces[face]].astype(np.float64))


def look_up(texture: NDArray[np.uint8], uvs: NDArray[np.float64]) -> NDArray[np.float64]:
    """What bilinear filtering with clamped edges reads, as graphics cards do it: (P, 3) in [0, 1]."""
    size = len(texture)
    place = uvs * size - 0.5
    low = np.floor(place).astype(int)
    share = place - low
    total = np.zeros((len(uvs), 3))
    for dx in (0, 1):
        for dy in (0, 1):
            x, y = np.clip(low[:, 0] + dx, 0, size - 1), np.clip(low[:, 1] + dy, 0, size - 1)
            weight = np.abs(1 - dx - share[:, 0]) * np.abs(1 - dy - share[:, 1])
            total += weight[:, None] * texture[y, x]
    return total / 255.0


def is_near_seam(
    mesh: UnwrappedMesh, face: NDArray[np.int64], weights: NDArray[np.float64], *, texture_size: int
) -> NDArray[np.bool_]:
    """Which points (P,) lie within `EDGE_TEXELS` of an edge of their face at which the atlas is cut."""
    edges = np.sort(np.stack([np.roll(mesh.faces, -1, axis=1), np.roll(mesh.faces, -2, axis=1)], axis=2), axis=2)
    keys = edges[..., 0].astype(np.int64) * len(mesh.vertices) + edges[..., 1]  # edge k lies across from corner k
    _, inverse, counts = np.unique(keys, return_inverse=True, return_counts=True)
    is_cut = (counts[inverse] == 1).reshape(-1, 3)
    corners = mesh.uvs[mesh.faces].astype(np.float64) * texture_size
    first, second = corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]
    twice_area = np.abs(first[:, 0] * second[:, 1] - first[:, 1] * second[:, 0])
    length = np.linalg.norm(np.roll(corners, -1, axis=1) - np.roll(corners, -2, axis=1), axis=2)
    height = twice_area[:, None] / np.maximum(length, 1e-12)
    return (is_cut[face] & (weights * height[face] <= EDGE_TEXELS)).any(axis=1)


def psnr(seen: NDArray[np.float64], expected: NDArray[np.float64]) -> float:
    """Decibels for values in [0, 1]."""
    return float(-10 * np.log10(max(((seen - expected) ** 2).mean(), 1e-12)))


def times_owned(mesh: UnwrappedMesh, texture_size: int) -> NDArray[np.int64]:
    """How many faces hold the centre of each texel strictly inside: (S, S). Slow and obvious: face by face."""
    owned = np.zeros((texture_size, texture_size), np.int64)
    for corners in mesh.uvs[mesh.faces].astype(np.float64) * texture_size:
        left, top = np.maximum(np.floor(corners.min(axis=0)).astype(int), 0)
        right, bottom = np.minimum(np.ceil(corners.max(axis=0)).astype(int), texture_size)
        x, y = np.meshgrid(np.arange(left, right) + 0.5, np.arange(top, bottom) + 0.5)
        sides = []
        for k in range(3):
            (ax, ay), (bx, by) = corners[k], corners[(k + 1) % 3]
            sides.append((bx - ax) * (y - ay) - (by - ay) * (x - ax))
        margin = 1e-7  # texels squared: a centre on a shared edge, up to rounding, is inside neither
        inside = np.all([side > margin for side in sides], axis=0) | np.all([side < -margin for side in sides], axis=0)
        owned[top:bottom, left:right] += inside
    return owned
