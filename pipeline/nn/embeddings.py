"""Embeddings of time and of integer positions."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def timestep_sinusoids(t: Tensor, dim: int, *, max_period: float = 10000.0) -> Tensor:
    """Cosines, then sines, of a time at `dim // 2` frequencies; a zero column more where `dim` is odd.

    Args:
        t: (B,) float32.

    Returns:
        (B, dim) float32.
    """
    half = dim // 2
    exponents = -math.log(max_period) * torch.arange(half, dtype=torch.float32, device=t.device) / half
    angles = t[:, None].float() * torch.exp(exponents)[None]
    return F.pad(torch.cat([angles.cos(), angles.sin()], dim=-1), (0, dim % 2))


class TimestepEmbedder(nn.Module):
    """A time's sinusoids through a two-layer perceptron: (B,) -> (B, hidden_size)."""

    def __init__(self, hidden_size: int, frequency_embedding_size: int = 256) -> None:
        super().__init__()
        self.frequency_embedding_size = frequency_embedding_size
        self.mlp = nn.Sequential(
            nn.Linear(frequency_embedding_size, hidden_size), nn.SiLU(), nn.Linear(hidden_size, hidden_size)
        )

    def forward(self, t: Tensor) -> Tensor:
        return self.mlp(timestep_sinusoids(t, self.frequency_embedding_size))


def position_embedding(coords: Tensor, channels: int) -> Tensor:
    """Sines, then cosines, of each coordinate in turn, zero-padded on the right.

    Args:
        coords: (N, D) integer positions.
        channels: width of the embedding.

    Returns:
        (N, channels) float32.
    """
    axes = coords.shape[1]
    frequencies = channels // axes // 2
    exponents = torch.arange(frequencies, dtype=torch.float32, device=coords.device) / frequencies
    angles = coords[..., None].float() * (1.0 / 10000**exponents)  # (N, D, F)
    embedding = torch.cat([angles.sin(), angles.cos()], dim=-1).flatten(1)
    return F.pad(embedding, (0, channels - embedding.shape[1]))
