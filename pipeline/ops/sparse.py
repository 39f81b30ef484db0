"""Convolution and resampling of features on a set of voxels. Holds no weights."""

from __future__ import annotations

import torch
from torch import Tensor

from pipeline.ops.kernels.dispatch import KERNELS
from pipeline.ops.voxels import Children, VoxelSet

GATHER_LIMIT = 1 << 26  # elements of one gathered block: bounds the memory and does not change the result
CACHED_LIMIT = 1 << 19
"""The same on a CPU, whose caches hold it: a block is multiplied before it reaches the memory."""
CACHED_ROWS = 512  # but at least these, over which reading the weights is spread


def sparse_conv3(feats: Tensor, voxels: VoxelSet, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Submanifold convolution of kernel 3: out[p] = bias + sum over taps of weight[tap] feats[p + tap - 1].

    Only voxels of the set contribute, and the output has the same voxels as the input.

    Args:
        feats: (..., N, C); the leading axes are passes that share the voxels.
        voxels: N voxels.
        weight: (D, 3, 3, 3, C): output channels, taps along x, y, z, input channels.
        bias: (D,) or None.

    Returns:
        (..., N, D).
    """
    inputs = [feats, weight] if bias is None else [feats, weight, bias]
    return KERNELS.run(
        "sparse_conv",
        inputs,
        kernel=lambda: _implicit_conv3(feats, voxels, weight, bias),
        reference=lambda: gather_conv3(feats, voxels, weight, bias),
    )


def _implicit_conv3(feats: Tensor, voxels: VoxelSet, weight: Tensor, bias: Tensor | None) -> Tensor:
    from pipeline.ops.kernels.sparse_conv import implicit_conv3  # imports Triton

    out = implicit_conv3(feats.reshape(-1, *feats.shape[-2:]), voxels.neighbours, weight, bias)
    return out.view(*feats.shape[:-1], -1)


def gather_conv3(feats: Tensor, voxels: VoxelSet, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The reference of `sparse_conv3`: gathers the neighbours' features in blocks and multiplies each block once."""
    count, width = feats.shape[-2:]
    # A row of zeros at index N stands for absent neighbours.
    padded = torch.cat([feats, feats.new_zeros((*feats.shape[:-2], 1, width))], dim=-2)
    taps = weight.flatten(1, 3).flatten(1).t()  # (D, 27, C) -> (27 C, D)
    out = feats.new_empty((*feats.shape[:-1], weight.shape[0]))
    # 27 neighbours per voxel side by side: a single large matrix product per block.
    passes = max(1, feats[..., 0, 0].numel()) if count else 1
    per_row = 27 * width * passes
    block = max(1, GATHER_LIMIT // per_row)
    if feats.device.type == "cpu":
        block = min(block, max(CACHED_ROWS, CACHED_LIMIT // per_row))
    for start in range(0, count, block):
        stop = min(count, start + block)
        rows = voxels.neighbours[:, start:stop].t().flatten()  # (B, 27)
        gathered = padded.index_select(-2, rows).unflatten(-2, (stop - start, 27)).flatten(-2)  # (..., B, 27 C)
        out[..., start:stop, :] = (
            gathered @ taps
            if bias is None
            else torch.addmm(bias, gathered.flatten(0, -2), taps).view(*gathered.shape[:-1], -1)
        )
    return out


def pool_cells(feats: Tensor, voxels: VoxelSet, factor: int) -> Tensor:
    """Features of the coarser cells: the sum over a cell's voxels divided by their number plus one.

    A mean would divide by the number. The released model was trained with the initial zero of its scatter counted too.
    Source: microsoft/TRELLIS@6b0d647, trellis/modules/sparse/spatial.py, include_self of scatter_reduce.

    Args:
        feats: (..., N, C).
        voxels: N voxels.
        factor: voxels along a cell's side.

    Returns:
        (..., M, C) for the M cells of `voxels.coarsen(factor)`.
    """
    groups = voxels.coarsen(factor).groups
    table = voxels.remember(("rows of cells", factor), groups.table)
    return groups.sum(feats, table) / (groups.counts[:, None] + 1).to(feats.dtype)


def spread_cells(feats: Tensor, voxels: VoxelSet, factor: int) -> Tensor:
    """Copy each cell's features to its voxels: (..., M, C) -> (..., N, C), in the order of `voxels`."""
    return feats.index_select(-2, voxels.coarsen(factor).cell_of_row)


def repeat_octants(feats: Tensor) -> Tensor:
    """Copy each voxel's features to its eight children in `VoxelSet.subdivide`: (..., N, C) -> (..., 8N, C)."""
    return feats.repeat_interleave(8, dim=-2)


def per_row(values: Tensor, voxels: VoxelSet) -> Tensor:
    """Repeat the values of each batch element for its rows: (B, C) -> (N, C); (1, C) stays as it is."""
    return values if len(values) == 1 else values[voxels.coords[:, 0].long()]


def take_octants(feats: Tensor, children: Children) -> Tensor:
    """Give every child its eighth of the parent's channels: (..., N, 8 C) -> (..., M, C)."""
    parts = feats.unflatten(-1, (8, -1)).flatten(-3, -2)  # (..., N, 8, C) -> (..., 8 N, C)
    return parts.index_select(-2, children.parent * 8 + children.octant)


def merge_octants(feats: Tensor, voxels: VoxelSet) -> Tensor:
    """Put the channels of a cell's voxels side by side, zeros where one is missing: (..., N, C) -> (..., M, 8 C).

    The inverse of `take_octants`, on the cells of `voxels.coarsen(2)`.
    """
    coarsening = voxels.coarsen(2)
    x, y, z = (voxels.coords[:, 1:].long() % 2).unbind(-1)
    place = coarsening.cell_of_row * 8 + x + 2 * y + 4 * z
    merged = feats.new_zeros((*feats.shape[:-2], len(coarsening.cells) * 8, feats.shape[-1]))
    merged[..., place, :] = feats
    return merged.unflatten(-2, (-1, 8)).flatten(-2)
