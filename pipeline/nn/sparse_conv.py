"""Sparse convolution with weights, in the layout of the released checkpoints."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from pipeline.ops.sparse import sparse_conv3
from pipeline.ops.voxels import VoxelSet


class SparseConv3d(nn.Module):
    """Submanifold convolution of kernel 1 or 3; weights are `conv.weight` (D, k, k, k, C) and `conv.bias` (D,).

    Kernel 1 does not multiply by the transposed weight: the library that trained the released models reinterprets the
    (D, 1, 1, 1, C) buffer row-major as (C, D), and the weights fit only that computation.
    Source: spconv 2.3 issues 450 and 772.
    """

    class Weights(nn.Module):
        """Weight and bias under the names of the checkpoint."""

        def __init__(self, in_channels: int, out_channels: int, kernel_size: int, *, bias: bool) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.empty(out_channels, *[kernel_size] * 3, in_channels))
            self.bias = nn.Parameter(torch.empty(out_channels)) if bias else None

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, *, bias: bool = True) -> None:
        """Allocate uninitialised weights.

        Raises:
            ValueError: the kernel size is neither 1 nor 3.
        """
        super().__init__()
        if kernel_size not in (1, 3):
            raise ValueError(f"kernel_size must be 1 or 3, got {kernel_size}")
        self.kernel_size = kernel_size
        self.conv = self.Weights(in_channels, out_channels, kernel_size, bias=bias)

    def forward(self, feats: Tensor, voxels: VoxelSet) -> Tensor:
        """(..., N, C) -> (..., N, D)."""
        weight, bias = self.conv.weight, self.conv.bias
        if self.kernel_size == 3:
            return sparse_conv3(feats, voxels, weight, bias)
        out = feats @ weight.reshape(weight.shape[-1], weight.shape[0])  # (..., N, C) @ (C, D) -> (..., N, D)
        return out if bias is None else out + bias


class SubmanifoldConv3(nn.Module):
    """Submanifold convolution of kernel 3 with weights `weight` (D, 3, 3, 3, C) and `bias` (D,)."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        """Allocate uninitialised weights."""
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_channels, 3, 3, 3, in_channels))
        self.bias = nn.Parameter(torch.empty(out_channels))

    def forward(self, feats: Tensor, voxels: VoxelSet) -> Tensor:
        """(..., N, C) -> (..., N, D) in the type of the weights."""
        return sparse_conv3(feats.to(self.weight.dtype), voxels, self.weight, self.bias)


class Sparse(NamedTuple):
    """Features on a set of voxels, in the row order of `voxels`."""

    feats: Tensor  # (..., N, C)
    voxels: VoxelSet
