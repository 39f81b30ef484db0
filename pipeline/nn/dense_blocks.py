"""Blocks over dense tokens and grids. Attribute names follow the released checkpoints.

Source: microsoft/TRELLIS@6b0d647, trellis/modules; modulation: Peebles and Xie 2022 (DiT), arXiv 2212.09748.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from pipeline.nn.attention import CrossAttention, CrossCache, SelfAttention
from pipeline.nn.norms import ChannelLayerNorm32, GroupNorm32, LayerNorm32
from pipeline.ops.fused import add_gated, modulate
from pipeline.ops.voxels import VoxelSet

BLOCK_EPS = 1e-6  # norms inside transformer blocks and sparse residual blocks
HEAD_EPS = 1e-5  # the parameter-free norm before an output layer, and the norms of the structure decoder


class FeedForward(nn.Module):
    """Linear layer, tanh-approximated GELU, linear layer."""

    def __init__(self, channels: int, mlp_ratio: float = 4.0) -> None:
        super().__init__()
        hidden = int(channels * mlp_ratio)
        self.mlp = nn.Sequential(nn.Linear(channels, hidden), nn.GELU(approximate="tanh"), nn.Linear(hidden, channels))

    def forward(self, x: Tensor) -> Tensor:  # (..., C) -> (..., hidden) -> (..., C)
        return self.mlp(x)


def modulation(width: int, parts: int) -> nn.Sequential:
    """Return SiLU and a linear layer from (..., width) time embeddings to `parts` shifts, scales and gates."""
    return nn.Sequential(nn.SiLU(), nn.Linear(width, parts * width))


class ModulatedCrossBlock(nn.Module):
    """Self-attention, cross-attention and feed-forward; the first and the last are modulated and gated by the time.

    Takes dense tokens (B, N, C) or, with `voxels`, features (P, N, C) of passes that share a voxel set.
    """

    def __init__(
        self,
        channels: int,
        ctx_channels: int,
        num_heads: int,
        *,
        mlp_ratio: float = 4.0,
        share_mod: bool = False,
        offset_shared: bool = False,
        qk_rms_norm: bool = False,
        qk_rms_norm_cross: bool = False,
        qkv_bias: bool = True,
        window_size: int | None = None,
        shift_window: int = 0,
    ) -> None:
        """Build the layers.

        Args:
            share_mod: the modulation is computed once for all blocks.
            offset_shared: the block adds a vector of its own to the shared modulation.
        """
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
        self.modulation = nn.Parameter(torch.zeros(6 * channels)) if share_mod and offset_shared else None

    def forward(
        self,
        x: Tensor,
        mod: Tensor,
        context: CrossCache,
        voxels: VoxelSet | None = None,
        phases: Tensor | None = None,
    ) -> Tensor:
        """Apply the block.

        Args:
            x: (B, N, C).
            mod: time embedding, broadcastable to (B, N, C); (..., 6C) if the modulation is shared by all blocks.
            context: keys and values, cached by this block's cross-attention.
            voxels: the N voxels; None for dense tokens.
            phases: (N, D / 2) from `rotary_phases`; None without rotary positions.

        Returns:
            (B, N, C).
        """
        if self.adaLN_modulation is not None:
            mod = self.adaLN_modulation(mod)  # (..., C) -> (..., 6C)
        elif self.modulation is not None:
            mod = (mod + self.modulation).to(x.dtype)  # the sum in float32, as in the release
        shift_msa, _, gate_msa, shift_mlp, _, gate_mlp = mod.chunk(6, dim=-1)  # (..., C)
        _, scale_msa, _, _, scale_mlp, _ = (1 + mod).chunk(6, dim=-1)  # both scales at once
        x = add_gated(x, self.self_attn(modulate(self.norm1(x), scale_msa, shift_msa), voxels, phases), gate_msa)
        x = x + self.cross_attn(self.norm2(x), context, voxels)  # not modulated, unlike the other two
        return add_gated(x, self.mlp(modulate(self.norm3(x), scale_mlp, shift_mlp)), gate_mlp)


NormType = Literal["group", "layer"]


def channel_norm(norm_type: NormType, channels: int) -> nn.Module:
    """Return a norm of (B, C, X, Y, Z): over 32 groups, or over the channels of each cell."""
    if norm_type == "group":
        return GroupNorm32(32, channels)
    return ChannelLayerNorm32(channels, eps=HEAD_EPS)


class ResBlock3d(nn.Module):
    """Two times norm, SiLU and convolution, with a skip connection."""

    def __init__(self, channels: int, out_channels: int | None = None, norm_type: NormType = "layer") -> None:
        super().__init__()
        out_channels = out_channels or channels
        self.norm1 = channel_norm(norm_type, channels)
        self.norm2 = channel_norm(norm_type, out_channels)
        self.conv1 = nn.Conv3d(channels, out_channels, 3, padding=1)
        self.conv2 = nn.Conv3d(out_channels, out_channels, 3, padding=1)
        self.skip_connection = nn.Conv3d(channels, out_channels, 1) if channels != out_channels else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:  # (B, C, X, Y, Z) -> (B, D, X, Y, Z)
        h = self.conv1(torch.nn.functional.silu(self.norm1(x)))
        h = self.conv2(torch.nn.functional.silu(self.norm2(h)))
        return h + self.skip_connection(x)


def pixel_shuffle_3d(x: Tensor, factor: int) -> Tensor:
    """Move channels to space: (B, C f^3, X, Y, Z) -> (B, C, f X, f Y, f Z), the offset along x slowest.

    Args:
        x: (B, C f^3, X, Y, Z).
        factor: f.

    Source: Shi et al. 2016, arXiv 1609.05158, section 2.2, in three dimensions.
    """
    b, c, x_size, y_size, z_size = x.shape
    x = x.view(b, c // factor**3, factor, factor, factor, x_size, y_size, z_size)
    x = x.permute(0, 1, 5, 2, 6, 3, 7, 4)  # (B, C, f, f, f, X, Y, Z) -> (B, C, X, f, Y, f, Z, f)
    return x.reshape(b, c // factor**3, x_size * factor, y_size * factor, z_size * factor)


class UpsampleBlock3d(nn.Module):
    """Convolution to eight times the channels, then a pixel shuffle by 2."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv3d(in_channels, out_channels * 8, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:  # (B, C, X, Y, Z) -> (B, D, 2X, 2Y, 2Z)
        return pixel_shuffle_3d(self.conv(x), 2)
