"""The nearest place of a surface to a point, found in a regular grid of its faces. Knows nothing of attributes.

For what is baked from an unsimplified surface onto a simplified one: the two are a few cells apart at most.
"""

from __future__ import annotations

from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.mesh.kernels import kernel
from pipeline.mesh.tri_mesh import TriMesh

CELLS_PER_FACE = 0.7
"""Cells along the side of a cube, as a multiple of the square root of the number of faces: a few faces a cell."""
MOST_CELLS_ALONG = 160
LEAST_COSINE = 0.2
"""A face whose normal turns farther from the point's own belongs to another side of the surface, as of a thin wall."""


NO_FACE = -1
REACH_SHARE = 0.04
"""How far places are searched, as a share of the mesh's longest side: seven cells of a grid of 180."""


class Nearest(NamedTuple):
    """Places on a surface.

    Attributes:
        faces: (P,) int32; `NO_FACE` where the surface has no face within reach.
        weights: (P, 3) float32 barycentric, of the faces' corners.
    """

    faces: NDArray[np.int32]
    weights: NDArray[np.float32]


class NearestSurface:
    """Finds nearest places on a mesh.

    Args:
        mesh: (V, 3) vertices, (F, 3) faces, at least one.
        is_oriented: whether faces look to the outside; else a face may look either way.
    """

    def __init__(self, mesh: TriMesh, *, is_oriented: bool = True) -> None:
        self._mesh = mesh
        self._is_oriented = is_oriented

    def find(self, points: NDArray[np.float32], normals: NDArray[np.float32]) -> Nearest:
        """The nearest places whose faces look to the same side as the points do.

        Args:
            points: (P, 3), in the frame of the mesh.
            normals: (P, 3) unit normals of the points.
        """
        faces = np.full(len(points), NO_FACE, np.int32)
        weights = np.zeros((len(points), 3), np.float32)
        _find_nearest(
            self._grid, self._is_oriented, points.astype(np.float64), normals.astype(np.float64), faces, weights
        )
        return Nearest(faces, weights)

    def normals_at(self, points: NDArray[np.float32], normals: NDArray[np.float32]) -> NDArray[np.float32]:
        """Interpolated unit normals of the mesh at the nearest places, or those of the points where there is none.

        Args:
            points: (P, 3), in the frame of the mesh.
            normals: (P, 3) unit normals of the points.

        Returns:
            (P, 3) float32.
        """
        faces, weights = self.find(points, normals)
        found = np.einsum("pk,pki->pi", weights, self._vertex_normals[self._mesh.faces[faces]])
        found[faces == NO_FACE] = normals[faces == NO_FACE]
        return (found / np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-12)).astype(np.float32)

    @cached_property
    def _vertex_normals(self) -> NDArray[np.float32]:
        return self._mesh.vertex_normals()

    @cached_property
    def _grid(self) -> _Grid:
        corners = self._mesh.corners.astype(np.float64)
        cross = self._mesh.face_cross_products()
        normals = cross / np.maximum(np.linalg.norm(cross, axis=1, keepdims=True), 1e-300)
        low, high = self._mesh.bounds()
        longest = max(float((high - low).max()), 1e-9)
        side = longest / min(MOST_CELLS_ALONG, max(1, int(CELLS_PER_FACE * np.sqrt(len(corners)))))
        shape = np.floor((high - low) / side).astype(np.int64) + 1
        first = np.clip(np.floor((corners.min(axis=1) - low) / side).astype(np.int64), 0, shape - 1)  # (F, 3)
        last = np.clip(np.floor((corners.max(axis=1) - low) / side).astype(np.int64), 0, shape - 1)
        starts, members = _sort_into_cells(first, last, shape)
        return _Grid(corners, normals, low, side, REACH_SHARE * longest, starts, members)


class _Grid(NamedTuple):
    """Faces by the cells that their bounding boxes meet.

    Attributes:
        corners: (F, 3, 3) of the faces.
        normals: (F, 3) unit vectors of the faces, zero for those without area.
        low: (3,) the lowest corner.
        side: of a cell.
        reach: largest distance that counts.
        starts: (X, Y, Z, 2) where in `members` the faces of a cell begin and end.
        members: (M,) faces.
    """

    corners: NDArray[np.float64]
    normals: NDArray[np.float64]
    low: NDArray[np.float64]
    side: float
    reach: float
    starts: NDArray[np.int64]
    members: NDArray[np.int32]


@kernel
def _sort_into_cells(
    first: NDArray[np.int64],  # (F, 3) lowest cell of each face's bounding box
    last: NDArray[np.int64],  # (F, 3) highest cell
    shape: NDArray[np.int64],  # (3,)
) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """The tables `starts` and `members` of a grid."""
    starts = np.zeros((shape[0], shape[1], shape[2], 2), np.int64)
    members = np.empty(0, np.int32)
    for fill in range(2):
        if fill == 1:
            total = 0
            for x in range(shape[0]):
                for y in range(shape[1]):
                    for z in range(shape[2]):
                        count = starts[x, y, z, 1]
                        starts[x, y, z, 0] = starts[x, y, z, 1] = total
                        total += count
            members = np.empty(total, np.int32)
        for f in range(len(first)):
            for x in range(first[f, 0], last[f, 0] + 1):
                for y in range(first[f, 1], last[f, 1] + 1):
                    for z in range(first[f, 2], last[f, 2] + 1):
                        if fill == 1:
                            members[starts[x, y, z, 1]] = f
                        starts[x, y, z, 1] += 1
    return starts, members


@kernel
def _find_nearest(
    grid: _Grid,
    is_oriented: bool,
    points: NDArray[np.float64],  # (P, 3)
    normals: NDArray[np.float64],  # (P, 3)
    faces: NDArray[np.int32],  # (P,) written
    weights: NDArray[np.float32],  # (P, 3) written
) -> None:
    """Search the cells around each point, ring by ring, until no farther cell can have a nearer face."""
    low, side, starts = grid.low, grid.side, grid.starts
    cell = np.empty(3, np.int64)
    for p in range(len(points)):
        for k in range(3):
            cell[k] = min(max(int(np.floor((points[p, k] - low[k]) / side)), 0), starts.shape[k] - 1)
        best = grid.reach * grid.reach
        ring = 0
        while True:
            for i in range(max(cell[0] - ring, 0), min(cell[0] + ring + 1, starts.shape[0])):
                for j in range(max(cell[1] - ring, 0), min(cell[1] + ring + 1, starts.shape[1])):
                    is_side = abs(i - cell[0]) == ring or abs(j - cell[1]) == ring
                    step = 1 if is_side or ring == 0 else 2 * ring  # elsewhere only the column's two ends
                    for c in range(cell[2] - ring, cell[2] + ring + 1, step):
                        if c < 0 or c >= starts.shape[2]:
                            continue
                        for m in range(starts[i, j, c, 0], starts[i, j, c, 1]):
                            f = grid.members[m]
                            cosine = 0.0
                            for k in range(3):
                                cosine += grid.normals[f, k] * normals[p, k]
                            if (cosine if is_oriented else abs(cosine)) < LEAST_COSINE:
                                continue
                            u, v, w = nearest_in_triangle(points[p], grid.corners[f])
                            d2 = 0.0
                            for k in range(3):
                                gap = (
                                    u * grid.corners[f, 0, k] + v * grid.corners[f, 1, k] + w * grid.corners[f, 2, k]
                                ) - points[p, k]
                                d2 += gap * gap
                            if d2 < best or (d2 == best and f < faces[p]):
                                best = d2
                                faces[p] = f
                                weights[p, 0], weights[p, 1], weights[p, 2] = u, v, w
            # Every face nearer than `safe`, the distance to the cells not visited yet, has been seen.
            safe = np.inf
            for k in range(3):
                if cell[k] + ring + 1 < starts.shape[k]:
                    safe = min(safe, low[k] + (cell[k] + ring + 1) * side - points[p, k])
                if cell[k] - ring > 0:
                    safe = min(safe, points[p, k] - low[k] - (cell[k] - ring) * side)
            if best <= safe * abs(safe):
                break
            ring += 1


@kernel
def nearest_in_triangle(point: NDArray[np.float64], corners: NDArray[np.float64]) -> tuple[float, float, float]:
    """Barycentric weights of the point of a triangle, (3, 3), that is nearest to a point, (3,).

    Source: Ericson, Real-Time Collision Detection, 2005, section 5.1.5: the regions of corners, edges and the inside.
    """
    d1 = d2 = d3 = d4 = d5 = d6 = 0.0
    for k in range(3):
        ab, ac = corners[1, k] - corners[0, k], corners[2, k] - corners[0, k]
        ap, bp, cp = point[k] - corners[0, k], point[k] - corners[1, k], point[k] - corners[2, k]
        d1 += ab * ap
        d2 += ac * ap
        d3 += ab * bp
        d4 += ac * bp
        d5 += ab * cp
        d6 += ac * cp
    if d1 <= 0 and d2 <= 0:
        return 1.0, 0.0, 0.0
    if d3 >= 0 and d4 <= d3:
        return 0.0, 1.0, 0.0
    vc = d1 * d4 - d3 * d2
    if vc <= 0 and d1 >= 0 and d3 <= 0:
        t = d1 / (d1 - d3)
        return 1 - t, t, 0.0
    if d6 >= 0 and d5 <= d6:
        return 0.0, 0.0, 1.0
    vb = d5 * d2 - d1 * d6
    if vb <= 0 and d2 >= 0 and d6 <= 0:
        t = d2 / (d2 - d6)
        return 1 - t, 0.0, t
    va = d3 * d6 - d5 * d4
    if va <= 0 and d4 - d3 >= 0 and d5 - d6 >= 0:
        t = (d4 - d3) / ((d4 - d3) + (d5 - d6))
        return 0.0, 1 - t, t
    total = va + vb + vc
    return va / total, vb / total, vc / total
