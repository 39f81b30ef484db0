"""Voxels that the surface of a mesh passes through, on a grid around its bounding box. Surface only: nothing is filled.

Source: microsoft/TRELLIS@6b0d647, trellis_text_to_3d.py, voxelize; the test: Akenine-Möller 2001, "Fast 3D
Triangle-Box Overlap Testing", Journal of Graphics Tools 6 (1), with touching counted as overlap.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import InvalidRequest
from pipeline.mesh.kernels import kernel

VOXEL_RESOLUTION = 64
"""Cells along the side of the grid, as the text models were trained with."""
INSET = 1e-6  # vertices keep this distance from the sides of the unit cube, so that none lies in a cell outside


def voxelize(vertices: NDArray[np.floating], faces: NDArray[np.integer]) -> NDArray[np.uint8]:
    """Return the cells that the surface of a mesh touches.

    The mesh is moved and scaled so that its bounding box is centred in the unit cube and its longest side fills it. A
    face on the boundary of two cells belongs to the upper one, or to both where its extent along that axis is not 0.

    Args:
        vertices: (V, 3) positions, in the frame of the grid.
        faces: (F, 3) vertex indices.

    Returns:
        (N, 3) cells, sorted by x, y, z.

    Raises:
        InvalidRequest: the mesh has no extent, or numbers that are not finite.
    """
    used = vertices[np.unique(faces)].astype(np.float64) if len(faces) else np.zeros((0, 3))
    if len(used) == 0 or not np.isfinite(used).all():
        raise InvalidRequest("the mesh has no faces, or vertices that are not finite")
    low, high = used.min(axis=0), used.max(axis=0)
    extent = float((high - low).max())
    if not 0 < extent < np.inf:
        raise InvalidRequest("the mesh has no extent: all its vertices are at one point")
    moved = (vertices.astype(np.float64) - (low + high) / 2) / extent
    moved = np.clip(np.nan_to_num(moved), -0.5 + INSET, 0.5 - INSET)
    occupied = _mark(moved, faces.astype(np.int64), VOXEL_RESOLUTION)
    return np.argwhere(occupied).astype(np.uint8)


@kernel
def _mark(
    vertices: NDArray[np.float64],  # (V, 3) in the unit cube around the origin
    faces: NDArray[np.int64],  # (F, 3)
    side: int,
) -> NDArray[np.bool_]:  # (side, side, side)
    occupied = np.zeros((side, side, side), np.bool_)
    half = 0.5 / side
    first = np.empty(3, np.int64)
    count = np.empty(3, np.int64)
    corners = np.empty((3, 3))
    for face in range(len(faces)):
        for axis in range(3):
            low, high = np.inf, -np.inf
            for corner in range(3):
                value = vertices[faces[face, corner], axis]
                low, high = min(low, value), max(high, value)
            # The lowest cell is the one that contains the lowest vertex: a face on a boundary is in the cell above it.
            first[axis] = int(np.floor((low + 0.5) * side))
            count[axis] = int(np.rint((high - low) * side)) + 2
        for x in range(first[0], min(first[0] + count[0], side)):
            for y in range(first[1], min(first[1] + count[1], side)):
                for z in range(first[2], min(first[2] + count[2], side)):
                    if occupied[x, y, z]:
                        continue
                    for corner in range(3):
                        at = faces[face, corner]
                        corners[corner, 0] = vertices[at, 0] - ((x + 0.5) / side - 0.5)
                        corners[corner, 1] = vertices[at, 1] - ((y + 0.5) / side - 0.5)
                        corners[corner, 2] = vertices[at, 2] - ((z + 0.5) / side - 0.5)
                    occupied[x, y, z] = _touches_cube(corners, half)
    return occupied


@kernel
def _touches_cube(corners: NDArray[np.float64], half: float) -> bool:
    """Return whether a triangle touches the cube around the origin; no axis separates the two if it does.

    Args:
        corners: (3, 3).
        half: half the side of the cube.
    """
    for axis in range(3):  # the normals of the cube
        values = corners[:, axis]
        if values.min() > half or values.max() < -half:
            return False
    edges = np.empty((3, 3))
    for k in range(3):
        edges[k] = corners[(k + 1) % 3] - corners[k]
    for k in range(3):  # the products of the triangle's edges with the axes
        for axis in range(3):
            u, v = (axis + 1) % 3, (axis + 2) % 3
            low, high = np.inf, -np.inf
            for corner in range(3):
                value = edges[k, u] * corners[corner, v] - edges[k, v] * corners[corner, u]
                low, high = min(low, value), max(high, value)
            radius = half * (abs(edges[k, u]) + abs(edges[k, v]))
            if low > radius or high < -radius:
                return False
    normal = np.empty(3)  # the triangle's own
    for axis in range(3):
        u, v = (axis + 1) % 3, (axis + 2) % 3
        normal[axis] = edges[0, u] * edges[1, v] - edges[0, v] * edges[1, u]
    distance = 0.0
    radius = 0.0
    for axis in range(3):
        distance += normal[axis] * corners[0, axis]
        radius += half * abs(normal[axis])
    return abs(distance) <= radius
