"""The field that a triplane and its decoder make: density and colour anywhere in the box.

The decoder's first layer is linear and so is interpolation, so it is applied to the planes once; a point then takes
a weighted sum of twelve rows. Points go through the other layers in blocks of one size, counted from the first point:
which points share a matrix product never depends on how many are evaluated at once, and so neither do the bits.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.engines.triposr.spec import RendererSpec
from pipeline.engines.triposr.triplane import OUT_CHANNELS, NeRFMLP
from pipeline.nn.activations import activation
from pipeline.ops.parallel import each_on_one_thread

CPU_BLOCK, GPU_BLOCK = 1024, 4096  # points in one matrix product
PLANE_AXES = ((0, 1), (0, 2), (1, 2))  # of each plane: the axis along its rows (columns of W), and the one across
REDUCTIONS = ("concat", "mean")


@dataclass(frozen=True, eq=False)
class Samples:
    """What the field is at some points.

    Attributes:
        density: (N, 1) before its activation.
        features: (N, 3) before the colour's activation.
        density_act: (N, 1).
        color: (N, 3) sRGB in [0, 1].
    """

    density: Tensor
    features: Tensor
    density_act: Tensor
    color: Tensor


@dataclass(frozen=True, eq=False)
class TriplaneField:
    """A triplane with its decoder.

    Attributes:
        table: (3 * (H + 2) * (W + 2), N) the decoder's first layer without its bias, at every texel of the planes and
            of a border of zeros around each: samples fade out there, as the reference's do.
        size: H and W.
        bias: (N,) of the first layer.
        layers: weight and bias of the others.
        renderer: radius, bias and activations.
    """

    table: Tensor
    size: tuple[int, int]
    bias: Tensor
    layers: list[tuple[Tensor, Tensor | None]]
    decoder_activation: str
    renderer: RendererSpec
    block: int = field(default=CPU_BLOCK)

    @classmethod
    def of(cls, decoder: NeRFMLP, planes: Tensor, *, renderer: RendererSpec) -> TriplaneField:
        """The field of (3, C, H, W) planes.

        Raises:
            ValueError: a reduction that the release does not have.
        """
        if renderer.feature_reduction not in REDUCTIONS:
            raise ValueError(f"feature_reduction must be one of {REDUCTIONS}, got {renderer.feature_reduction!r}")
        first, *rest = decoder.linears
        if renderer.feature_reduction == "concat":
            weights = first.weight.unflatten(1, (3, -1)).movedim(1, 0)  # (3, N, C)
        else:
            weights = (first.weight / 3).expand(3, -1, -1)
        texels = F.pad(planes, (1, 1, 1, 1)).flatten(2).mT  # (3, (H + 2) (W + 2), C)
        bias = first.bias if first.bias is not None else first.weight.new_zeros(len(first.weight))
        return cls(
            table=(texels @ weights.mT).flatten(0, 1).contiguous(),
            size=(planes.shape[2], planes.shape[3]),
            bias=bias,
            layers=[(layer.weight, layer.bias) for layer in rest],
            decoder_activation=decoder.activation_name,
            renderer=renderer,
            block=CPU_BLOCK if planes.device.type == "cpu" else GPU_BLOCK,
        )

    def at(self, positions: Tensor, *, chunk_size: int) -> Samples:
        """The field at points.

        Args:
            positions: (N, 3) in the model's frame, also outside the box.
            chunk_size: points evaluated at once, in whole blocks; the result does not depend on it.
        """
        out = positions.new_empty((len(positions), OUT_CHANNELS))

        def evaluate(part: slice) -> None:
            out[part] = self._decode(self._at_points(positions[part] / self.renderer.radius))

        self._in_chunks(evaluate, len(positions), chunk_size, points_each=1)
        density, features = out[:, :1], out[:, 1:]
        return Samples(density, features, self.activate_density(density), self._activate_colour(features))

    def on_bricks(self, coords: Tensor, *, chunk_size: int) -> Tensor:
        """Activated density at the points of axis-aligned bricks.

        Args:
            coords: (N, 3, B) coordinates of each brick's layers along x, y, z, in units of the radius; B is a power
                of two of at most 8.

        Returns:
            (N, B, B, B), x slowest.
        """
        count, _, side = coords.shape
        out = coords.new_empty((count, side, side, side))

        def evaluate(part: slice) -> None:
            density = self._decode(self._at_bricks(coords[part]))[:, 0]
            out[part] = self.activate_density(density).view(-1, side, side, side)

        self._in_chunks(evaluate, count, chunk_size, points_each=side**3)
        return out

    def activate_density(self, density: Tensor) -> Tensor:
        """Density as light meets it."""
        return activation(self.renderer.density_activation)(density + self.renderer.density_bias)

    def _activate_colour(self, features: Tensor) -> Tensor:
        return activation(self.renderer.color_activation)(features)

    def _in_chunks(self, evaluate: Callable[[slice], None], count: int, chunk_size: int, *, points_each: int) -> None:
        """Evaluate all rows in whole blocks, on a CPU the blocks of a chunk shared out to its threads."""
        blocks = max(1, chunk_size // self.block)  # of one chunk
        threads = min(blocks, torch.get_num_threads()) if self.table.device.type == "cpu" else 1
        rows = blocks // threads * self.block // points_each
        parts = [slice(start, start + rows) for start in range(0, count, rows)]
        if self.table.device.type == "cpu":
            each_on_one_thread(evaluate, parts, at_once=threads)
        else:
            for part in parts:
                evaluate(part)

    def _texels(self, coords: Tensor, axis_size: int) -> tuple[Tensor, Tensor]:
        """Index of the lower texel, the border's being 0, and the share of the next one; coordinates in [-1, 1]."""
        at = (((coords + 1) * axis_size - 1) / 2 + 1).clamp(0, axis_size + 1)
        low = at.floor().clamp(max=axis_size)
        return low.long(), at - low

    def _corners(self, plane: int, u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Rows of the table and weights, (..., 4), of places on a plane; u along its rows, v across them."""
        height, width = self.size
        (column, right), (row, below) = self._texels(u, width), self._texels(v, height)
        first = (plane * (height + 2) + row) * (width + 2) + column
        rows = torch.stack([first, first + 1, first + width + 2, first + width + 3], dim=-1)
        left, above = 1 - right, 1 - below
        return rows, torch.stack([left * above, right * above, left * below, right * below], dim=-1)

    def _at_points(self, coords: Tensor) -> Tensor:
        """(N, 3) -> (N, C) before the first activation."""
        found = [self._corners(plane, coords[:, u], coords[:, v]) for plane, (u, v) in enumerate(PLANE_AXES)]
        rows, weights = (torch.cat(parts, dim=1) for parts in zip(*found, strict=True))
        return F.embedding_bag(rows, self.table, per_sample_weights=weights, mode="sum") + self.bias

    def _at_bricks(self, coords: Tensor) -> Tensor:
        """(N, 3, B) -> (N B B B, C) before the first activation: each plane is read at B by B places only."""
        side = coords.shape[2]
        total: Tensor | None = None
        for plane, (u, v) in enumerate(PLANE_AXES):
            shape = [len(coords), 1, 1, 1]
            shape[1 + u] = shape[1 + v] = side
            along_u, along_v = coords[:, u, :, None], coords[:, v, None, :]
            rows, weights = self._corners(plane, *torch.broadcast_tensors(along_u, along_v))
            read = F.embedding_bag(rows.view(-1, 4), self.table, per_sample_weights=weights.view(-1, 4), mode="sum")
            read = read.view(*shape, -1)
            total = read if total is None else total + read
        assert total is not None
        return (total + self.bias).flatten(0, 3)

    def _decode(self, x: Tensor) -> Tensor:
        """(N, C) before the first activation -> (N, 4), block by block."""
        act = activation(self.decoder_activation)
        out = x.new_empty((len(x), OUT_CHANNELS))
        for start in range(0, len(x), self.block):
            rows = x[start : start + self.block]
            hidden = F.pad(rows, (0, 0, 0, self.block - len(rows)))
            for weight, bias in self.layers:
                hidden = F.linear(act(hidden), weight, bias)
            out[start : start + self.block] = hidden[: len(rows)]
        return out
