"""The colour of a surface point, read from the triplane. numpy alone, no torch.

Sums are in float64 and activations in float32, so that the last digit, where a point's place among others might show,
lies far below a step of 8 bits.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

PLANE_AXES = ((0, 1), (0, 2), (1, 2))  # axes of the model's frame along the rows and across the rows of each plane
MODEL_AXES = (2, 0, 1)  # the model's x, y, z among the project's axes
BLOCK = 1024  # points in one matrix product, rounded up

Array = NDArray[np.float32]


def _relu(x: Array) -> Array:
    return np.maximum(x, np.float32(0))


def _silu(x: Array) -> Array:
    with np.errstate(over="ignore"):  # exp of a large number is infinite, and the quotient 0, as it should be
        return (x / (1 + np.exp(-x))).astype(np.float32, copy=False)


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {"relu": _relu, "silu": _silu}


@dataclass(frozen=True, eq=False)
class TriplaneColours:
    """A triplane and the part of its decoder that tells colours.

    Attributes:
        table: (3 * (H + 2) * (W + 2), N) float32, as `TriplaneField` has it.
        size: H and W.
        layers: weight (N_out, N_in) and bias (N_out,) float32; the first has no weight of its own, the last gives
            three features.
        activation: between layers.
    """

    table: Array
    size: tuple[int, int]
    first_bias: Array
    layers: tuple[tuple[Array, Array], ...]
    activation: str

    def colours_at(self, points: NDArray[np.float32], normals: NDArray[np.float32]) -> NDArray[np.float32]:
        """See `ColourSource`: (P, 3) sRGB in [0, 1]; normals are not looked at."""
        out = np.empty((len(points), 3), np.float32)
        coords = 2 * points[:, MODEL_AXES].astype(np.float32)  # the unit cube to [-1, 1]
        for start in range(0, len(points), BLOCK):
            part = coords[start : start + BLOCK]
            out[start : start + BLOCK] = self._block(np.pad(part, ((0, BLOCK - len(part)), (0, 0))))[: len(part)]
        return out

    def _block(self, coords: Array) -> Array:
        hidden = self._read(coords) + self.first_bias
        act = ACTIVATIONS[self.activation]
        for weight, bias in self.layers:
            summed = act(hidden).astype(np.float64) @ weight.T.astype(np.float64)
            hidden = summed.astype(np.float32) + bias
        with np.errstate(over="ignore"):
            return (1 / (1 + np.exp(-hidden))).astype(np.float32, copy=False)

    def _read(self, coords: Array) -> Array:
        """(P, 3) -> (P, N): bilinear samples of the three planes, added up."""
        height, width = self.size
        total = np.zeros((len(coords), self.table.shape[1]), np.float32)
        for plane, (u, v) in enumerate(PLANE_AXES):
            (column, right), (row, below) = _texels(coords[:, u], width), _texels(coords[:, v], height)
            first = (plane * (height + 2) + row) * (width + 2) + column
            for step_v, share_v in ((0, 1 - below), (1, below)):
                for step_u, share_u in ((0, 1 - right), (1, right)):
                    total += (share_u * share_v)[:, None] * self.table[first + step_v * (width + 2) + step_u]
        return total


def _texels(coords: Array, axis_size: int) -> tuple[NDArray[np.intp], Array]:
    """Index of the lower texel, the border's being 0, and the share of the next one."""
    at = np.clip(((coords + 1) * np.float32(axis_size) - 1) / 2 + 1, 0, axis_size + 1)
    low = np.minimum(np.floor(at), axis_size)
    return low.astype(np.intp), (at - low).astype(np.float32)
