"""The field of a triplane and its decoder: density and colour at any point of the box.

Departs from the reference in two ways. The first layer of the decoder is linear, and so is interpolation, so the layer
is applied to the texels once, and a point reads a weighted sum of twelve rows instead of multiplying. Points pass
through the other layers in blocks of fixed size, counted from the first point: which points share a matrix product does
not depend on the chunk size, so neither do the bits of the result.

Source: VAST-AI-Research/TripoSR@d26e331, tsr/models/nerf_renderer.py, query_triplane.
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
from pipeline.ops.blocks import rows_at_once
from pipeline.ops.parallel import each_on_one_thread

CPU_BLOCK = 1024  # points per matrix product
GPU_BLOCK, LEAST_GPU_BLOCK = 1 << 18, 1 << 12
"""The same on a GPU, where a product of few points takes less time than its launch; the last block of an evaluation is
the least power of two that holds the rest."""
BYTES_OF_POINT = 12 * (8 + 4) + 6 * 64 * 4  # rows and weights of twelve texels, and some hidden layers
PLANE_AXES = ((0, 1), (0, 2), (1, 2))  # model axes along W and along H of each plane: xy, xz, yz
REDUCTIONS = ("concat", "mean")


@dataclass(frozen=True, eq=False)
class Samples:
    """Values of the field at N points.

    Attributes:
        density: (N, 1) before its activation.
        features: (N, 3) before the activation of the colour.
        density_act: (N, 1) activated density.
        color: (N, 3) sRGB in [0, 1].
    """

    density: Tensor  # (N, 1)
    features: Tensor  # (N, 3)
    density_act: Tensor  # (N, 1)
    color: Tensor  # (N, 3)


@dataclass(frozen=True, eq=False)
class TriplaneField:
    """A triplane with its decoder.

    Attributes:
        table: (3 * (H + 2) * (W + 2), N) output of the decoder's first layer without its bias, at every texel of the
            planes and of a border of zeros around each plane, so that samples fade to zero outside
            (`padding_mode="zeros"` in grid_sample).
        size: H and W.
        bias: (N,) bias of the first layer.
        layers: weight and bias of the other layers.
        decoder_activation: name of the activation between layers.
        renderer: radius, density bias and activations.
        block: points per matrix product.
    """

    table: Tensor  # (3 (H + 2) (W + 2), N)
    size: tuple[int, int]
    bias: Tensor  # (N,)
    layers: list[tuple[Tensor, Tensor | None]]
    decoder_activation: str
    renderer: RendererSpec
    block: int = field(default=CPU_BLOCK)

    @classmethod
    def of(cls, decoder: NeRFMLP, planes: Tensor, *, renderer: RendererSpec) -> TriplaneField:
        """Build the field of a triplane.

        Args:
            decoder: the network from features to density and colour.
            planes: (3, C, H, W).
            renderer: how planes and decoder combine.

        Raises:
            ValueError: `feature_reduction` is not one of `REDUCTIONS`.
        """
        if renderer.feature_reduction not in REDUCTIONS:
            raise ValueError(f"feature_reduction must be one of {REDUCTIONS}, got {renderer.feature_reduction!r}")
        first, *rest = decoder.linears
        if renderer.feature_reduction == "concat":
            # W @ concat(a, b, c) = Wa @ a + Wb @ b + Wc @ c: each plane has its own columns of the weight.
            weights = first.weight.unflatten(1, (3, -1)).movedim(1, 0)  # (N, 3C) -> (N, 3, C) -> (3, N, C)
        else:
            weights = (first.weight / 3).expand(3, -1, -1)  # the mean of three planes: (N, C) -> (3, N, C)
        texels = F.pad(planes, (1, 1, 1, 1)).flatten(2).mT  # (3, C, H, W) -> (3, (H + 2) (W + 2), C)
        bias = first.bias if first.bias is not None else first.weight.new_zeros(len(first.weight))
        return cls(
            table=(texels @ weights.mT).flatten(0, 1).contiguous(),  # (3, T, C) @ (3, C, N) -> (3 T, N)
            size=(planes.shape[2], planes.shape[3]),
            bias=bias,
            layers=[(layer.weight, layer.bias) for layer in rest],
            decoder_activation=decoder.activation_name,
            renderer=renderer,
            block=CPU_BLOCK if planes.device.type == "cpu" else GPU_BLOCK,
        )

    def at(self, positions: Tensor, *, chunk_size: int) -> Samples:
        """Evaluate the field at points.

        Args:
            positions: (N, 3) in the model's frame; points outside the box are allowed.
            chunk_size: points evaluated at once, rounded to whole blocks; the result does not depend on it.
        """
        out = positions.new_empty((len(positions), OUT_CHANNELS))

        def evaluate(part: slice) -> None:
            out[part] = self._decode(self._at_points(positions[part] / self.renderer.radius))

        self._in_chunks(evaluate, len(positions), chunk_size, points_each=1)
        density, features = out[:, :1], out[:, 1:]  # (N, 4) -> (N, 1), (N, 3)
        return Samples(density, features, self.activate_density(density), self._activate_colour(features))

    def on_bricks(self, coords: Tensor, *, chunk_size: int) -> Tensor:
        """Evaluate the activated density at the points of axis-aligned bricks.

        A brick reads each plane at B x B places instead of B x B x B, B times fewer.

        Args:
            coords: (N, 3, B) coordinates of the layers of each brick along x, y, z, in units of the radius; B is a
                power of two of at most 8, so that whole bricks fill a block.
            chunk_size: points evaluated at once; the result does not depend on it.

        Returns:
            (N, B, B, B), x slowest.
        """
        count, _, side = coords.shape
        out = coords.new_empty((count, side, side, side))

        def evaluate(part: slice) -> None:
            density = self._decode(self._at_bricks(coords[part]))[:, 0]  # (N, 3, B) -> (N B B B,)
            out[part] = self.activate_density(density).view(-1, side, side, side)

        self._in_chunks(evaluate, count, chunk_size, points_each=side**3)
        return out

    def activate_density(self, density: Tensor) -> Tensor:
        """Apply the bias and the activation of the density, elementwise."""
        return activation(self.renderer.density_activation)(density + self.renderer.density_bias)

    def _activate_colour(self, features: Tensor) -> Tensor:
        return activation(self.renderer.color_activation)(features)

    def _in_chunks(self, evaluate: Callable[[slice], None], count: int, chunk_size: int, *, points_each: int) -> None:
        """Evaluate all rows in whole blocks; on a CPU, distribute the blocks of a chunk over its threads."""
        device = self.table.device
        points = rows_at_once(device, chunk_size=chunk_size, bytes_each=BYTES_OF_POINT)
        blocks = max(1, points // self.block)  # blocks per chunk
        threads = min(blocks, torch.get_num_threads()) if device.type == "cpu" else 1
        # Every part begins at a multiple of the block size, so blocks hold the same points for every chunk size and
        # every number of threads.
        rows = blocks // threads * self.block // points_each
        parts = [slice(start, start + rows) for start in range(0, count, rows)]
        if device.type == "cpu":
            each_on_one_thread(evaluate, parts, at_once=threads)
        else:
            for part in parts:
                evaluate(part)

    def _texels(self, coords: Tensor, axis_size: int) -> tuple[Tensor, Tensor]:
        """Return the lower texel of coordinates in [-1, 1], index 0 being the border, and the weight of the next.

        Texel centres are at half-integers (`align_corners=False` in grid_sample). Shapes are kept.
        """
        at = (((coords + 1) * axis_size - 1) / 2 + 1).clamp(0, axis_size + 1)
        low = at.floor().clamp(max=axis_size)
        return low.long(), at - low

    def _corners(self, plane: int, u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Return table rows and bilinear weights, (..., 4) each, of positions on a plane; u runs along W, v along H."""
        height, width = self.size
        (column, right), (row, below) = self._texels(u, width), self._texels(v, height)
        first = (plane * (height + 2) + row) * (width + 2) + column
        rows = torch.stack([first, first + 1, first + width + 2, first + width + 3], dim=-1)
        left, above = 1 - right, 1 - below
        return rows, torch.stack([left * above, right * above, left * below, right * below], dim=-1)

    def _at_points(self, coords: Tensor) -> Tensor:
        """Return the first layer's output before its activation: (N, 3) -> (N, C)."""
        found = [self._corners(plane, coords[:, u], coords[:, v]) for plane, (u, v) in enumerate(PLANE_AXES)]
        rows, weights = (torch.cat(parts, dim=1) for parts in zip(*found, strict=True))  # (N, 12) each
        return F.embedding_bag(rows, self.table, per_sample_weights=weights, mode="sum") + self.bias

    def _at_bricks(self, coords: Tensor) -> Tensor:
        """Return the first layer's output before its activation: (N, 3, B) -> (N B B B, C)."""
        side = coords.shape[2]
        total: Tensor | None = None
        for plane, (u, v) in enumerate(PLANE_AXES):
            shape = [len(coords), 1, 1, 1]
            shape[1 + u] = shape[1 + v] = side  # the plane is constant along the third axis
            along_u, along_v = coords[:, u, :, None], coords[:, v, None, :]  # (N, B, 1), (N, 1, B)
            rows, weights = self._corners(plane, *torch.broadcast_tensors(along_u, along_v))  # (N, B, B, 4) each
            read = F.embedding_bag(rows.view(-1, 4), self.table, per_sample_weights=weights.view(-1, 4), mode="sum")
            read = read.view(*shape, -1)  # (N B B, C) -> (N, B, B, 1, C) for xy
            total = read if total is None else total + read
        assert total is not None
        return (total + self.bias).flatten(0, 3)

    def _decode(self, x: Tensor) -> Tensor:
        """Apply the remaining layers block by block: (N, C) before the first activation -> (N, 4)."""
        act = activation(self.decoder_activation)
        out = x.new_empty((len(x), OUT_CHANNELS))
        for start in range(0, len(x), self.block):
            rows = x[start : start + self.block]
            # Padding keeps the shape of the matrix product, and so its rounding, independent of the chunk size.
            block = self.block
            if len(rows) < block and self.table.device.type != "cpu":
                block = max(LEAST_GPU_BLOCK, 1 << (len(rows) - 1).bit_length())
            hidden = F.pad(rows, (0, 0, 0, block - len(rows))) if len(rows) < block else rows
            for weight, bias in self.layers:
                hidden = F.linear(act(hidden), weight, bias)
            out[start : start + self.block] = hidden[: len(rows)]
        return out
