"""Reference implementation of the density grid: evaluates every point; the engine evaluates those near the surface."""

from __future__ import annotations

import torch
from torch import Tensor

from pipeline.engines.triposr.field import TriplaneField
from pipeline.engines.triposr.surface import grid_coordinates

BRICK = 4  # points along the side of a brick


def density_on_grid(field: TriplaneField, *, resolution: int, chunk_size: int) -> Tensor:
    """Return the activated density at every point of the grid: (R, R, R), x slowest."""
    count = -(-resolution // BRICK)  # bricks along each axis
    layers = torch.arange(count * BRICK, device=field.table.device).clamp(max=resolution - 1).view(count, BRICK)
    bricks = torch.cartesian_prod(*[torch.arange(count, device=layers.device)] * 3)  # (M, 3), M = count^3
    values = field.on_bricks(grid_coordinates(layers[bricks], resolution=resolution), chunk_size=chunk_size)
    grid = values.view(*[count] * 3, *[BRICK] * 3).permute(0, 3, 1, 4, 2, 5).reshape([count * BRICK] * 3)
    return grid[:resolution, :resolution, :resolution]
