"""One silhouette to a closed solid: the surface z² = u(x, y), where u solves Poisson's equation inside the mask.

With Δu = -4 inside and u = 0 on the contour, a disc becomes a sphere and a strip an elliptic tube. Holes of the mask
remain holes and separate parts remain separate bodies. The surface is meshed directly as two sheets that share their
contour: its silhouette is the contour of the mask, and it is a closed manifold by construction. A three-dimensional
grid would need resolution^3 cells for the same.

Knows nothing of colours or cameras.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.sparse.linalg import splu

from pipeline.engines.preview.mask_grid import MaskGrid, sample_mask
from pipeline.engines.preview.silhouette_mesh import mesh_between_sheets
from pipeline.errors import UnreadableImage
from pipeline.mesh.tri_mesh import TriMesh

HALF_DEPTH = 0.5  # metres; keeps the body inside the unit cube
THINNEST = 0.01  # metres; half the depth of a plate


def inflate(alpha: NDArray[np.float32], *, resolution: int, depth: float = 1.0) -> TriMesh:
    """Inflate a mask to a closed mesh.

    Args:
        alpha: (H, W) float32, 0 to 1, cropped to the subject; row 0 is the top.
        resolution: cells along the longer side.
        depth: 0 makes a thin plate, 1 the full inflation; see `limit_heights`.

    Returns:
        A closed mesh in the unit cube; the longer side of its silhouette is 1, and its front faces +Z.

    Raises:
        UnreadableImage: no part of the mask is wide enough to contain a grid node.
    """
    grid = sample_mask(alpha, resolution=resolution)
    if not grid.inside.any():
        raise UnreadableImage("the image holds no subject that is wide enough to inflate")
    heights = np.sqrt(solve_poisson(grid)) * grid.cell_m
    heights *= min(1.0, HALF_DEPTH / heights.max())
    return mesh_between_sheets(grid, limit_heights(heights, depth))


def limit_heights(heights: NDArray[np.float64], depth: float) -> NDArray[np.float64]:
    """Flatten a height field: h becomes T·tanh(h/T), which caps wide parts and keeps thin parts round.

    The cap is T = max(h) · depth / (2 - 2·depth): the greatest height becomes about `depth` / 2 of what it was, and all
    of it as `depth` nears 1.

    Args:
        heights: (rows, columns) metres, with a positive maximum.
        depth: 0 to 1; 1 changes nothing.
    """
    if depth >= 1:
        return heights
    cap = max(heights.max() * depth / (2 - 2 * depth), THINNEST)
    return cap * np.tanh(heights / cap)


def solve_poisson(grid: MaskGrid) -> NDArray[np.float64]:
    """Solve Δu = -4 inside the mask with u = 0 on its contour.

    The five-point stencil, with the distance to the contour where it cuts a grid edge. Only the diagonal changes there,
    so the matrix stays symmetric, and the solution is second-order accurate.
    Source: Gibou, Fedkiw, Cheng, Kang, "A second-order-accurate symmetric discretization of the Poisson equation on
    irregular domains", J. Comput. Phys. 176 (2002).

    Returns:
        (rows, columns) float64 in squared cells; 0 outside.
    """
    inside, values = grid.inside, grid.values
    count = int(inside.sum())
    number = np.full(inside.shape, -1)
    number[inside] = np.arange(count)
    centre = inside[1:-1, 1:-1]
    diagonal = np.zeros(count)
    rows, columns = [], []
    for down, right in ((0, 1), (0, -1), (1, 0), (-1, 0)):
        # The neighbour of every inside node; the border of the grid is outside, so the window always exists.
        window = (slice(1 + down, inside.shape[0] - 1 + down), slice(1 + right, inside.shape[1] - 1 + right))
        neighbour = number[window][centre]
        distance = grid.crossing(values[inside], values[window][centre])
        diagonal += np.where(neighbour >= 0, 1.0, 1.0 / distance)
        rows.append(np.flatnonzero(neighbour >= 0))
        columns.append(neighbour[neighbour >= 0])
    row, column = np.concatenate(rows), np.concatenate(columns)
    matrix = sparse.coo_matrix((-np.ones(len(row)), (row, column)), shape=(count, count)) + sparse.diags(diagonal)
    # The matrix is symmetric positive definite: no pivoting is needed, and a symmetric ordering keeps the factor small.
    solver = splu(matrix.tocsc(), permc_spec="MMD_AT_PLUS_A", diag_pivot_thresh=0.0, options={"SymmetricMode": True})
    solution = np.zeros(inside.shape)
    solution[inside] = np.maximum(solver.solve(np.full(count, 4.0)), 1e-6)  # positive, so that no sheet is flat
    return solution
