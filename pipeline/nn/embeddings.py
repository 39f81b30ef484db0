"""Embeddings of time and of integer positions."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def timestep_sinusoids(t: Tensor, dim: int, *, max_period: float = 10000.0) -> Tensor:
    """Return cosines, then sines, of a time at `dim // 2` frequencies; an odd `dim` adds a column of zeros.

    Args:
        t: (B,) float32 times.
        dim: width of the embedding.
        max_period: the frequencies fall from 1 towards 1 / `max_period`.

    Returns:
        (B, dim) float32.

    Source: Vaswani et al. 2017, arXiv 1706.03762, section 3.5; unlike there, all cosines come before all sines, as in
        microsoft/TRELLIS@6b0d647, TimestepEmbedder.
    """
    half = dim // 2
    exponents = -math.log(max_period) * torch.arange(half, dtype=torch.float32, device=t.device) / half
    angles = t[:, None].float() * torch.exp(exponents)[None]  # (B, 1) * (1, half) -> (B, half)
    return F.pad(torch.cat([angles.cos(), angles.sin()], dim=-1), (0, dim % 2))  # (B, 2 half) -> (B, dim)


class TimestepEmbedder(nn.Module):
    """Sinusoids of a time, then a two-layer perceptron."""

    def __init__(self, hidden_size: int, frequency_embedding_size: int = 256) -> None:
        super().__init__()
        self.frequency_embedding_size = frequency_embedding_size
        self.mlp = nn.Sequential(
            nn.Linear(frequency_embedding_size, hidden_size), nn.SiLU(), nn.Linear(hidden_size, hidden_size)
        )

    def forward(self, t: Tensor) -> Tensor:
        """(B,) -> (B, hidden_size)."""
        return self.mlp(timestep_sinusoids(t, self.frequency_embedding_size))


def position_embedding(coords: Tensor, channels: int) -> Tensor:
    """Return sines, then cosines, of each coordinate in turn, zero-padded on the right.

    Args:
        coords: (N, D) integer positions.
        channels: width of the embedding.

    Returns:
        (N, channels) float32; the last `channels - 2 D floor(channels / 2D)` columns are zero.

    Source: microsoft/TRELLIS@6b0d647, AbsolutePositionEmbedder.
    """
    axes = coords.shape[1]
    frequencies = channels // axes // 2
    exponents = torch.arange(frequencies, dtype=torch.float32, device=coords.device) / frequencies
    angles = coords[..., None].float() * (1.0 / 10000**exponents)  # (N, D, F)
    embedding = torch.cat([angles.sin(), angles.cos()], dim=-1).flatten(1)  # (N, D, 2F) -> (N, 2DF)
    return F.pad(embedding, (0, channels - embedding.shape[1]))
