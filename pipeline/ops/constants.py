"""Small tensors of fixed values, made once for each device. Knows nothing of what they mean."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

Values = tuple[Any, ...]
"""Numbers, or tuples of them to any depth."""


def constant(values: Values, device: torch.device, *, dtype: torch.dtype | None = None) -> Tensor:
    """Return the same tensor at every call; it must not be written to.

    A copy of host values to a GPU waits until the GPU has done everything before it, so one at each use would stop the
    host as often.

    Args:
        values: see `Values`.
        device: where to.
        dtype: by default what `torch.tensor` chooses.
    """
    return _made(values, str(device), dtype)


@functools.lru_cache(maxsize=512)
def _made(values: Values, device: str, dtype: torch.dtype | None) -> Tensor:
    with torch.inference_mode(False):  # usable in and outside of inference mode
        return torch.tensor(values, dtype=dtype, device=device)


def constant_array(make: Callable[[], NDArray[Any]], device: torch.device) -> Tensor:
    """Return the array of a function on a device, the same tensor at every call; it must not be written to."""
    return _made_array(make, str(device))


@functools.lru_cache(maxsize=64)
def _made_array(make: Callable[[], NDArray[Any]], device: str) -> Tensor:
    with torch.inference_mode(False):
        return torch.from_numpy(make()).to(device)


def forget_constants() -> None:
    """Make every constant again when it is next used: its device is gone."""
    _made.cache_clear()
    _made_array.cache_clear()
