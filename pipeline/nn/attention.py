"""Multi-head attention with weights, for dense tokens and for voxels, in the layout of the released checkpoints.

`to_qkv` gives q, k, v as thirds of the channels; heads are contiguous inside each third.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pipeline.nn.norms import MultiHeadRMSNorm
from pipeline.ops.attention import attend, attend_in_windows, attend_per_element
from pipeline.ops.voxels import VoxelSet


@dataclass(frozen=True, eq=False)
class CrossCache:
    """What a cross-attention layer needs of its context, the same at every step.

    Attributes:
        keys: (P, B, L, H, D) for P guided passes and B batch elements; B is 1 where all elements share a context.
        values: (P, B, L, H, D).
        unguided: (C,) the layer's output for a context of zeros, for one more pass behind the guided ones: every zero
            token has the same value, so what is looked at does not remover. None where there is no such pass.
    """

    keys: Tensor
    values: Tensor
    unguided: Tensor | None = None

    def guided_rows(self, rows: int) -> int:
        """How many of the rows of a batch (passes slowest) belong to guided passes."""
        passes = len(self.keys)
        return rows if self.unguided is None else rows * passes // (passes + 1)

    def select(self, passes: Sequence[int], *, unguided: bool) -> CrossCache:
        """The same context for some of the guided passes, with or without the unguided one."""
        keys, values = self.keys, self.values
        if len(passes) == 1:
            keys, values = keys[passes[0] : passes[0] + 1], values[passes[0] : passes[0] + 1]
        elif list(passes) != list(range(len(keys))):
            keys, values = keys[list(passes)], values[list(passes)]
        return CrossCache(keys, values, self.unguided if unguided else None)


class SelfAttention(nn.Module):
    """Self-attention over tokens (B, N, C), or over voxels with windows or without."""

    def __init__(
        self,
        channels: int,
        num_heads: int,
        *,
        qkv_bias: bool = True,
        qk_rms_norm: bool = False,
        window_size: int | None = None,
        shift_window: int = 0,
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.window_size = window_size
        self.shift_window = shift_window
        self.to_qkv = nn.Linear(channels, channels * 3, bias=qkv_bias)
        head_dim = channels // num_heads
        self.q_rms_norm = MultiHeadRMSNorm(head_dim, num_heads) if qk_rms_norm else None
        self.k_rms_norm = MultiHeadRMSNorm(head_dim, num_heads) if qk_rms_norm else None
        self.to_out = nn.Linear(channels, channels)

    def forward(self, x: Tensor, voxels: VoxelSet | None = None) -> Tensor:
        """(B, N, C) -> (B, N, C); with `voxels` the first axis holds passes that share them."""
        q, k, v = self.to_qkv(x).unflatten(-1, (3, self.num_heads, -1)).unbind(-3)  # (B, N, H, D) each
        if self.q_rms_norm is not None and self.k_rms_norm is not None:
            q, k = self.q_rms_norm(q), self.k_rms_norm(k)
        if voxels is None:
            out = attend(q, k, v)
        elif self.window_size is None:
            out = attend_per_element(q, k, v, voxels)
        else:
            out = attend_in_windows(q, k, v, voxels, size=self.window_size, shift=self.shift_window)
        return self.to_out(out.flatten(-2))


class CrossAttention(nn.Module):
    """Attention of tokens or voxels to a context of which keys and values are made once."""

    def __init__(
        self, channels: int, num_heads: int, ctx_channels: int, *, qkv_bias: bool = True, qk_rms_norm: bool = False
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.to_q = nn.Linear(channels, channels, bias=qkv_bias)
        self.to_kv = nn.Linear(ctx_channels, channels * 2, bias=qkv_bias)
        head_dim = channels // num_heads
        self.q_rms_norm = MultiHeadRMSNorm(head_dim, num_heads) if qk_rms_norm else None
        self.k_rms_norm = MultiHeadRMSNorm(head_dim, num_heads) if qk_rms_norm else None
        self.to_out = nn.Linear(channels, channels)

    def cache(self, context: Tensor, *, unguided: bool = False) -> CrossCache:
        """Keys and values of a context.

        Args:
            context: (P, B, L, Cc), B being 1 where all batch elements share it.
            unguided: also make what passes with a context of zeros get.
        """
        k, v = self.to_kv(context).unflatten(-1, (2, self.num_heads, -1)).unbind(-3)  # (P, B, L, H, D) each
        if self.k_rms_norm is not None:
            k = self.k_rms_norm(k)
        constant = None
        if unguided:
            bias = self.to_kv.bias
            value = torch.zeros_like(self.to_out.bias) if bias is None else bias[len(bias) // 2 :]
            constant = self.to_out(value)
        return CrossCache(k.contiguous(), v.contiguous(), constant)

    def forward(self, x: Tensor, cache: CrossCache, voxels: VoxelSet | None = None) -> Tensor:
        """Attend.

        Args:
            x: (P B, N, C) tokens, passes slowest; with `voxels` (P, N, C). Passes beyond those of the cache's keys
                are unguided.

        Returns:
            The shape of `x`.
        """
        guided = x[: cache.guided_rows(len(x))]
        if cache.unguided is not None and len(guided) == 0:
            return cache.unguided.expand_as(x)
        q = self.to_q(guided).unflatten(-1, (self.num_heads, -1))
        if self.q_rms_norm is not None:
            q = self.q_rms_norm(q)
        out = self.to_out(_attend_context(q, cache, voxels).flatten(-2))
        if cache.unguided is None:
            return out
        return torch.cat([out, cache.unguided.expand_as(x[len(guided) :])])


def _attend_context(q: Tensor, cache: CrossCache, voxels: VoxelSet | None) -> Tensor:
    """(P B, N, H, D) dense or (P, N, H, D) on voxels -> the same shape."""
    k, v = cache.keys, cache.values
    if voxels is None:
        batch = len(q) // len(k)
        return attend(q, *(c.expand(-1, batch, -1, -1, -1).flatten(0, 1) for c in (k, v)))
    if k.shape[1] == 1:
        return attend(q, k[:, 0], v[:, 0])
    parts = [attend(q[:, rows], k[:, i], v[:, i]) for i, rows in enumerate(voxels.segments)]
    return torch.cat(parts, dim=1)
