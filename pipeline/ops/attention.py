"""Scaled dot-product attention over dense sequences, batch elements of voxels, and windows of voxels.

No weights, no projections: queries, keys and values come from the caller.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.ops.voxels import VoxelSet, WindowOrder


def attend(q: Tensor, k: Tensor, v: Tensor, *, mask: Tensor | None = None) -> Tensor:
    """Multi-head attention: softmax(q k^T / sqrt(D)) v per head.

    Args:
        q: (B, N, H, D): batch, queries, heads, channels.
        k: (B or 1, M, H, D).
        v: (B or 1, M, H, D).
        mask: bool, broadcastable to (B, H, N, M); False excludes a key.

    Returns:
        (B, N, H, D).
    """
    if len(k) != len(q):
        k, v = k.expand(len(q), -1, -1, -1), v.expand(len(q), -1, -1, -1)
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))  # (B, N, H, D) -> (B, H, N, D), the order that torch expects
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2)


def attend_per_element(q: Tensor, k: Tensor, v: Tensor, voxels: VoxelSet) -> Tensor:
    """Self-attention within each batch element.

    Args:
        q, k, v: (P, N, H, D); P passes share the N voxels.
        voxels: N voxels, grouped by batch element.

    Returns:
        (P, N, H, D).
    """
    if voxels.batch_size == 1:
        return attend(q, k, v)
    return torch.cat([attend(q[:, rows], k[:, rows], v[:, rows]) for rows in voxels.segments], dim=1)


def attend_in_windows(q: Tensor, k: Tensor, v: Tensor, voxels: VoxelSet, *, size: int, shift: int) -> Tensor:
    """Self-attention within each window of voxels.

    Unlike Swin's shifted windows, a window does not wrap around at the grid's border, so no mask is needed there.

    Args:
        q, k, v: (P, N, H, D); P passes share the N voxels.
        voxels: N voxels.
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
        if group.kept is None:
            out[:, flat] = result
        else:  # padding rows point at row 0 and must not be written
            out[:, flat[group.kept]] = result[:, group.kept]
    return out


def has_kernel_for_runs(device: torch.device, dtype: torch.dtype, head_dim: int) -> bool:
    """Whether torch has attention in runs of different lengths: in half precision, from NVIDIA's Ampere on."""
    return (
        device.type == "cuda"
        and dtype in (torch.float16, torch.bfloat16)
        and head_dim % 8 == 0
        and torch.cuda.get_device_capability(device) >= (8, 0)
    )


def attend_in_runs(q: Tensor, k: Tensor, v: Tensor, order: WindowOrder) -> Tensor:
    """Self-attention within each window in one kernel a pass, without padding.

    Args:
        q, k, v: (P, N, H, D), the rows in the order of their windows.
        order: that order.

    Returns:
        (P, N, H, D) in the same order.
    """
    from torch.nn.attention.varlen import varlen_attn  # registers its operations, which a CPU has no use for

    out = []
    for one in zip(q, k, v, strict=True):  # the passes of a decoder: there is one
        found = varlen_attn(*one, order.starts, order.starts, order.longest, order.longest)
        assert isinstance(found, Tensor)
        out.append(found)
    return torch.stack(out) if len(out) > 1 else out[0][None]
