"""Mixed precision: linear and convolution layers inside a model's heavy parts change type, everything else does not."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from pipeline.errors import InvalidRequest
from pipeline.nn.sparse_conv import SparseConv3d, SubmanifoldConv3

PRECISIONS = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
HEAVY_LAYERS = (nn.Linear, nn.Conv3d, SparseConv3d, SubmanifoldConv3)


def set_precision(parts: Iterable[nn.Module], dtype: torch.dtype) -> None:
    """Convert the linear and convolution layers inside the parts to a type, in place; norms and gains stay float32."""
    for part in parts:
        for layer in part.modules():
            if isinstance(layer, HEAVY_LAYERS):
                layer.to(dtype)


def precision_of(name: str | None) -> torch.dtype | None:
    """Return the type of that name; None where a model decides itself.

    Raises:
        InvalidRequest: no precision has the name.
    """
    if name is not None and name not in PRECISIONS:
        raise InvalidRequest(f"dtype must be one of {', '.join(PRECISIONS)}, got {name!r}")
    return None if name is None else PRECISIONS[name]


def device_of(name: str | None) -> torch.device:
    """Return the device of that name; by default a GPU if there is one."""
    return torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
