"""Mixed precision: linear and convolution layers inside a model's heavy parts change type, everything else does not."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from pipeline.nn.sparse_conv import SparseConv3d, SubmanifoldConv3

HEAVY_LAYERS = (nn.Linear, nn.Conv3d, SparseConv3d, SubmanifoldConv3)


def set_precision(parts: Iterable[nn.Module], dtype: torch.dtype) -> None:
    """Convert the linear and convolution layers inside the parts to a type, in place; norms and gains stay float32."""
    for part in parts:
        for layer in part.modules():
            if isinstance(layer, HEAVY_LAYERS):
                layer.to(dtype)
