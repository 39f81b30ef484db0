"""Slow, obvious twins of the voxel operations: dictionaries and loops, in float64."""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor


def random_coords(count: int, side: int, *, seed: int, batch: int = 1) -> Tensor:
    """Distinct voxels `[batch, x, y, z]`, shuffled within each batch element: (N, 4) int32."""
    generator = torch.Generator().manual_seed(seed)
    parts = []
    for element in range(batch):
        cells = torch.randperm(side**3, generator=generator)[:count]
        xyz = torch.stack([cells // side**2, cells // side % side, cells % side], dim=1)
        parts.append(torch.cat([torch.full((len(cells), 1), element), xyz], dim=1))
    return torch.cat(parts).int()


def rows_by_voxel(coords: Tensor) -> dict[tuple[int, ...], int]:
    return {tuple(c): row for row, c in enumerate(coords.tolist())}


def neighbour_rows(coords: Tensor) -> list[list[int]]:
    """For each of the 27 offsets, x slowest, the row of each voxel's neighbour, N where there is none."""
    rows = rows_by_voxel(coords)
    offsets = itertools.product((-1, 0, 1), repeat=3)
    return [
        [rows.get((b, x + dx, y + dy, z + dz), len(coords)) for b, x, y, z in coords.tolist()] for dx, dy, dz in offsets
    ]


def dense_convolution(coords: Tensor, feats: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Convolution of the scattered grid, read at the voxels: feats (N, C), weight (D, 3, 3, 3, C)."""
    side = int(coords[:, 1:].max()) + 1
    grid = feats.new_zeros((int(coords[:, 0].max()) + 1, feats.shape[1], side, side, side))
    b, x, y, z = coords.long().unbind(1)
    grid[b, :, x, y, z] = feats
    out = torch.nn.functional.conv3d(grid, weight.permute(0, 4, 1, 2, 3), bias, padding=1)
    return out[b, :, x, y, z]


def masked_attention(q: Tensor, k: Tensor, v: Tensor, groups: list[tuple[int, ...]]) -> Tensor:
    """Attention of (N, H, D) in which a row sees the rows of its own group alone."""
    same = torch.tensor([[a == b for b in groups] for a in groups])
    scores = torch.einsum("nhd,mhd->hnm", q, k) / math.sqrt(q.shape[-1])
    weights = scores.masked_fill(~same, -math.inf).softmax(dim=-1)
    return torch.einsum("hnm,mhd->nhd", weights, v)
