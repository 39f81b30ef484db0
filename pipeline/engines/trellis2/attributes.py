"""Colours and materials of surface points, read from decoded voxels with numpy, so that the export needs no torch."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from pipeline.mesh.kernels import kernel
from pipeline.mesh.material import SurfaceAttributes
from pipeline.mesh.nearest_surface import NO_FACE, NearestSurface
from pipeline.mesh.packing import PacksArrays
from pipeline.mesh.tri_mesh import TriMesh

MODEL_AXES, MODEL_SIGNS = (0, 2, 1), (1.0, -1.0, 1.0)
"""The model's x, y and z among the project's axes: (x, -z, y)."""
CHANNELS = 6


@dataclass(frozen=True, eq=False)
class VoxelAttributes(PacksArrays):
    """An `AttributeSource`: voxels around a surface, each with a colour and a material.

    A point takes the attributes at the nearest place of the surface that was decoded, interpolated between the voxels
    that exist around it. The tables for searching are made at the first query and not pickled.

    Attributes:
        surface: the decoded surface, before simplification, in the project's frame.
        coords: (N, 3) int16 voxels in the model's frame, sorted.
        values: (N, 6) uint8: base colour in sRGB, metallic, roughness, alpha.
        resolution: voxels along the side of the unit cube.
    """

    surface: TriMesh
    coords: NDArray[np.int16]
    values: NDArray[np.uint8]
    resolution: int

    @cached_property
    def _nearest(self) -> NearestSurface:
        return NearestSurface(self.surface, is_oriented=False)

    @cached_property
    def _keys(self) -> NDArray[np.int64]:
        return _keys_of(self.coords.astype(np.int64), self.resolution)

    def attributes_at(self, points: NDArray[np.float32], normals: NDArray[np.float32]) -> SurfaceAttributes:
        """See `AttributeSource.attributes_at`."""
        found = self._nearest.find(points, normals)
        places = np.einsum("pk,pki->pi", found.weights, self.surface.corners[found.faces])
        places = np.where(found.faces[:, None] == NO_FACE, points, places)
        at = np.stack([places[:, axis] * sign for axis, sign in zip(MODEL_AXES, MODEL_SIGNS, strict=True)], axis=1)
        values = np.zeros((len(points), CHANNELS), np.float32)
        _interpolate((at + 0.5) * self.resolution, self._keys, self.values, self.resolution, values)
        values = np.clip(values / np.float32(255), 0, 1)
        return SurfaceAttributes(values[:, :3].copy(), values[:, 5].copy(), values[:, 3].copy(), values[:, 4].copy())


def _keys_of(coords: NDArray[np.int64], resolution: int) -> NDArray[np.int64]:
    """Distinct ascending keys of sorted coordinates: (N, 3) -> (N,)."""
    x, y, z = coords.T
    return (x * resolution + y) * resolution + z


@kernel
def _interpolate(
    at: NDArray[np.float64],  # (P, 3) in voxels
    keys: NDArray[np.int64],  # (N,) ascending
    values: NDArray[np.uint8],  # (N, C)
    resolution: int,
    out: NDArray[np.float32],  # (P, C) zeros; written
) -> None:
    """Trilinear weights of the voxels that exist, scaled to a sum of 1; where none does, those of a wider circle."""
    low = np.empty(3, np.int64)
    for p in range(len(at)):
        for k in range(3):
            low[k] = int(np.floor(at[p, k] - 0.5))
        total = 0.0
        for reach in range(1, 4):  # 2, 4 and 6 voxels along a side
            for x in range(low[0] + 1 - reach, low[0] + 1 + reach):
                for y in range(low[1] + 1 - reach, low[1] + 1 + reach):
                    for z in range(low[2] + 1 - reach, low[2] + 1 + reach):
                        if min(x, y, z) < 0 or max(x, y, z) >= resolution:
                            continue
                        key = (x * resolution + y) * resolution + z
                        row = np.searchsorted(keys, key)
                        if row == len(keys) or keys[row] != key:
                            continue
                        weight = 1.0
                        for distance in (at[p, 0] - 0.5 - x, at[p, 1] - 0.5 - y, at[p, 2] - 0.5 - z):
                            weight *= max(1 - abs(distance) / reach, 1e-6)
                        total += weight
                        for c in range(values.shape[1]):
                            out[p, c] += weight * values[row, c]
            if total > 0:
                break
        if total > 0:
            for c in range(values.shape[1]):
                out[p, c] /= total
