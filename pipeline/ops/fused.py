"""Small steps of networks in few kernels on a GPU, where each launch costs the time of a million additions.

On a CPU they run in the order of their formula, which fixes the last bits of a result; the GPU's kernels round once
where the formula rounds twice. No weights.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

SMALLEST_SQUARE = 1e-24
"""Of a length that is divided by; the square of the clamp of `F.normalize`."""


def has_fused_kernels(x: Tensor) -> bool:
    """Whether a tensor lies on a device for which the short forms are meant."""
    return x.device.type == "cuda"


def modulate(x: Tensor, scale_plus_one: Tensor, shift: Tensor) -> Tensor:
    """Return x (1 + scale) + shift: (..., C), broadcastable (..., C), twice -> (..., C)."""
    if has_fused_kernels(x):
        return torch.addcmul(shift, x, scale_plus_one)
    return x * scale_plus_one + shift


def add_gated(x: Tensor, change: Tensor, gate: Tensor) -> Tensor:
    """Return x + change gate: (..., C), (..., C), broadcastable (..., C) -> (..., C)."""
    if has_fused_kernels(x):
        return torch.addcmul(x, change, gate)
    return x + change * gate


def normalise_heads(x: Tensor, gain: Tensor) -> Tensor:
    """Divide the channels of each head by their root mean square, in float32: (..., H, D), (H, D) -> (..., H, D)."""
    width = x.shape[-1]
    if not has_fused_kernels(x):
        return (F.normalize(x.float(), dim=-1) * gain * width**0.5).to(x.dtype)
    unit = F.rms_norm(x.float(), (width,), eps=SMALLEST_SQUARE / width)
    return torch.mul(unit, gain, out=torch.empty_like(x, memory_format=torch.contiguous_format))


def normalise_queries_and_keys(qk: Tensor, gains: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Apply `normalise_heads` to queries and keys that lie side by side: (..., 2, H, D) -> twice (..., H, D)."""
    if not has_fused_kernels(qk):
        q, k = qk.unbind(-3)
        return normalise_heads(q, gains[0]), normalise_heads(k, gains[1])
    width = qk.shape[-1]
    units = F.rms_norm(qk.float(), (width,), eps=SMALLEST_SQUARE / width).unbind(-3)
    q, k = (
        torch.mul(unit, gain, out=torch.empty(unit.shape, dtype=qk.dtype, device=qk.device))
        for unit, gain in zip(units, gains, strict=True)
    )
    return q, k
