"""Colours of surface points, read from the triplane with numpy, so that the export needs no torch.

Matrix products are in float64 and activations in float32. The result of a BLAS product can depend on the position of a
row in its block; in float64 that difference is far below one 8-bit level.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.engines.base import ColourSource

PLANE_AXES = ((0, 1), (0, 2), (1, 2))  # model axes along W and along H of each plane: xy, xz, yz
MODEL_AXES = (2, 0, 1)  # index of the model's x, y, z among the project's axes
BLOCK = 1024  # points per matrix product; the last block is padded to this size

Array = NDArray[np.float32]


def _relu(x: Array) -> Array:
    return np.maximum(x, np.float32(0))


def _silu(x: Array) -> Array:
    with np.errstate(over="ignore"):  # exp may overflow to infinity; the quotient is then 0, the limit
        return (x / (1 + np.exp(-x))).astype(np.float32, copy=False)


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {"relu": _relu, "silu": _silu}


@dataclass(frozen=True, eq=False)
class TriplaneColours(ColourSource):
    """A triplane and the part of its decoder that computes colours.

    Attributes:
        table: (3 * (H + 2) * (W + 2), N) float32, see `TriplaneField.table`.
        size: H and W.
        first_bias: (N,) float32 bias of the first layer, whose weights are part of the table.
        layers: weight (N_out, N_in) and bias (N_out,) float32 of the other layers; the last has three outputs.
        activation: name of the activation between layers.
    """

    table: Array  # (3 (H + 2) (W + 2), N)
    size: tuple[int, int]
    first_bias: Array  # (N,)
    layers: tuple[tuple[Array, Array], ...]
    activation: str

    def colours_at(
        self,
        points: NDArray[np.float32],  # (P, 3)
        normals: NDArray[np.float32],  # (P, 3), not used
    ) -> NDArray[np.float32]:  # (P, 3)
        """See `ColourSource.colours_at`."""
        out = np.empty((len(points), 3), np.float32)
        coords = 2 * points[:, MODEL_AXES].astype(np.float32)  # [-0.5, 0.5] -> [-1, 1]
        for start in range(0, len(points), BLOCK):
            part = coords[start : start + BLOCK]
            out[start : start + BLOCK] = self._block(np.pad(part, ((0, BLOCK - len(part)), (0, 0))))[: len(part)]
        return out

    def _block(self, coords: Array) -> Array:  # (BLOCK, 3) -> (BLOCK, 3)
        hidden = self._read(coords) + self.first_bias
        act = ACTIVATIONS[self.activation]
        for weight, bias in self.layers:
            summed = act(hidden).astype(np.float64) @ weight.T.astype(np.float64)  # (BLOCK, N_in) -> (BLOCK, N_out)
            hidden = summed.astype(np.float32) + bias
        with np.errstate(over="ignore"):
            return (1 / (1 + np.exp(-hidden))).astype(np.float32, copy=False)

    def _read(self, coords: Array) -> Array:
        """Return the sum of the bilinear samples of the three planes: (P, 3) -> (P, N)."""
        height, width = self.size
        total = np.zeros((len(coords), self.table.shape[1]), np.float32)
        for plane, (u, v) in enumerate(PLANE_AXES):
            (column, right), (row, below) = _texels(coords[:, u], width), _texels(coords[:, v], height)
            first = (plane * (height + 2) + row) * (width + 2) + column
            for step_v, weight_v in ((0, 1 - below), (1, below)):
                for step_u, weight_u in ((0, 1 - right), (1, right)):
                    total += (weight_u * weight_v)[:, None] * self.table[first + step_v * (width + 2) + step_u]
        return total


def _texels(coords: Array, axis_size: int) -> tuple[NDArray[np.intp], Array]:
    """Return the lower texel of each (P,) coordinate, index 0 being the border, and the weight of the next texel.

    Texel centres are at half-integers (`align_corners=False` in grid_sample).
    """
    at = np.clip(((coords + 1) * np.float32(axis_size) - 1) / 2 + 1, 0, axis_size + 1)
    low = np.minimum(np.floor(at), axis_size)
    return low.astype(np.intp), (at - low).astype(np.float32)
