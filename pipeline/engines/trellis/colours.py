"""Colours of surface points, computed from the Gaussians around them. numpy and scipy only, no torch.

The colour of a point is the mean of its nearest Gaussians, weighted by opacity and by their kernels at the point. The
kernels are widened by `FOOTPRINT`, because a point between small Gaussians would otherwise be covered by none. If the
sum of the weights is below `MIN_TOTAL_WEIGHT`, the vertex colours of the mesh are used.

The release renders 100 views and fits a texture to them instead; this needs no renderer and no optimisation.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy import spatial

SH_C0 = 0.28209479177387814  # the constant spherical harmonic, 1 / (2 sqrt(pi))
FOOTPRINT = 1 / 1024  # standard deviation added to every kernel, in units of the cube: about one texel
NEIGHBOURS = 12  # Gaussians per point
MIN_TOTAL_WEIGHT = 1e-4  # sum of weights below which the vertex colours are used
MIN_OPACITY = 1 / 255  # a Gaussian below this opacity is never visible in 8 bits
BLOCK = 1 << 16  # points per query; bounds the memory


@dataclass(frozen=True, eq=False)
class VertexColours:
    """A `ColourSource` of vertex colours: the mean of the nearest three vertices, weighted by inverse distance.

    Attributes:
        vertices: (V, 3) float32.
        rgb: (V, 3) uint8.
    """

    vertices: NDArray[np.float32]  # (V, 3)
    rgb: NDArray[np.uint8]  # (V, 3)

    @cached_property
    def tree(self) -> spatial.KDTree:
        """The search tree of the vertices, built at the first query."""
        return spatial.KDTree(self.vertices)

    def __getstate__(self) -> dict[str, NDArray]:
        """Pickle the arrays without the tree, which is rebuilt at the first query."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

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
class GaussianColours:
    """A `ColourSource` of Gaussians.

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
    def tree(self) -> spatial.KDTree:
        """The search tree of the centres, built at the first query."""
        return spatial.KDTree(self.xyz)

    def __getstate__(self) -> dict[str, object]:
        """Pickle the arrays without the tree, which is rebuilt at the first query."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def colours_at(
        self,
        points: NDArray[np.float32],  # (P, 3)
        normals: NDArray[np.float32],  # (P, 3), used by the fallback only
    ) -> NDArray[np.float32]:  # (P, 3)
        """See `ColourSource.colours_at`."""
        out = np.empty((len(points), 3), np.float32)
        for start in range(0, len(points), BLOCK):
            part = slice(start, start + BLOCK)
            out[part] = self._block(points[part], normals[part])
        return out

    def _block(self, points: NDArray[np.float32], normals: NDArray[np.float32]) -> NDArray[np.float32]:
        """Compute the colours of at most `BLOCK` points: (P, 3), (P, 3) -> (P, 3)."""
        count = min(NEIGHBOURS, len(self.xyz))
        if count == 0:
            return self.fallback.colours_at(points, normals)
        _, index = _nearest(self.tree, points, count)  # (P, K)
        weight = self.opacity[index].astype(np.float32) * self._kernels(points, index)
        total = weight.sum(axis=1, keepdims=True)  # (P, 1)
        colours = np.einsum("pk,pkc->pc", weight, self.rgb[index] / np.float32(255)) / np.maximum(total, 1e-30)
        faint = total[:, 0] < MIN_TOTAL_WEIGHT
        if faint.any():
            colours[faint] = self.fallback.colours_at(points[faint], normals[faint])
        return colours.astype(np.float32)

    def _kernels(self, points: NDArray[np.float32], index: NDArray[np.intp]) -> NDArray[np.float32]:
        """Return the value of each widened kernel at its point, relative to its peak: (P, 3), (P, K) -> (P, K)."""
        offset = points[:, None] - self.xyz[index]  # (P, 1, 3) - (P, K, 3) -> (P, K, 3)
        along = rotate_back(self.rotation[index].astype(np.float32), offset)  # along the axes of each Gaussian
        variance = self.scaling[index].astype(np.float32) ** 2 + np.float32(FOOTPRINT**2)
        return np.exp(-0.5 * (along**2 / variance).sum(axis=-1))


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
