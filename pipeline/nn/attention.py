"""Multi-head attention with weights, for dense tokens and for voxels, in the layout of the released checkpoints.

`to_qkv` returns q, k and v as thirds of the channels; heads are contiguous inside each third. The attention itself is
in `pipeline.ops.attention`. Knows no particular model.

Source: Vaswani et al. 2017, arXiv 1706.03762, eq. 1; windows: Liu et al. 2021 (Swin), arXiv 2103.14030, section 3.2.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pipeline.nn.norms import MultiHeadRMSNorm
from pipeline.nn.rotary import rotate
from pipeline.ops.attention import (
    attend,
    attend_in_runs,
    attend_in_windows,
    attend_per_element,
    has_kernel_for_runs,
)
from pipeline.ops.fused import normalise_queries_and_keys
from pipeline.ops.voxels import VoxelSet, WindowOrder


@dataclass(frozen=True, eq=False)
class CrossCache:
    """Keys and values of a context, computed once per layer and reused at every sampling step.

    Attributes:
        keys: (P, B, L, H, D) for P guided passes and B batch elements; B is 1 where all elements share a context.
        values: (P, B, L, H, D).
        unguided: (C,) the layer's output for a context of zeros, used by one extra pass after the guided ones. All
            zero tokens have the same value vector, so the output does not depend on the attention weights and is a
            constant. None if there is no unguided pass.
    """

    keys: Tensor  # (P, B, L, H, D)
    values: Tensor  # (P, B, L, H, D)
    unguided: Tensor | None = None  # (C,)

    def guided_rows(self, rows: int) -> int:
        """Return how many of `rows` batch rows (passes slowest) belong to guided passes."""
        passes = len(self.keys)
        return rows if self.unguided is None else rows * passes // (passes + 1)

    def select(self, passes: Sequence[int], *, unguided: bool) -> CrossCache:
        """Return the cache of the chosen guided passes, with or without the unguided pass."""
        keys, values = self.keys, self.values
        if len(passes) == 1:
            # A slice is a view; indexing with a list would copy the keys at every sampling step.
            keys, values = keys[passes[0] : passes[0] + 1], values[passes[0] : passes[0] + 1]  # (1, B, L, H, D)
        elif list(passes) != list(range(len(keys))):
            keys, values = keys[list(passes)], values[list(passes)]  # (len(passes), B, L, H, D)
        return CrossCache(keys, values, self.unguided if unguided else None)


class SelfAttention(nn.Module):
    """Self-attention over tokens, over all voxels of a batch element, or over voxels in shifted windows."""

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

    def order_of_rows(self, voxels: VoxelSet) -> WindowOrder | None:
        """The order of the rows in which `forward` attends with one kernel; None where it takes them as they are."""
        weight = self.to_qkv.weight
        head_dim = self.to_qkv.in_features // self.num_heads
        if self.window_size is None or not len(voxels):
            return None
        if not has_kernel_for_runs(weight.device, weight.dtype, head_dim):
            return None
        return voxels.window_order(self.window_size, self.shift_window)

    def forward(
        self,
        x: Tensor,
        voxels: VoxelSet | None = None,
        phases: Tensor | None = None,
        order: WindowOrder | None = None,
    ) -> Tensor:
        """Attend: (B, N, C) -> (B, N, C).

        Args:
            x: (B, N, C) tokens; with `voxels`, (P, N, C) features of P passes that share the voxels.
            voxels: the N voxels; None attends over the whole sequence.
            phases: (N, D / 2) from `rotary_phases`, turning queries and keys; None without positions.
            order: from `order_of_rows`, if the rows of `x` are in it instead of that of the voxels.
        """
        # (B, N, C) -> (B, N, 3C) -> (B, N, 3, H, D) -> three times (B, N, H, D), D = C/H
        qkv = self.to_qkv(x).unflatten(-1, (3, self.num_heads, -1))
        q, k, v = qkv.unbind(-3)
        if self.q_rms_norm is not None and self.k_rms_norm is not None:
            gains = self.q_rms_norm.gamma, self.k_rms_norm.gamma
            q, k = normalise_queries_and_keys(qkv[..., :2, :, :], gains)
        if phases is not None:
            q, k = rotate(q, phases), rotate(k, phases)
        if order is not None:
            out = attend_in_runs(q, k, v, order)
        elif voxels is None:
            out = attend(q, k, v)
        elif self.window_size is None:
            out = attend_per_element(q, k, v, voxels)
        else:
            out = attend_in_windows(q, k, v, voxels, size=self.window_size, shift=self.shift_window)
        return self.to_out(out.flatten(-2))  # (B, N, H, D) -> (B, N, C)


class CrossAttention(nn.Module):
    """Attention of tokens or voxels to a context whose keys and values are computed once."""

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
        """Compute keys and values of a context.

        Args:
            context: (P, B, L, E) for P passes; B is 1 where all batch elements share the context.
            unguided: also compute the output for a context of zeros.
        """
        # (P, B, L, E) -> (P, B, L, 2C) -> (P, B, L, 2, H, D) -> twice (P, B, L, H, D)
        k, v = self.to_kv(context).unflatten(-1, (2, self.num_heads, -1)).unbind(-3)
        if self.k_rms_norm is not None:
            k = self.k_rms_norm(k)
        constant = None
        if unguided:
            # A zero token's value is the bias of `to_kv`, whose second half belongs to v: softmax weights sum to 1, so
            # attending to equal values returns that value for every query.
            bias = self.to_kv.bias  # (2C,)
            value = torch.zeros_like(self.to_out.bias) if bias is None else bias[len(bias) // 2 :]
            constant = self.to_out(value)  # (C,)
        return CrossCache(k.contiguous(), v.contiguous(), constant)

    def forward(self, x: Tensor, cache: CrossCache, voxels: VoxelSet | None = None) -> Tensor:
        """Attend to the cached context.

        Args:
            x: (P*B, N, C) tokens, passes slowest; with `voxels`, (P, N, C). Rows beyond the guided passes of the
                cache belong to the unguided pass.
            cache: from `cache`.
            voxels: the N voxels; None for dense tokens.

        Returns:
            A tensor of the shape of `x`.
        """
        guided = x[: cache.guided_rows(len(x))]
        if cache.unguided is not None and len(guided) == 0:
            return cache.unguided.expand_as(x)
        q = self.to_q(guided).unflatten(-1, (self.num_heads, -1))  # (P*B, N, C) -> (P*B, N, H, D)
        if self.q_rms_norm is not None:
            q = self.q_rms_norm(q)
        out = self.to_out(_attend_context(q, cache, voxels).flatten(-2))  # (P*B, N, H, D) -> (P*B, N, C)
        if cache.unguided is None:
            return out
        return torch.cat([out, cache.unguided.expand_as(x[len(guided) :])])  # (C,) repeated over the unguided rows


def _attend_context(q: Tensor, cache: CrossCache, voxels: VoxelSet | None) -> Tensor:
    """Attend with (P*B, N, H, D) dense queries or (P, N, H, D) queries on voxels; the result has the shape of `q`."""
    k, v = cache.keys, cache.values  # (P, B, L, H, D) each
    if voxels is None:
        batch = len(q) // len(k)
        return attend(q, *(c.expand(-1, batch, -1, -1, -1).flatten(0, 1) for c in (k, v)))  # k, v: (P*B, L, H, D)
    if k.shape[1] == 1:
        return attend(q, k[:, 0], v[:, 0])
    # Batch elements have their own contexts and lie in consecutive rows of the voxel set.
    parts = [attend(q[:, rows], k[:, i], v[:, i]) for i, rows in enumerate(voxels.segments)]  # (P, N_i, H, D) each
    return torch.cat(parts, dim=1)
