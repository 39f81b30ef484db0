"""The surface of the field, in the project's frame.

The model's box has +Z up and the image's camera on +X; the project has +Y up and the front toward +Z.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.engines.triposr.field import TriplaneField
from pipeline.engines.triposr.spec import ISO_DENSITY
from pipeline.mesh.tri_mesh import TriMesh
from pipeline.ops.isosurface import IsoSurface, extract_isosurface


def grid_coordinates(indices: Tensor, *, resolution: int) -> Tensor:
    """Indices of grid points along an axis to coordinates in units of the radius, both ends of the box included."""
    return indices.float() / (resolution - 1) * 2 - 1


def density_on_grid(field: TriplaneField, *, resolution: int, chunk_size: int) -> Tensor:
    """Activated density at every point of the grid: (R, R, R), x slowest."""
    side = 4
    blocks = -(-resolution // side)
    line = torch.arange(blocks * side, device=field.table.device).clamp(max=resolution - 1).view(blocks, side)
    bricks = torch.cartesian_prod(*[torch.arange(blocks, device=line.device)] * 3)
    values = field.on_bricks(grid_coordinates(line[bricks], resolution=resolution), chunk_size=chunk_size)
    whole = values.view(*[blocks] * 3, *[side] * 3).permute(0, 3, 1, 4, 2, 5).reshape([blocks * side] * 3)
    return whole[:resolution, :resolution, :resolution]


def extract_surface(field: TriplaneField, *, resolution: int, chunk_size: int, is_closed: bool = False) -> IsoSurface:
    """Where the density has the release's threshold, in units of the grid's cells.

    Args:
        is_closed: take the box's border for empty, so that what reaches it ends there; the release leaves it open.
    """

    def evaluate(indices: Tensor) -> Tensor:  # (B, 3, S)
        values = field.on_bricks(grid_coordinates(indices, resolution=resolution), chunk_size=chunk_size)
        if not is_closed:
            return values
        x, y, z = ((indices == 0) | (indices == resolution - 1)).unbind(1)  # each (B, S)
        is_border = x[:, :, None, None] | y[:, None, :, None] | z[:, None, None, :]
        return values.masked_fill(is_border.view(values.shape), 0.0)

    return extract_isosurface(evaluate, resolution=resolution, level=ISO_DENSITY, device=field.table.device)


def to_project_frame(points: NDArray[np.floating]) -> NDArray[np.float32]:
    """Points or directions (N, 3) with the axes of the project: the model's y, z, x."""
    return points[:, [1, 2, 0]].astype(np.float32)


def to_mesh(surface: IsoSurface, *, resolution: int) -> TriMesh:
    """The surface in the unit cube, which the model's box fills."""
    unit = surface.vertices.double() / (resolution - 1) - 0.5
    return TriMesh(to_project_frame(unit.cpu().numpy()), surface.faces.int().cpu().numpy())
