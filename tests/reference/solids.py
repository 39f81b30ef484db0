"""Closed solids with a known inside, images of them from known cameras, and the overlap of two solids."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from skimage.measure import marching_cubes

from pipeline.mesh.tri_mesh import TriMesh
from pipeline.render.mesh_view import RenderMesh, render_view
from pipeline.render.orbit import Camera, intrinsics_of, look_at

Field = Callable[[NDArray[np.float64]], NDArray[np.float64]]
"""Points (..., 3) to a value that is negative inside."""


def length(points: NDArray[np.float64], *axes: int) -> NDArray[np.float64]:
    return np.sqrt((points[..., list(axes)] ** 2).sum(axis=-1))


def sphere(p: NDArray[np.float64]) -> NDArray[np.float64]:
    return length(p, 0, 1, 2) - 0.4


def cylinder(p: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.maximum(length(p, 0, 2) - 0.25, np.abs(p[..., 1]) - 0.4)


def cone(p: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.maximum(length(p, 0, 2) - 0.4 * (0.4 - p[..., 1]) / 0.8, np.abs(p[..., 1]) - 0.4)


def box(p: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.max(np.abs(p) - np.array([0.3, 0.4, 0.2]), axis=-1)


def vase(p: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.maximum(length(p, 0, 2) - 0.2 - 0.1 * np.sin(9 * p[..., 1]), np.abs(p[..., 1]) - 0.42)


def two_balls(p: NDArray[np.float64]) -> NDArray[np.float64]:
    upper, lower = p - [0.0, 0.25, 0.0], p - [0.0, -0.2, 0.0]
    return np.minimum(length(upper, 0, 1, 2) - 0.17, length(lower, 0, 1, 2) - 0.22)


def lying_ring(p: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.sqrt((length(p, 0, 2) - 0.28) ** 2 + p[..., 1] ** 2) - 0.11


def bowl(p: NDArray[np.float64]) -> NDArray[np.float64]:
    shell = np.abs(length(p, 0, 1, 2) - 0.36) - 0.05
    return np.maximum(shell, p[..., 1])


def stairs(p: NDArray[np.float64]) -> NDArray[np.float64]:
    lower = np.max(np.abs(p - [0.0, -0.2, 0.0]) - [0.35, 0.2, 0.25], axis=-1)
    upper = np.max(np.abs(p - [-0.2, 0.15, 0.1]) - [0.15, 0.2, 0.15], axis=-1)
    return np.minimum(lower, upper)


SHAPES: dict[str, Field] = {
    shape.__name__: shape for shape in (sphere, cylinder, cone, box, vase, two_balls, lying_ring, bowl, stairs)
}


def mesh_of(field: Field, *, cells: int = 64) -> TriMesh:
    """The surface of a field in the unit cube, closed, wound outward."""
    axis = np.linspace(-0.5, 0.5, cells + 1)
    values = field(np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), axis=-1))
    vertices, faces, _, _ = marching_cubes(values.astype(np.float32), 0.0, gradient_direction="ascent")
    mesh = TriMesh((vertices / cells - 0.5).astype(np.float32), faces.astype(np.int32))
    return mesh if mesh.volume() > 0 else TriMesh(mesh.vertices, np.ascontiguousarray(mesh.faces[:, ::-1]))


def in_grey(mesh: TriMesh) -> RenderMesh:
    """A mesh with a texture of one grey."""
    texture = np.full((1, 1, 3), 160, np.uint8)
    uvs = np.zeros((len(mesh.vertices), 2), np.float32)
    return RenderMesh(mesh.vertices.astype(np.float32), mesh.faces, mesh.vertex_normals(), uvs, texture)


def horizon_camera(azimuth_rad: float, *, distance: float = 12.0, half_side_m: float = 0.55) -> Camera:
    """A camera at elevation 0 with little perspective; azimuth 0 is in front, and it grows towards +X."""
    eye = distance * np.array([math.sin(azimuth_rad), -math.cos(azimuth_rad), 0.0])  # in the z-up frame of cameras
    return Camera(look_at(eye, np.zeros(3)), intrinsics_of(2 * math.atan(half_side_m / distance)))


def views_around(mesh: TriMesh, count: int, *, size: int = 256) -> list[NDArray[np.uint8]]:
    """Images (size, size, 4) from evenly spaced sides, counter-clockwise seen from above."""
    return [render_view(in_grey(mesh), horizon_camera(2 * math.pi * k / count), size=size) for k in range(count)]


def inside_of(field: Field, axis: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Grid points at which a field is negative: (N,) -> (N, N, N)."""
    return field(np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), axis=-1)) < 0


def true_hull(inside: NDArray[np.bool_], field: Field, count: int, axis: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Visual hull of a field for parallel rays from `count` sides, at grid points: (N, N, N)."""
    kept = np.ones_like(inside)
    x, z = np.meshgrid(axis, axis, indexing="ij")
    for k in range(count):
        angle = 2 * math.pi * k / count
        across, along = x * math.cos(angle) - z * math.sin(angle), axis
        # The silhouette: for each (across, height), whether any point along the ray is inside.
        offsets = np.linspace(-0.75, 0.75, 160)
        u, y, w = np.meshgrid(np.linspace(-0.75, 0.75, 161), along, offsets, indexing="ij")
        points = np.stack(
            [u * math.cos(angle) + w * math.sin(angle), y, -u * math.sin(angle) + w * math.cos(angle)], -1
        )
        silhouette = (field(points) < 0).any(axis=2)
        column = np.clip(np.round((across + 0.75) / 1.5 * 160).astype(int), 0, 160)
        kept &= silhouette[column].transpose(0, 2, 1)
    return kept


def filled(mesh: TriMesh, axis: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Grid points inside a closed mesh, (N, N, N): parity of the crossings along z, column by column."""
    inside = np.zeros((len(axis),) * 3, bool)
    step = axis[1] - axis[0]
    nudge = step * 1e-3  # off the vertices
    corners = mesh.corners.astype(np.float64)
    low = np.floor((corners[:, :, :2].min(axis=1) - axis[0]) / step).astype(int)
    high = np.ceil((corners[:, :, :2].max(axis=1) - axis[0]) / step).astype(int)
    for (a, b, c), (i0, j0), (i1, j1) in zip(corners, np.maximum(low, 0), np.minimum(high, len(axis) - 1), strict=True):
        area = (b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0])
        if area == 0:
            continue
        for i in range(i0, i1 + 1):
            for j in range(j0, j1 + 1):
                x, y = axis[i] + nudge, axis[j] + 1.7 * nudge
                u = ((b[0] - x) * (c[1] - y) - (b[1] - y) * (c[0] - x)) / area
                v = ((c[0] - x) * (a[1] - y) - (c[1] - y) * (a[0] - x)) / area
                if u > 0 and v > 0 and u + v < 1:
                    inside[i, j] ^= axis > u * a[2] + v * b[2] + (1 - u - v) * c[2]
    return inside


def overlap(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> float:
    """Intersection over union."""
    return float((first & second).sum() / (first | second).sum())
