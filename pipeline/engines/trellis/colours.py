"""The colour of a surface point, read straight from the Gaussians that cover it. numpy and scipy alone, no torch.

A point takes the mean colour of the Gaussians near it, weighted by opacity and by their kernel at the point. The
kernels are widened by `FOOTPRINT`, because a point between small Gaussians would otherwise see none of them. Where
the weights are too small to mean anything, the mesh's own vertex colours decide.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy import spatial

SH_C0 = 0.28209479177387814  # the constant spherical harmonic
FOOTPRINT = 1 / 1024  # standard deviation added to every kernel, in units of the cube: about a texel
NEIGHBOURS = 12  # Gaussians that are looked at for a point
MIN_TOTAL_WEIGHT = 1e-4  # sum of weights below which the vertex colours are used
MIN_OPACITY = 1 / 255  # opacity below which a Gaussian never shows
BLOCK = 1 << 16  # points looked up at once: bounds memory


@dataclass(frozen=True, eq=False)
class VertexColours:
    """Colours given at vertices; a point takes those of its nearest three, weighted by inverse distance.

    Attributes:
        vertices: (V, 3) float32.
        rgb: (V, 3) uint8.
    """

    vertices: NDArray[np.float32]
    rgb: NDArray[np.uint8]

    @cached_property
    def tree(self) -> spatial.KDTree:
        return spatial.KDTree(self.vertices)

    def __getstate__(self) -> dict[str, NDArray]:
        """The arrays alone: a tree is built again where it is needed."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def colours_at(self, points: NDArray[np.float32], normals: NDArray[np.float32]) -> NDArray[np.float32]:
        """See `ColourSource`: (P, 3) sRGB in [0, 1]; normals are not looked at."""
        count = min(3, len(self.vertices))
        if count == 0:
            return np.full((len(points), 3), 0.5, np.float32)
        distance, index = _nearest(self.tree, points, count)
        weight = 1 / np.maximum(distance, 1e-9)
        weight /= weight.sum(axis=1, keepdims=True)
        return np.einsum("pk,pkc->pc", weight, self.rgb[index] / 255.0).astype(np.float32)


@dataclass(frozen=True, eq=False)
class GaussianColours:
    """Colours of the Gaussians around a point.

    Attributes:
        xyz: (G, 3) float32 centres in the frame of the mesh.
        scaling: (G, 3) float16 standard deviations along the own axes.
        rotation: (G, 4) float16 quaternions, w first, in the frame of the mesh.
        opacity: (G,) float16.
        rgb: (G, 3) uint8.
        fallback: decides where no Gaussian covers a point.
    """

    xyz: NDArray[np.float32]
    scaling: NDArray[np.float16]
    rotation: NDArray[np.float16]
    opacity: NDArray[np.float16]
    rgb: NDArray[np.uint8]
    fallback: VertexColours

    @cached_property
    def tree(self) -> spatial.KDTree:
        return spatial.KDTree(self.xyz)

    def __getstate__(self) -> dict[str, object]:
        """The arrays alone: a tree is built again where it is needed."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def colours_at(self, points: NDArray[np.float32], normals: NDArray[np.float32]) -> NDArray[np.float32]:
        """See `ColourSource`: (P, 3) sRGB in [0, 1]."""
        out = np.empty((len(points), 3), np.float32)
        for start in range(0, len(points), BLOCK):
            part = slice(start, start + BLOCK)
            out[part] = self._block(points[part], normals[part])
        return out

    def _block(self, points: NDArray[np.float32], normals: NDArray[np.float32]) -> NDArray[np.float32]:
        count = min(NEIGHBOURS, len(self.xyz))
        if count == 0:
            return self.fallback.colours_at(points, normals)
        _, index = _nearest(self.tree, points, count)  # (P, K)
        weight = self.opacity[index].astype(np.float32) * self._kernels(points, index)
        total = weight.sum(axis=1, keepdims=True)
        colours = np.einsum("pk,pkc->pc", weight, self.rgb[index] / np.float32(255)) / np.maximum(total, 1e-30)
        faint = total[:, 0] < MIN_TOTAL_WEIGHT
        if faint.any():
            colours[faint] = self.fallback.colours_at(points[faint], normals[faint])
        return colours.astype(np.float32)

    def _kernels(self, points: NDArray[np.float32], index: NDArray[np.intp]) -> NDArray[np.float32]:
        """(P, K) value of each widened kernel at its point, relative to its peak."""
        away = points[:, None] - self.xyz[index]  # (P, K, 3)
        along = rotate_back(self.rotation[index].astype(np.float32), away)
        variance = self.scaling[index].astype(np.float32) ** 2 + np.float32(FOOTPRINT**2)
        return np.exp(-0.5 * (along**2 / variance).sum(axis=-1))


def _nearest(
    tree: spatial.KDTree, points: NDArray[np.floating], count: int
) -> tuple[NDArray[np.float64], NDArray[np.intp]]:
    """Distances and indices (P, K) of the nearest entries; K is an axis even where it is 1."""
    distance, index = tree.query(points, k=count, workers=-1)
    shape = (len(points), count)
    return np.reshape(distance, shape), np.reshape(np.asarray(index, np.intp), shape)


def rotate_back(rotation: NDArray[np.float32], vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Vectors (..., 3) in the own axes of unit quaternions (..., 4), w first."""
    axis, w = -rotation[..., 1:], rotation[..., :1]
    turned = 2 * np.cross(axis, vectors)
    return (vectors + w * turned + np.cross(axis, turned)).astype(np.float32)


def gaussian_rgb(features_dc: NDArray[np.floating]) -> NDArray[np.uint8]:
    """sRGB of the constant spherical harmonic: (G, 3) uint8."""
    return np.rint(np.clip(0.5 + SH_C0 * features_dc, 0, 1) * 255).astype(np.uint8)
