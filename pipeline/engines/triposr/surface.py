"""Extraction of the field's surface and its conversion to the project's frame.

The model has +Z up and the input view on +X; the project has +Y up and the front toward +Z.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from pipeline.engines.triposr.field import TriplaneField
from pipeline.engines.triposr.spec import ISO_DENSITY
from pipeline.mesh.tri_mesh import TriMesh
from pipeline.ops.isosurface import IsoSurface, extract_isosurface
from pipeline.ops.transfer import to_host


def grid_coordinates(indices: Tensor, *, resolution: int) -> Tensor:
    """Convert grid indices to coordinates in units of the radius; indices 0 and resolution - 1 lie on the box.

    Args:
        indices: integers of any shape.
        resolution: grid points along each axis.

    Returns:
        Float32 in [-1, 1], of the same shape.
    """
    return indices.float() / (resolution - 1) * 2 - 1


def extract_surface(field: TriplaneField, *, resolution: int, chunk_size: int, is_closed: bool = False) -> IsoSurface:
    """Extract the surface at which the density equals `ISO_DENSITY`.

    Args:
        field: the field.
        resolution: grid points along each axis.
        chunk_size: points evaluated at once; the result does not depend on it.
        is_closed: treat the border of the box as empty, so that a body that reaches it is closed there. The release
            leaves such bodies open.

    Returns:
        The surface in units of grid cells, in the model's frame.
    """

    def evaluate(indices: Tensor) -> Tensor:  # (B, 3, S) -> (B, S, S, S)
        values = field.on_bricks(grid_coordinates(indices, resolution=resolution), chunk_size=chunk_size)
        if not is_closed:
            return values
        x, y, z = ((indices == 0) | (indices == resolution - 1)).unbind(1)  # each (B, S)
        is_border = x[:, :, None, None] | y[:, None, :, None] | z[:, None, None, :]  # (B, S, S, S)
        return values.masked_fill(is_border.view(values.shape), 0.0)

    return extract_isosurface(evaluate, resolution=resolution, level=ISO_DENSITY, device=field.table.device)


def to_project_frame(points: NDArray[np.floating]) -> NDArray[np.float32]:
    """Convert points or directions (N, 3) to the project's axes: the model's y, z, x."""
    return points[:, [1, 2, 0]].astype(np.float32)


def to_mesh(surface: IsoSurface, *, resolution: int) -> TriMesh:
    """Convert a surface to a mesh in the unit cube [-0.5, 0.5], which the model's box fills."""
    unit = surface.vertices.double() / (resolution - 1) - 0.5
    places, faces = to_host(unit, surface.faces.int())
    return TriMesh(to_project_frame(places.numpy()), faces.numpy())
