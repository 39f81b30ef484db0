"""Blocks over dense tokens and grids. Attribute names follow the released checkpoints."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from pipeline.nn.attention import CrossAttention, CrossCache, SelfAttention
from pipeline.nn.norms import ChannelLayerNorm32, GroupNorm32, LayerNorm32
from pipeline.ops.voxels import VoxelSet

BLOCK_EPS = 1e-6  # of every norm inside a transformer block or sparse residual block
HEAD_EPS = 1e-5  # of the parameter-free norm before an output layer, and of the structure decoder's norms


class FeedForward(nn.Module):
    """Linear, tanh-approximated GELU, linear: (..., C) -> (..., C)."""

    def __init__(self, channels: int, mlp_ratio: float = 4.0) -> None:
        super().__init__()
        hidden = int(channels * mlp_ratio)
        self.mlp = nn.Sequential(nn.Linear(channels, hidden), nn.GELU(approximate="tanh"), nn.Linear(hidden, channels))

    def forward(self, x: Tensor) -> Tensor:
        return self.mlp(x)


def modulation(width: int, parts: int) -> nn.Sequential:
    """SiLU and a linear layer from the time embedding to `parts` shifts, scales and gates."""
    return nn.Sequential(nn.SiLU(), nn.Linear(width, parts * width))


class ModulatedCrossBlock(nn.Module):
    """Self-attention and feed-forward, both modulated and gated by the time, with cross-attention between.

    Serves dense tokens (B, N, C) and, with `voxels`, passes (P, N, C) that share a voxel set.
    """

    def __init__(
        self,
        channels: int,
        ctx_channels: int,
        num_heads: int,
        *,
        mlp_ratio: float = 4.0,
        share_mod: bool = False,
        qk_rms_norm: bool = False,
        qk_rms_norm_cross: bool = False,
        qkv_bias: bool = True,
        window_size: int | None = None,
        shift_window: int = 0,
    ) -> None:
        super().__init__()
        self.norm1 = LayerNorm32(channels, eps=BLOCK_EPS, elementwise_affine=False)
        self.norm2 = LayerNorm32(channels, eps=BLOCK_EPS)
        self.norm3 = LayerNorm32(channels, eps=BLOCK_EPS, elementwise_affine=False)
        self.self_attn = SelfAttention(
            channels,
            num_heads,
            qkv_bias=qkv_bias,
            qk_rms_norm=qk_rms_norm,
            window_size=window_size,
            shift_window=shift_window,
        )
        self.cross_attn = CrossAttention(
            channels, num_heads, ctx_channels, qkv_bias=qkv_bias, qk_rms_norm=qk_rms_norm_cross
        )
        self.mlp = FeedForward(channels, mlp_ratio)
        self.adaLN_modulation = None if share_mod else modulation(channels, 6)

    def forward(self, x: Tensor, mod: Tensor, context: CrossCache, voxels: VoxelSet | None = None) -> Tensor:
        """One block.

        Args:
            x: (B, N, C).
            mod: the time embedding, broadcastable to (B, N, C); already (…, 6 C) where the modulation is shared.
            context: keys and values from this block's cross-attention.

        Returns:
            (B, N, C).
        """
        if self.adaLN_modulation is not None:
            mod = self.adaLN_modulation(mod)
        shift_msa, scale_msa, gate_msa, shift_mlp, scale_mlp, gate_mlp = mod.chunk(6, dim=-1)
        x = x + self.self_attn(self.norm1(x) * (1 + scale_msa) + shift_msa, voxels) * gate_msa
        x = x + self.cross_attn(self.norm2(x), context, voxels)
        return x + self.mlp(self.norm3(x) * (1 + scale_mlp) + shift_mlp) * gate_mlp


NormType = Literal["group", "layer"]


def channel_norm(norm_type: NormType, channels: int) -> nn.Module:
    """A norm of (B, C, X, Y, Z): 32 groups, or over the channels of each place."""
    if norm_type == "group":
        return GroupNorm32(32, channels)
    return ChannelLayerNorm32(channels, eps=HEAD_EPS)


class ResBlock3d(nn.Module):
    """Norm, SiLU, convolution, twice, beside a skip: (B, C, X, Y, Z) -> (B, D, X, Y, Z)."""

    def __init__(self, channels: int, out_channels: int | None = None, norm_type: NormType = "layer") -> None:
        super().__init__()
        out_channels = out_channels or channels
        self.norm1 = channel_norm(norm_type, channels)
        self.norm2 = channel_norm(norm_type, out_channels)
        self.conv1 = nn.Conv3d(channels, out_channels, 3, padding=1)
        self.conv2 = nn.Conv3d(out_channels, out_channels, 3, padding=1)
        self.skip_connection = nn.Conv3d(channels, out_channels, 1) if channels != out_channels else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(torch.nn.functional.silu(self.norm1(x)))
        h = self.conv2(torch.nn.functional.silu(self.norm2(h)))
        return h + self.skip_connection(x)


def pixel_shuffle_3d(x: Tensor, factor: int) -> Tensor:
    """(B, C f^3, X, Y, Z) -> (B, C, f X, f Y, f Z); within a channel the offset along x is slowest."""
    b, c, x_size, y_size, z_size = x.shape
    x = x.view(b, c // factor**3, factor, factor, factor, x_size, y_size, z_size)
    x = x.permute(0, 1, 5, 2, 6, 3, 7, 4)
    return x.reshape(b, c // factor**3, x_size * factor, y_size * factor, z_size * factor)


class UpsampleBlock3d(nn.Module):
    """Convolution to eight times the channels, then a pixel shuffle: (B, C, X, Y, Z) -> (B, D, 2 X, 2 Y, 2 Z)."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv3d(in_channels, out_channels * 8, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return pixel_shuffle_3d(self.conv(x), 2)
