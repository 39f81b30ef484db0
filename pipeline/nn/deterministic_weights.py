"""Deterministic test weights: values that follow from a tensor's name, for parity fixtures and weight-free deployments.

No pretrained value is involved: the same key, shape and seed give the same numbers on every machine. Knows no
particular model.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from fnmatch import fnmatchcase

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

# Small enough that activations neither explode nor vanish through 24 blocks; the parity fixtures fix both numbers.
BIAS_SCALE = np.float32(0.05)
NORM_SCALE = np.float32(0.1)


def deterministic_array(key: str, shape: tuple[int, ...], *, seed: int) -> NDArray[np.float32]:
    """Return the deterministic values of one state-dict entry.

    Args:
        key: full name of the entry in the checkpoint.
        shape: shape of the entry.
        seed: seed of the whole set.

    Returns:
        Float32 of `shape`: near 0 for a bias, near 1 for the weight of a norm, otherwise of variance 1 / fan-in.
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
    """Fill every floating-point parameter of a module in place; buffers keep their values.

    Args:
        seed: seed of the whole set.
        key_prefix: prefix that makes a module's own names full keys.
        scale: factors by fnmatch pattern of the full key, applied afterwards in order, to buffers too.
    """
    for name, parameter in module.named_parameters():
        if parameter.is_floating_point():
            values = deterministic_array(key_prefix + name, tuple(parameter.shape), seed=seed)
            parameter.copy_(torch.from_numpy(values))
    for pattern, factor in (scale or {}).items():
        for name, entry in module.state_dict().items():
            if fnmatchcase(key_prefix + name, pattern):
                entry.mul_(factor)
