"""One silhouette to a closed solid: the surface z² = u(x, y), where u solves Poisson's equation inside the mask.

With Δu = -4 inside and u = 0 on the contour, a disc becomes a sphere; a correction by the curvature of u makes a strip
a round tube, and a cap on the heights flattens subjects that are not round. Holes of the mask remain holes and separate
parts remain separate bodies. The surface is meshed directly as two sheets that share their contour: its silhouette is
the contour of the mask, and it is a closed manifold by construction. A three-dimensional grid would need resolution^3
cells for the same.

Knows nothing of colours or cameras.
"""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.sparse.linalg import splu

from pipeline.engines.preview.front_parts import FrontParts
from pipeline.engines.preview.mask_grid import MaskGrid, sample_mask
from pipeline.engines.preview.silhouette_mesh import mesh_between_sheets
from pipeline.engines.preview.standing_limbs import limb_offsets
from pipeline.errors import UnreadableImage
from pipeline.mesh.tri_mesh import TriMesh

HALF_DEPTH = 0.5  # metres; keeps the body inside the unit cube
THINNEST = 0.01  # metres; half the depth of a plate
DISC, STRIP = 2.0, 4.0  # largest curvature of the solution of Δu = -4 over a disc and over a strip
NEARLY_DISC = 2.3
NEIGHBOURHOOD = 0.04  # metres; standard deviation of the average of curvatures
BEND = 0.06  # metres; standard deviation of the average that bends a part toward the middle
SUNK = 0.5  # of a part's half thickness: how far its middle lies before the body
FAINT_WEIGHT = 1e-12  # squared squared cells


def inflate(
    alpha: NDArray[np.float32],
    *,
    resolution: int,
    depth: float = 1.0,
    is_symmetric: bool = False,
    front_parts: FrontParts | None = None,
) -> TriMesh:
    """Inflate a mask to a closed mesh.

    Args:
        alpha: (H, W) float32, 0 to 1, cropped to the subject; row 0 is the top.
        resolution: cells along the longer side.
        depth: 0 makes a thin plate, 1 the full inflation; see `limit_heights`.
        is_symmetric: the mask is its own mirror image, so that sections are as deep as they are wide from left to
            right; otherwise as deep as they are wide where they are narrowest.
        front_parts: parts that lie before the body; each is inflated by itself.

    Returns:
        A closed mesh in the unit cube; the longer side of its silhouette is 1, and its front faces +Z.

    Raises:
        UnreadableImage: no part of the mask is wide enough to contain a grid node.
    """
    grid = sample_mask(alpha, resolution=resolution)
    if not grid.inside.any():
        raise UnreadableImage("the image holds no subject that is wide enough to inflate")
    body = grid if front_parts is None else _without(grid, front_parts, resolution=resolution)
    heights = limit_heights(_round_heights(body, is_symmetric=is_symmetric), depth)
    middle = limb_offsets(grid, heights)
    if front_parts is not None:
        front, back = _layered(grid, heights, front_parts, resolution=resolution)
        heights, centre = (front - back) / 2, (front + back) / 2
        middle = centre if middle is None else middle + centre
    return mesh_between_sheets(grid, heights, middle=middle)


def _without(grid: MaskGrid, parts: FrontParts, *, resolution: int) -> MaskGrid:
    """Return the mask of the body alone: what is seen of the parts beside it is left out."""
    beside = sample_mask(np.clip(parts.mask - parts.overlap, 0, 1), resolution=resolution)
    body = replace(grid, values=np.minimum(grid.values, 1 - beside.values))
    return body if body.inside.any() else grid


def _layered(
    grid: MaskGrid, body: NDArray[np.float64], parts: FrontParts, *, resolution: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return z of the front and the back sheet, (rows, columns) metres each, of a body with parts before it.

    A part is a round tube that lies on the body and bends to its middle where it is seen beside the body.
    """
    part, overlap = (sample_mask(mask, resolution=resolution) for mask in (parts.mask, parts.overlap))
    part = replace(part, values=np.minimum(part.values, grid.values))
    tube = _round_heights(part) if part.inside.any() else np.zeros_like(body)
    sigma = BEND / grid.cell_m
    inside = part.inside.astype(np.float64)
    lifted = np.where(overlap.inside & part.inside, body + SUNK * tube, 0.0)
    lift = cv2.GaussianBlur(lifted, (0, 0), sigma) / np.maximum(cv2.GaussianBlur(inside, (0, 0), sigma), 1e-9)
    front = np.where(part.inside, np.maximum(body, lift + tube), body)
    back = np.where(part.inside & ~overlap.inside, np.minimum(-body, lift - tube), -body)
    thin = np.maximum(0.25 * grid.cell_m - (front - back) / 2, 0)  # positive where the masks leave a gap
    return front + thin, back - thin


def _round_heights(grid: MaskGrid, *, is_symmetric: bool = False) -> NDArray[np.float64]:
    """Return half the thickness of a round body over a mask, (rows, columns) metres."""
    squares = solve_poisson(grid)
    heights = np.sqrt(squares * _roundness(grid, squares, is_symmetric=is_symmetric)) * grid.cell_m
    return np.asarray(heights * min(1.0, HALF_DEPTH / heights.max()), np.float64)


def limit_heights(heights: NDArray[np.float64], depth: float) -> NDArray[np.float64]:
    """Flatten a height field: h becomes T·tanh(h/T), which caps wide parts and keeps thin parts round.

    The cap is T = depth / (4 - 4·depth) metres, so that the whole body is at most about `depth` deep: 0.48 for a disc
    at 0.5.

    Args:
        heights: (rows, columns) metres.
        depth: 0 to 1; 1 changes nothing.
    """
    if depth >= 1:
        return heights
    cap = max(depth / (4 - 4 * depth), THINNEST)
    return cap * np.tanh(heights / cap)


def _roundness(grid: MaskGrid, squares: NDArray[np.float64], *, is_symmetric: bool) -> NDArray[np.float64]:
    """Return the factor that makes sections of an inflated body round: (rows, columns), 0.5 in a strip to 1 in a disc.

    Over an ellipse with half axes a <= b, u is c·(1 - x²/a² - y²/b²), so its curvature -∂²u/∂x² is 2c/a² everywhere,
    and u · 2 / curvature is the body of revolution about the long axis. Elsewhere the curvature is averaged over the
    neighbourhood, weighted by u², which leaves out the contour.

    Args:
        grid: the mask.
        squares: (rows, columns) u in squared cells.
        is_symmetric: take the curvature along x, otherwise the largest of any direction.
    """
    u = np.where(grid.inside, squares, 0.0)
    along_y, along_x, mixed = np.zeros_like(u), np.zeros_like(u), np.zeros_like(u)
    along_y[1:-1] = u[2:] - 2 * u[1:-1] + u[:-2]
    along_x[:, 1:-1] = u[:, 2:] - 2 * u[:, 1:-1] + u[:, :-2]
    mixed[1:-1, 1:-1] = (u[2:, 2:] + u[:-2, :-2] - u[2:, :-2] - u[:-2, 2:]) / 4
    largest = np.hypot((along_x - along_y) / 2, mixed) - (along_x + along_y) / 2
    # Stencils that reach across the contour say nothing; parts without any other are thin, so strips.
    is_whole = cv2.erode(grid.inside.astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
    curvature = np.where(is_whole, np.clip(-along_x if is_symmetric else largest, DISC, STRIP), STRIP)
    weight = np.where(is_whole, u**2, FAINT_WEIGHT)
    sigma = NEIGHBOURHOOD / grid.cell_m
    mean = cv2.GaussianBlur(weight * curvature, (0, 0), sigma) / cv2.GaussianBlur(weight, (0, 0), sigma)
    # Squares have a little more than a disc; below `NEARLY_DISC` nothing changes.
    strip_share = np.clip((mean - NEARLY_DISC) / (STRIP - NEARLY_DISC), 0, 1)
    return np.asarray(DISC / (DISC + (STRIP - DISC) * strip_share), np.float64)


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
