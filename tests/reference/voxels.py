"""Slow, obvious reference implementations of the voxel operations: dictionaries and loops, in float64."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

Cell = tuple[int, int, int, int]


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
    """Row of each voxel of (N, 4) coordinates."""
    return {tuple(c): row for row, c in enumerate(coords.tolist())}


def neighbour_rows(coords: Tensor) -> list[list[int]]:
    """For each of the 27 offsets, x slowest, the row of each voxel's neighbour, N if there is none: (27, N)."""
    rows = rows_by_voxel(coords)
    offsets = itertools.product((-1, 0, 1), repeat=3)
    return [
        [rows.get((b, x + dx, y + dy, z + dz), len(coords)) for b, x, y, z in coords.tolist()] for dx, dy, dz in offsets
    ]


def cells_of(coords: Tensor, factor: int) -> list[Cell]:
    """Cell of `factor` voxels a side that contains each voxel: (N,)."""
    return [(b, x // factor, y // factor, z // factor) for b, x, y, z in coords.tolist()]


def windows_of(coords: Tensor, size: int, shift: int) -> list[Cell]:
    """Window of each voxel after a shift of the coordinates: (N,)."""
    return cells_of(coords + torch.tensor([0, shift, shift, shift]), size)


def dense_convolution(coords: Tensor, feats: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Convolution of the scattered grid, read at the voxels: feats (N, C), weight (D, 3, 3, 3, C) -> (N, D)."""
    side = int(coords[:, 1:].max()) + 1
    grid = feats.new_zeros((int(coords[:, 0].max()) + 1, feats.shape[1], side, side, side))
    b, x, y, z = coords.long().unbind(1)
    grid[b, :, x, y, z] = feats
    out = torch.nn.functional.conv3d(grid, weight.permute(0, 4, 1, 2, 3), bias, padding=1)
    return out[b, :, x, y, z]


def pooled_cells(coords: Tensor, feats: Tensor, factor: int) -> Tensor:
    """Per cell, in ascending order, the sum of its voxels' features over their number plus one: (N, C) -> (M, C)."""
    cells = cells_of(coords, factor)
    rows = [[row for row, cell in enumerate(cells) if cell == one] for one in sorted(set(cells))]
    means = [feats[members].sum(dim=0) / (len(members) + 1) for members in rows]
    return torch.stack(means) if means else feats[:0]


def spread_to_voxels(coords: Tensor, cell_feats: Tensor, factor: int) -> Tensor:
    """Each voxel's copy of its cell's features: (M, C) -> (N, C)."""
    cells = cells_of(coords, factor)
    number = {cell: k for k, cell in enumerate(sorted(set(cells)))}
    return torch.stack([cell_feats[number[cell]] for cell in cells]) if cells else cell_feats[:0]


def group_sums(values: Tensor, group_of_row: list[int], groups: int) -> Tensor:
    """Sum of each group's rows, one row at a time: (N, C) -> (M, C)."""
    total = values.new_zeros((groups, values.shape[1]))
    for row, group in enumerate(group_of_row):
        total[group] += values[row]
    return total
