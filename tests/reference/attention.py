"""Slow, obvious reference implementation of attention: one query and one head at a time, in float64."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def attention(q: Tensor, k: Tensor, v: Tensor, allowed: Sequence[Sequence[bool]] | None = None) -> Tensor:
    """Attention of one sequence.

    Args:
        q: (N, H, D).
        k: (M, H, D).
        v: (M, H, D).
        allowed: (N, M), whether a query sees a key; None allows all.

    Returns:
        (N, H, D).
    """
    out = torch.zeros_like(q)
    for n in range(len(q)):
        keys = [m for m in range(len(k)) if allowed is None or allowed[n][m]]
        for h in range(q.shape[1]):
            scores = [float(q[n, h] @ k[m, h]) / math.sqrt(q.shape[2]) for m in keys]
            weights = [math.exp(score - max(scores)) for score in scores]
            for m, weight in zip(keys, weights, strict=True):
                out[n, h] += weight / sum(weights) * v[m, h]
    return out


def grouped_attention(q: Tensor, k: Tensor, v: Tensor, groups: Sequence[object]) -> Tensor:
    """Self-attention of (N, H, D) in which a row sees the rows of its own group only."""
    return attention(q, k, v, [[a == b for b in groups] for a in groups])
