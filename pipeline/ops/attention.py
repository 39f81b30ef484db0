"""Scaled dot-product attention over dense sequences, batch elements of voxels, and windows of voxels."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.ops.voxels import VoxelSet


def attend(q: Tensor, k: Tensor, v: Tensor, *, mask: Tensor | None = None) -> Tensor:
    """Attention with softmax scale 1 / sqrt(D).

    Args:
        q: (B, N, H, D).
        k: (B or 1, M, H, D).
        v: (B or 1, M, H, D).
        mask: bool, broadcastable to (B, H, N, M); False is left out.

    Returns:
        (B, N, H, D).
    """
    if len(k) != len(q):
        k, v = k.expand(len(q), -1, -1, -1), v.expand(len(q), -1, -1, -1)
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2)


def attend_per_element(q: Tensor, k: Tensor, v: Tensor, voxels: VoxelSet) -> Tensor:
    """Self-attention in which every batch element is a sequence of its own.

    Args:
        q, k, v: (P, N, H, D), the passes P sharing the voxels.

    Returns:
        (P, N, H, D).
    """
    if voxels.batch_size == 1:
        return attend(q, k, v)
    return torch.cat([attend(q[:, rows], k[:, rows], v[:, rows]) for rows in voxels.segments], dim=1)


def attend_in_windows(q: Tensor, k: Tensor, v: Tensor, voxels: VoxelSet, *, size: int, shift: int) -> Tensor:
    """Self-attention inside windows: full within a window, none between two, no mask at their edges.

    Args:
        q, k, v: (P, N, H, D).
        size: voxels along a window's side.
        shift: added to the coordinates before they are divided into windows.

    Returns:
        (P, N, H, D).
    """
    passes = len(q)
    out = torch.empty_like(q)
    for group in voxels.windows(size, shift):
        flat = group.rows.flatten()
        parts = [
            x.index_select(1, flat).unflatten(1, group.rows.shape).flatten(0, 1) for x in (q, k, v)
        ]  # (P W, L, H, D)
        mask = None if group.valid is None else group.valid.repeat(passes, 1)[:, None, None, :]
        result = attend(*parts, mask=mask).unflatten(0, (passes, -1)).flatten(1, 2)  # (P, W L, H, D)
        if group.valid is None:
            out[:, flat] = result
        else:
            kept = group.valid.flatten()
            out[:, flat[kept]] = result[:, kept]
    return out
