"""Rotary position embedding of integer positions in several dimensions.

Source: Su et al. 2021, arXiv 2104.09864, section 3.4.2; the split of the channels by axis: microsoft/TRELLIS.2@5565d24,
    RotaryPositionEmbedder.
"""

from __future__ import annotations

import torch
from torch import Tensor

MAX_PERIOD = 10000.0


def rotary_phases(coords: Tensor, head_dim: int) -> Tensor:
    """Return the rotation of each pair of channels at integer positions.

    The first pairs turn with the first axis, the next with the second, and so on; what does not divide evenly by the
    number of axes does not turn.

    Args:
        coords: (N, D) integer positions.
        head_dim: channels of one head.

    Returns:
        (N, head_dim / 2) complex64 of absolute value 1.
    """
    axes, pairs = coords.shape[-1], head_dim // 2
    per_axis = pairs // axes
    exponents = torch.arange(per_axis, dtype=torch.float32, device=coords.device) / per_axis
    angles = (coords[..., None].float() * (1.0 / MAX_PERIOD**exponents)).flatten(-2)  # (N, D, F) -> (N, D F)
    angles = torch.nn.functional.pad(angles, (0, pairs - angles.shape[-1]))
    return torch.polar(torch.ones_like(angles), angles)


def rotate(x: Tensor, phases: Tensor) -> Tensor:
    """Turn adjacent pairs of channels, computed in float32.

    Args:
        x: (..., N, H, D).
        phases: (N, D / 2) complex64.

    Returns:
        (..., N, H, D) in the type of `x`.
    """
    pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)).contiguous())  # (..., N, H, D / 2)
    return torch.view_as_real(pairs * phases[:, None]).flatten(-2).to(x.dtype)
