"""Colours of surface points, computed from the Gaussians around them. numpy, scipy and numba, no torch.

The colour of a point is the mean of its nearest Gaussians, weighted by opacity and by their kernels at the point. The
kernels are widened by `FOOTPRINT`, because a point between small Gaussians would otherwise be covered by none. If the
sum of the weights is below `MIN_TOTAL_WEIGHT`, the vertex colours of the mesh are used.

The release renders 100 views and fits a texture to them instead; this needs no renderer and no optimisation.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import spatial
from scipy.sparse import csr_matrix

from pipeline.engines.base import ColourSource
from pipeline.mesh.kernels import kernel
from pipeline.mesh.packing import PacksArrays

SH_C0 = 0.28209479177387814  # the constant spherical harmonic, 1 / (2 sqrt(pi))
FOOTPRINT = 1 / 1024  # standard deviation added to every kernel, in units of the cube: about one texel
NEIGHBOURS = 12  # Gaussians per point
MIN_TOTAL_WEIGHT = 1e-4  # sum of weights below which the vertex colours are used
MIN_OPACITY = 1 / 255  # a Gaussian below this opacity is never visible in 8 bits
MOST_CELLS = 160  # of the grid along its longest side: 16 MB of offsets
PER_CELL = 12  # Gaussians in a cell that a surface passes through, about; the surface meets about two cells per column
SLACK = 1 + 1e-6  # of a squared distance to a cell: its corners are rounded
BLOCK = 8192  # Gaussians prepared at a time, so that what is temporary stays in the cache
REACH = 6.0  # standard deviations after which a kernel is nothing: NEIGHBOURS exp(-18) is 1/500 of `MIN_TOTAL_WEIGHT`


@dataclass(frozen=True, eq=False)
class VertexColours(PacksArrays, ColourSource):
    """Vertex colours: the mean of the nearest three vertices, weighted by inverse distance.

    Attributes:
        vertices: (V, 3) float32.
        rgb: (V, 3) uint8.
    """

    vertices: NDArray[np.float32]  # (V, 3)
    rgb: NDArray[np.uint8]  # (V, 3)

    @cached_property
    def tree(self) -> spatial.KDTree:
        """The search tree of the vertices, built at the first query and not pickled."""
        return spatial.KDTree(self.vertices)

    def colours_at(
        self,
        points: NDArray[np.float32],  # (P, 3)
        normals: NDArray[np.float32],  # (P, 3), not used
    ) -> NDArray[np.float32]:  # (P, 3)
        """See `ColourSource.colours_at`; grey if there are no vertices."""
        count = min(3, len(self.vertices))
        if count == 0:
            return np.full((len(points), 3), 0.5, np.float32)
        distance, index = _nearest(self.tree, points, count)  # (P, K) each
        weight = 1 / np.maximum(distance, 1e-9)
        weight /= weight.sum(axis=1, keepdims=True)
        return np.einsum("pk,pkc->pc", weight, self.rgb[index] / 255.0).astype(
            np.float32
        )  # (P, K), (P, K, 3) -> (P, 3)


@dataclass(frozen=True, eq=False)
class GaussianColours(PacksArrays, ColourSource):
    """Colours of Gaussians.

    Attributes:
        xyz: (G, 3) float32 centres in the frame of the mesh.
        scaling: (G, 3) float16 standard deviations along the axes of each Gaussian.
        rotation: (G, 4) float16 quaternions, w first, in the frame of the mesh.
        opacity: (G,) float16.
        rgb: (G, 3) uint8.
        fallback: used where no Gaussian covers a point.
    """

    xyz: NDArray[np.float32]  # (G, 3)
    scaling: NDArray[np.float16]  # (G, 3)
    rotation: NDArray[np.float16]  # (G, 4)
    opacity: NDArray[np.float16]  # (G,)
    rgb: NDArray[np.uint8]  # (G, 3)
    fallback: VertexColours

    @cached_property
    def grid(self) -> _Grid:
        """The Gaussians sorted into a grid, built at the first query and not pickled."""
        return _sort_into_grid(self)

    def colours_at(
        self,
        points: NDArray[np.float32],  # (P, 3)
        normals: NDArray[np.float32],  # (P, 3), used by the fallback only
    ) -> NDArray[np.float32]:  # (P, 3)
        """See `ColourSource.colours_at`."""
        if len(self.xyz) == 0:
            return self.fallback.colours_at(points, normals)
        sums = np.zeros((len(points), 4), np.float32)  # of weight times colour, and of the weights
        near, number = np.empty((4, len(self.xyz)), np.float32), np.empty(len(self.xyz), np.int32)
        _add_nearest(self.grid, np.ascontiguousarray(points, np.float32), near, number, sums)
        total = sums[:, 3]
        colours = sums[:, :3] / np.maximum(total, np.float32(1e-30))[:, None]
        faint = total < MIN_TOTAL_WEIGHT
        if faint.any():
            colours[faint] = self.fallback.colours_at(points[faint], normals[faint])
        return colours.astype(np.float32, copy=False)


class _Grid(NamedTuple):
    """Gaussians in the order of the cells of a regular grid that they lie in.

    Attributes:
        centres: (G, 3) float32.
        kernels: (G, 10) float32: the upper triangle, row by row, of the inverse of the widened covariance; colour in
            [0, 1]; opacity.
        starts: (X, Y, Z) int32, the first Gaussian of each cell.
        ends: (X, Y, Z) int32, after the last one.
        low: (3,) float64, the lowest corner.
        side: of a cell.
        reach: distance from which on no Gaussian counts.
    """

    centres: NDArray[np.float32]
    kernels: NDArray[np.float32]
    starts: NDArray[np.int32]
    ends: NDArray[np.int32]
    low: NDArray[np.float64]
    side: float
    reach: float


def _sort_into_grid(source: GaussianColours) -> _Grid:
    """Sort Gaussians, at least one, into a grid; Gaussians of one cell keep their order."""
    # Column by column, and `take` instead of an index: numpy takes several times as long for rows of three.
    low, high = (np.array([pick(source.xyz[:, k]) for k in range(3)], np.float64) for pick in (np.min, np.max))
    along_longest = min(MOST_CELLS, 1 + int(np.sqrt(len(source.xyz) / (2 * PER_CELL))))
    side = max(float((high - low).max()) / along_longest, 1e-9)
    cells = [np.floor((source.xyz[:, k] - low[k]) / side).astype(np.int32) for k in range(3)]  # all at least 0
    shape = tuple(int(each.max()) + 1 for each in cells)
    # A sparse matrix with one entry per Gaussian, in the column of its cell; by columns, it is sorted in linear time.
    at_cell = csr_matrix(
        (
            np.ones(len(source.xyz), np.int8),
            (cells[0] * shape[1] + cells[1]) * shape[2] + cells[2],
            np.arange(len(source.xyz) + 1, dtype=np.int32),
        ),
        shape=(len(source.xyz), shape[0] * shape[1] * shape[2]),
    ).tocsc()
    kernels = np.empty((len(source.xyz), 10), np.float32)
    widest = np.float32(0)
    for start in range(0, len(kernels), BLOCK):
        block = at_cell.indices[start : start + BLOCK]
        variance = source.scaling.take(block, axis=0).astype(np.float32).T ** 2 + np.float32(FOOTPRINT**2)  # (3, B)
        widest = max(widest, variance.max())
        kernels[start : start + BLOCK, :6] = _inverse_covariances(
            source.rotation.take(block, axis=0).astype(np.float32).T, variance
        )
        kernels[start : start + BLOCK, 6:9] = source.rgb.take(block, axis=0) / np.float32(255)
        kernels[start : start + BLOCK, 9] = source.opacity[block]
    return _Grid(
        source.xyz.take(at_cell.indices, axis=0),
        kernels,
        np.asarray(at_cell.indptr[:-1], np.int32).reshape(shape),
        np.asarray(at_cell.indptr[1:], np.int32).reshape(shape),
        low,
        side,
        REACH * float(np.sqrt(widest)),
    )


def _inverse_covariances(rotation: NDArray[np.float32], variance: NDArray[np.float32]) -> NDArray[np.float32]:
    """Inverses of covariances, the upper triangles row by row: quaternions (4, B), variances (3, B) -> (B, 6)."""
    w, x, y, z = np.ascontiguousarray(rotation)
    # The axes of each Gaussian as rows; their products, divided by the variances, sum up to the inverse.
    axes = [
        [1 - 2 * (y * y + z * z), 2 * (x * y + w * z), 2 * (x * z - w * y)],
        [2 * (x * y - w * z), 1 - 2 * (x * x + z * z), 2 * (y * z + w * x)],
        [2 * (x * z + w * y), 2 * (y * z - w * x), 1 - 2 * (x * x + y * y)],
    ]
    return np.stack(
        [
            sum((axes[k][i] * axes[k][j] / variance[k] for k in range(3)), np.float32(0))
            for i in range(3)
            for j in range(i, 3)
        ],
        axis=1,
    )


@kernel
def _add_nearest(
    grid: _Grid,
    points: NDArray[np.float32],  # (P, 3)
    near: NDArray[np.float32],  # (4, G) written: centres of the Gaussians around a cell, squared distances
    number: NDArray[np.int32],  # (G,) written: which they are
    sums: NDArray[np.float32],  # (P, 4) written
) -> None:
    """Sum up the `NEIGHBOURS` nearest Gaussians of each point: weight times colour, and the weight."""
    centres, kernels, starts, ends, low, side = grid.centres, grid.kernels, grid.starts, grid.ends, grid.low, grid.side
    nearest = np.empty(NEIGHBOURS, np.int32)
    distance2 = np.empty(NEIGHBOURS, np.float32)  # ascending
    last_i = last_j = last_c = last_ring = -1
    found = count = 0
    for p in range(len(points)):
        px, py, pz = points[p, 0], points[p, 1], points[p, 2]
        i = min(max(int(np.floor((px - low[0]) / side)), 0), starts.shape[0] - 1)
        j = min(max(int(np.floor((py - low[1]) / side)), 0), starts.shape[1] - 1)
        c = min(max(int(np.floor((pz - low[2]) / side)), 0), starts.shape[2] - 1)
        # As many Gaussians as the point before had lie no farther than its last one, seen from here.
        limit2 = np.inf
        if found == NEIGHBOURS:
            qx, qy, qz = points[p - 1, 0], points[p - 1, 1], points[p - 1, 2]
            step2 = (px - qx) * (px - qx) + (py - qy) * (py - qy) + (pz - qz) * (pz - qz)
            limit = np.sqrt(distance2[NEIGHBOURS - 1]) + np.sqrt(step2)
            limit2 = limit * limit * SLACK
        ring = 1
        while True:
            # The Gaussians of all cells at Chebyshev distance `ring` or less from the point's own: mostly those of the
            # point before. The cells of a column follow each other in memory.
            if i != last_i or j != last_j or c != last_c or ring != last_ring:
                last_i, last_j, last_c, last_ring = i, j, c, ring
                count = 0
                lowest, highest = max(c - ring, 0), min(c + ring, starts.shape[2] - 1)
                for x in range(max(i - ring, 0), min(i + ring + 1, starts.shape[0])):
                    for y in range(max(j - ring, 0), min(j + ring + 1, starts.shape[1])):
                        for g in range(starts[x, y, lowest], ends[x, y, highest]):
                            near[0, count], near[1, count], near[2, count] = centres[g, 0], centres[g, 1], centres[g, 2]
                            number[count] = g
                            count += 1
            for n in range(count):
                dx, dy, dz = near[0, n] - px, near[1, n] - py, near[2, n] - pz
                near[3, n] = dx * dx + dy * dy + dz * dz
            found = 0
            worst = limit2
            for n in range(count):
                d2 = near[3, n]
                if d2 > worst or (found == NEIGHBOURS and d2 >= worst):
                    continue
                if found < NEIGHBOURS:
                    found += 1
                at = found - 1
                while at > 0 and distance2[at - 1] > d2:
                    distance2[at], nearest[at] = distance2[at - 1], nearest[at - 1]
                    at -= 1
                distance2[at], nearest[at] = d2, number[n]
                if found == NEIGHBOURS:
                    worst = distance2[found - 1]
            # Every Gaussian nearer than `safe`, the distance to the cells that were left out, has been seen.
            safe = np.inf
            for k in range(3):
                own = i if k == 0 else (j if k == 1 else c)
                if own + ring + 1 < starts.shape[k]:
                    safe = min(safe, low[k] + (own + ring + 1) * side - points[p, k])
                if own - ring > 0:
                    safe = min(safe, points[p, k] - low[k] - (own - ring) * side)
            if safe > grid.reach or (found == NEIGHBOURS and distance2[found - 1] <= safe * abs(safe)):
                break
            ring += 1
        for n in range(found):
            g = nearest[n]
            x, y, z = px - centres[g, 0], py - centres[g, 1], pz - centres[g, 2]
            exponent = (
                kernels[g, 0] * x * x + kernels[g, 3] * y * y + kernels[g, 5] * z * z
                + 2 * (kernels[g, 1] * x * y + kernels[g, 2] * x * z + kernels[g, 4] * y * z)
            )  # fmt: skip
            weight = kernels[g, 9] * np.exp(-0.5 * exponent)
            for k in range(3):
                sums[p, k] += weight * kernels[g, 6 + k]
            sums[p, 3] += weight


def _nearest(
    tree: spatial.KDTree, points: NDArray[np.floating], count: int
) -> tuple[NDArray[np.float64], NDArray[np.intp]]:
    """Return distances and indices of the nearest entries: (P, 3) -> (P, K) each; scipy drops the axis for K = 1."""
    distance, index = tree.query(points, k=count, workers=-1)
    shape = (len(points), count)
    return np.reshape(distance, shape), np.reshape(np.asarray(index, np.intp), shape)


def rotate_back(rotation: NDArray[np.float32], vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Rotate vectors by the inverse of unit quaternions: the coordinates along the axes of the rotated bodies.

    Args:
        rotation: (..., 4) unit quaternions, w first.
        vectors: (..., 3).

    Returns:
        (..., 3) float32.
    """
    axis, w = -rotation[..., 1:], rotation[..., :1]  # the conjugate is the inverse: (..., 3), (..., 1)
    doubled = 2 * np.cross(axis, vectors)  # q v q* = v + w t + axis x t with t = 2 axis x v
    return (vectors + w * doubled + np.cross(axis, doubled)).astype(np.float32)


def gaussian_rgb(features_dc: NDArray[np.floating]) -> NDArray[np.uint8]:
    """Convert coefficients of the constant spherical harmonic, (G, 3), to sRGB, (G, 3) uint8."""
    return np.rint(np.clip(0.5 + SH_C0 * features_dc, 0, 1) * 255).astype(np.uint8)
