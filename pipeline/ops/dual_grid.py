"""The surface of a sparse dual grid: a vertex in every voxel, and a quad around every voxel edge that is marked.

The quads of a voxel are oriented by the grid's axes and not by what is inside, so neighbouring faces need not agree.

Source: Xiang et al. 2025 (TRELLIS.2), the flexible dual grid; microsoft/TRELLIS.2@5565d24, o-voxel; dual contouring:
    Ju et al. 2002, Dual Contouring of Hermite Data.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.ops.constants import constant

VOXEL_MARGIN = 0.5
"""How far a vertex may lie outside of its voxel, in voxels."""
QUAD_CORNERS = (
    ((0, 0, 0), (0, 0, 1), (0, 1, 1), (0, 1, 0)),
    ((0, 0, 0), (1, 0, 0), (1, 0, 1), (0, 0, 1)),
    ((0, 0, 0), (0, 1, 0), (1, 1, 0), (1, 0, 0)),
)
"""Offsets of the voxels of the quad that belongs to a marked edge along x, y and z, in order around the quad."""
SPLITS = ((0, 1, 2, 0, 2, 3), (0, 1, 3, 3, 1, 2))
"""The two ways to cut a quad into triangles."""


class DualGrid(NamedTuple):
    """Fields of N voxels.

    Attributes:
        offset: (N, 3) place of the vertex in units of voxels, from the voxel's lowest corner.
        marked: (N, 3) bool, whether the surface crosses the edge along each axis.
        split: (N, 1) positive weights: a quad is cut along the diagonal whose weights have the larger product; None
            cuts all of them from their first corner.
    """

    offset: Tensor
    marked: Tensor
    split: Tensor | None


def dual_grid_of(channels: Tensor) -> DualGrid:
    """Read the seven channels of the shape decoder: (N, 7) float32."""
    offset = (1 + 2 * VOXEL_MARGIN) * channels[:, :3].sigmoid() - VOXEL_MARGIN
    return DualGrid(offset, channels[:, 3:6] > 0, F.softplus(channels[:, 6:7]))


def dual_grid_mesh(coords: Tensor, grid: DualGrid, *, resolution: int) -> tuple[Tensor, Tensor]:
    """Extract the surface.

    Args:
        coords: (N, 3) distinct integer coordinates, below `resolution`.
        grid: the fields of these voxels.
        resolution: voxels along the side of the unit cube.

    Returns:
        (N, 3) vertices in the unit cube around the origin, one for each voxel in the order of the rows, used or not;
        (F, 3) int64 faces. A quad is left out if one of its voxels does not exist.
    """
    vertices = (coords.float() + grid.offset) / resolution - 0.5
    corners = constant(QUAD_CORNERS, coords.device)  # (3, 4, 3)
    if len(coords) == 0:
        return vertices, torch.zeros((0, 3), dtype=torch.int64, device=coords.device)
    row, axis = grid.marked.nonzero(as_tuple=True)  # voxel by voxel, then by axis
    wanted = coords[row].long()[:, None] + corners[axis]  # (Q, 4, 3)
    keys, order = torch.sort(_keys(coords.long(), resolution))
    wanted_keys = _keys(wanted, resolution)
    place = torch.searchsorted(keys, wanted_keys).clamp_(max=len(keys) - 1)
    exists = (keys[place] == wanted_keys).all(dim=1).nonzero()[:, 0]
    quads = order[place[exists]]  # (Q', 4)
    if grid.split is None:
        first = torch.ones(len(quads), dtype=torch.bool, device=coords.device)
    else:
        weight = grid.split[:, 0][quads]  # (Q', 4)
        first = weight[:, 0] * weight[:, 2] > weight[:, 1] * weight[:, 3]
    splits = constant(SPLITS, coords.device)
    return vertices, quads.gather(1, splits[torch.where(first, 0, 1)]).reshape(-1, 3)


def _keys(coords: Tensor, resolution: int) -> Tensor:
    """Distinct int64 keys: (..., 3) -> (...). Coordinates may exceed the grid by one."""
    x, y, z = coords.unbind(-1)
    return (x * (resolution + 1) + y) * (resolution + 1) + z


def sample_voxels(
    coords: Tensor,
    values: Tensor,
    queries: Tensor,
    *,
    resolution: int,
    chunk_size: int = 1 << 20,
    nearest: bool = False,
) -> Tensor:
    """Interpolate values of voxels at points, between those of the eight nearest voxels that exist.

    The weights of the existing ones are scaled to a sum of 1; a point without any gets zeros.

    Args:
        coords: (N, 3) distinct integer coordinates; the centre of a voxel is half a unit beyond.
        values: (N, C) float32.
        queries: (P, 3) in units of voxels.
        resolution: voxels along the grid's side.
        chunk_size: points at once: bounds the memory and does not change the result.
        nearest: take the value of the voxel at the truncated coordinates.

    Returns:
        (P, C).
    """
    out = values.new_zeros((len(queries), values.shape[1]))
    if len(coords) == 0:
        return out
    keys, order = torch.sort(_keys(coords.long(), resolution))
    steps = [(0, 0, 0)] if nearest else [(i >> 2 & 1, i >> 1 & 1, i & 1) for i in range(8)]
    for start in range(0, len(queries), chunk_size):
        at = queries[start : start + chunk_size] - (0.0 if nearest else 0.5)
        low = at.trunc() if nearest else at.floor()
        share = at - low
        total = at.new_zeros(len(at))
        part = out[start : start + chunk_size]
        for step in steps:
            moved = low.long() + constant(step, at.device)
            wanted = _keys(moved, resolution)
            place = torch.searchsorted(keys, wanted).clamp_(max=len(keys) - 1)
            inside = ((moved >= 0) & (moved < resolution)).all(dim=1) & (keys[place] == wanted)
            weight = torch.ones_like(total)
            if not nearest:
                for axis, upper in enumerate(step):
                    weight = weight * (share[:, axis] if upper else 1 - share[:, axis])
            weight = weight * inside
            part += weight[:, None] * values[order[place]]
            total += weight
        part /= total.clamp(min=1e-12)[:, None]
    return out
