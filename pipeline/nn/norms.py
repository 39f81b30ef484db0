"""Norms that compute in float32 whatever the precision around them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.ops.voxels import VoxelSet


class LayerNorm32(nn.LayerNorm):
    """Layer norm over the last axis, computed in float32, returned in the input's type."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.float()).to(input.dtype)


class GroupNorm32(nn.GroupNorm):
    """Group norm of (B, C, ...), computed in float32, returned in the input's type."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.float()).to(input.dtype)


class ChannelLayerNorm32(LayerNorm32):
    """Layer norm over the channels of (B, C, X, Y, Z)."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.movedim(1, -1)).movedim(-1, 1)


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
        parts = [
            F.group_norm(feats[:, rows].mT.float(), self.num_groups, self.weight, self.bias, self.eps).mT
            for rows in voxels.segments
        ]
        return torch.cat(parts, dim=1).to(feats.dtype)


class MultiHeadRMSNorm(nn.Module):
    """Unit length over each head's channels, times a learnt gain and sqrt(D)."""

    def __init__(self, head_dim: int, num_heads: int) -> None:
        super().__init__()
        self.scale = head_dim**0.5
        self.gamma = nn.Parameter(torch.ones(num_heads, head_dim))

    def forward(self, x: Tensor) -> Tensor:
        """(..., H, D) -> (..., H, D)."""
        return (F.normalize(x.float(), dim=-1) * self.gamma * self.scale).to(x.dtype)
