"""Weights that follow from their names: what parity fixtures and weight-free deployments are filled with.

Knows nothing of any particular model. No pretrained value is involved: the same key, shape and seed give the same
numbers on every machine.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from fnmatch import fnmatchcase

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

BIAS_SCALE = np.float32(0.05)
NORM_SCALE = np.float32(0.1)


def deterministic_array(key: str, shape: tuple[int, ...], *, seed: int) -> NDArray[np.float32]:
    """The values that the weight rule gives one state-dict entry.

    Args:
        key: the entry's full name in the checkpoint.
        shape: its shape.
        seed: the seed of the whole set.

    Returns:
        `shape` float32: small around 0 for a bias, around 1 for a norm's weight, scaled by the fan-in otherwise.
    """
    rng = np.random.default_rng([seed, zlib.crc32(key.encode())])
    values = rng.standard_normal(shape).astype(np.float32)
    last = key.rsplit(".", 1)[-1]
    if last == "bias":
        return values * BIAS_SCALE
    if last == "gamma" or len(shape) == 1:
        return np.float32(1) + NORM_SCALE * values
    return values * np.float32(1 / np.sqrt(np.prod(shape[1:], dtype=np.float64)))


@torch.no_grad()
def fill_deterministic(
    module: nn.Module, *, seed: int, key_prefix: str = "", scale: Mapping[str, float] | None = None
) -> None:
    """Give every floating parameter of a module the weight rule's value, in place; buffers keep theirs.

    Args:
        key_prefix: put before each of the module's own names to make the full key.
        scale: factors by fnmatch pattern of the full key, applied afterwards and to buffers too, one after the other.
    """
    for name, parameter in module.named_parameters():
        if parameter.is_floating_point():
            values = deterministic_array(key_prefix + name, tuple(parameter.shape), seed=seed)
            parameter.copy_(torch.from_numpy(values))
    for pattern, factor in (scale or {}).items():
        for name, entry in module.state_dict().items():
            if fnmatchcase(key_prefix + name, pattern):
                entry.mul_(factor)
