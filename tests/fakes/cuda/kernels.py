"""Kernels that only a GPU has, by slow implementations with the same results and layouts."""

from __future__ import annotations

import itertools
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.ops.sparse import gather_conv3

HALF = (torch.float16, torch.bfloat16)
attend, rms_norm = F.scaled_dot_product_attention, F.rms_norm
"""The functions themselves; their names in torch are replaced while the device exists."""


def fused_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, **options: Any) -> Tensor:
    """Attention of (B, H, N, D) tensors of the CPU, or meta tensors, in the memory order (B, N, H, D)."""
    if q.is_meta:
        out = q.new_empty((q.shape[0], q.shape[2], q.shape[1], v.shape[3]))
        return out.transpose(1, 2)
    out = attend(q, k, v, attn_mask=mask, **options)
    return out.transpose(1, 2).contiguous().transpose(1, 2)


def varlen_attention(q: Tensor, k: Tensor, v: Tensor, cu_seq_q: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Self-attention of (T, H, D) rows within consecutive sequences that begin at `cu_seq_q`.

    Raises:
        RuntimeError: a type that the kernel does not know.
    """
    if q.dtype not in HALF:
        raise RuntimeError(f"FlashAttention only supports fp16 and bf16, got {q.dtype}")
    out = torch.empty_like(q, memory_format=torch.contiguous_format)
    logsumexp = torch.empty((q.shape[1], q.shape[0]), dtype=torch.float32, device=q.device)
    if not q.is_meta:
        for first, last in itertools.pairwise(cu_seq_q.tolist()):
            if last > first:
                one = (each[first:last].transpose(0, 1)[None] for each in (q, k, v))
                out[first:last] = attend(*one)[0].transpose(0, 1)
    return out, logsumexp, torch.zeros(2, dtype=torch.uint64, device=q.device)


def implicit_conv3(feats: Tensor, neighbours: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The convolution of the package's Triton kernel, by its reference: (P, N, C), (27, N) -> (P, N, D)."""
    if feats.is_meta:
        return feats.new_empty((*feats.shape[:-1], weight.shape[0]))
    voxels: Any = SimpleNamespace(neighbours=neighbours)  # all that the reference reads of them
    return gather_conv3(feats, voxels, weight, bias)


def varlen_attention_flops(q: Tensor, k: Tensor, v: Tensor, cu_seq_q: Tensor, *rest: Any, out_val: Any) -> int:
    """Two products of every query with every key of its sequence."""
    lengths = cu_seq_q.long().diff()
    return 4 * q.shape[1] * q.shape[2] * int((lengths * lengths).sum())


ONLY_ON_A_GPU = {"_varlen_attn": varlen_attention}
"""By the name of the operation."""
FLOPS_ONLY_ON_A_GPU = {"_varlen_attn": varlen_attention_flops}
"""The same for the formulas that torch's counter of FLOPs lacks."""
