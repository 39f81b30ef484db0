"""Normalisation layers that compute in float32 regardless of the precision around them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.ops.fused import has_fused_kernels, normalise_heads
from pipeline.ops.voxels import VoxelSet


class LayerNorm32(nn.LayerNorm):
    """Layer norm over the last axis, computed in float32, returned in the input's type."""

    def forward(self, input: Tensor) -> Tensor:  # (..., C) -> (..., C)
        if not self.elementwise_affine and has_fused_kernels(input):
            return super().forward(input)  # the kernel computes in float32 and rounds its result, as below
        return super().forward(input.float()).to(input.dtype)


class GroupNorm32(nn.GroupNorm):
    """Group norm of (B, C, ...), computed in float32, returned in the input's type."""

    def forward(self, input: Tensor) -> Tensor:  # (B, C, ...) -> (B, C, ...)
        return super().forward(input.float()).to(input.dtype)


class ChannelLayerNorm32(LayerNorm32):
    """Layer norm over the channels of (B, C, X, Y, Z)."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.movedim(1, -1)).movedim(-1, 1)  # (B, C, X, Y, Z) -> (B, X, Y, Z, C) and back


class SparseGroupNorm32(nn.Module):
    """Group norm whose statistics are per batch element, over its voxels and the channels of a group."""

    def __init__(self, num_groups: int, num_channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.num_groups = num_groups
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(num_channels))
        self.bias = nn.Parameter(torch.zeros(num_channels))

    def forward(self, feats: Tensor, voxels: VoxelSet) -> Tensor:
        """(P, N, C) -> (P, N, C)."""
        # Unlike a dense group norm, the statistics run over the occupied voxels of one batch element only.
        # One copy to the norm's layout and type, and one back, where the type changes.
        parts = []
        for rows in voxels.segments:
            part = feats[:, rows].mT.to(torch.float32, memory_format=torch.contiguous_format)  # (P, C, N_i)
            part = F.group_norm(part, self.num_groups, self.weight, self.bias, self.eps).mT  # (P, N_i, C)
            parts.append(part.to(feats.dtype, memory_format=torch.contiguous_format).contiguous())
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


class MultiHeadRMSNorm(nn.Module):
    """Root-mean-square norm over the channels of each head, with a learnt gain.

    x / |x| * sqrt(D) equals x / rms(x). `F.normalize` clamps |x| at 1e-12 instead of adding an epsilon under the root.
    Source: Zhang and Sennrich 2019, arXiv 1910.07467; the clamp follows microsoft/TRELLIS@6b0d647.
    """

    def __init__(self, head_dim: int, num_heads: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(num_heads, head_dim))

    def forward(self, x: Tensor) -> Tensor:
        """(..., H, D) -> (..., H, D)."""
        return normalise_heads(x, self.gamma)
