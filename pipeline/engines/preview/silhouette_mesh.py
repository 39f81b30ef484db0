"""A closed mesh of two mirrored sheets over a mask, joined along the contour of the mask. Knows nothing of images.

Marching squares yields the contour and the polygons of the cut cells. Near the contour the height of a sheet grows like
the square root of the distance, which one triangle per cell cannot follow. So rings of additional vertices lie between
each contour vertex and its neighbouring nodes, spaced evenly in height.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from pipeline.engines.preview.mask_grid import LEVEL, MaskGrid
from pipeline.mesh.tri_mesh import TriMesh

RINGS = 5
"""Rings of additional vertices between the contour and the first nodes."""
CORNERS = ((0, 0), (0, 1), (1, 1), (1, 0))
"""Row and column of the corners of a cell, counter-clockwise with rows upwards; edge k joins corners k and k + 1."""

Ids = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class _Triangles:
    """Triangles of one sheet, counter-clockwise seen from the front, by the number of their corners on the contour.

    Attributes:
        inner: (n, 3) node, node, node.
        one_on_contour: (n, 3) contour, node, node.
        two_on_contour: (n, 3) contour, contour, node.
    """

    inner: Ids  # (n, 3)
    one_on_contour: Ids  # (n, 3)
    two_on_contour: Ids  # (n, 3)


def mesh_between_sheets(
    grid: MaskGrid, heights: NDArray[np.float64], *, middle: NDArray[np.float64] | None = None
) -> TriMesh:
    """Mesh the body |z - middle| <= height over the inside of a mask.

    Args:
        grid: the mask.
        heights: (rows, columns) metres, positive at the inside nodes; the height is 0 on the contour.
        middle: (rows, columns) metres at all nodes, where the middle between the sheets is; 0 by default.
    """
    inside = grid.inside
    node_number = np.full(inside.shape, -1, np.int64)
    node_number[inside] = np.arange(inside.sum())
    rows, columns = np.nonzero(inside)
    nodes = np.stack([columns, rows, heights[inside] / grid.cell_m], axis=1).astype(np.float64)  # (N, 3) in cells
    contour, edge_numbers = _contour_vertices(grid)
    triangles = _triangles(inside, grid.values, node_number, edge_numbers)
    vertices, faces = _close(nodes, contour, triangles)
    vertices *= grid.cell_m
    if middle is not None:
        column, row = vertices[:, 0] / grid.cell_m, vertices[:, 1] / grid.cell_m
        vertices[:, 2] += ndimage.map_coordinates(middle, [row, column], order=1)
    vertices[:, :2] += grid.origin_m
    return TriMesh(vertices.astype(np.float32), faces.astype(np.int32))


def _contour_vertices(grid: MaskGrid) -> tuple[NDArray[np.float64], tuple[Ids, Ids]]:
    """Return the (C, 3) vertices where the contour cuts grid edges, and their numbers by horizontal, vertical edge."""
    inside, values = grid.inside, grid.values
    found: list[NDArray[np.float64]] = []
    numbers: list[Ids] = []
    count = 0
    for axis in (1, 0):  # edges along a row, then along a column
        low = [slice(None), slice(None)]
        high = [slice(None), slice(None)]
        low[axis], high[axis] = slice(None, -1), slice(1, None)
        near, far = tuple(low), tuple(high)
        cut = inside[near] != inside[far]
        starts_inside = inside[near][cut]
        first, last = values[near][cut], values[far][cut]
        fraction = grid.crossing(np.where(starts_inside, first, last), np.where(starts_inside, last, first))
        row, column = (index.astype(np.float64) for index in np.nonzero(cut))
        along = np.where(starts_inside, fraction, 1 - fraction)  # from the first node of the edge
        x, y = (column + along, row) if axis == 1 else (column, row + along)
        found.append(np.stack([x, y, np.zeros_like(x)], axis=1))
        number = np.full(cut.shape, -1, np.int64)  # -1: the contour does not cut the edge
        number[cut] = count + np.arange(len(x))
        numbers.append(number)
        count += len(x)
    return np.concatenate(found), (numbers[0], numbers[1])


def _triangles(
    inside: NDArray[np.bool_], values: NDArray[np.float64], node_number: Ids, edge_numbers: tuple[Ids, Ids]
) -> _Triangles:
    """Triangulate the inside part of every cell.

    Args:
        inside: (rows, columns) of the nodes.
        values: (rows, columns) mask values.
        node_number: (rows, columns), -1 outside.
        edge_numbers: contour vertices by horizontal (rows, columns - 1) and vertical (rows - 1, columns) edges.
    """
    rows, columns = inside.shape[0] - 1, inside.shape[1] - 1

    def at_corner(array: NDArray, k: int) -> NDArray:
        row, column = CORNERS[k % 4]
        return array[row : row + rows, column : column + columns]

    along_rows, along_columns = edge_numbers
    # Contour vertices of the four edges of each cell, in the order of `CORNERS`: bottom, right, top, left.
    edges = (along_rows[:-1], along_columns[:, 1:], along_rows[1:], along_columns[:, :-1])
    nodes = [at_corner(node_number, k) for k in range(4)]
    code = np.zeros((rows, columns), np.uint8)  # bit k: corner k is inside
    total = np.zeros((rows, columns))
    for k in range(4):
        code |= at_corner(inside, k).astype(np.uint8) << k
        total += at_corner(values, k)
    is_joined = total > 4 * LEVEL  # the inside corners of a saddle connect if the mean of the cell is inside
    inner: list[Ids] = []
    one: list[Ids] = []
    two: list[Ids] = []

    # The 16 cases are rotations of 6: each case is written once, with corner k as its first corner. Polygons are split
    # so that every triangle has at most two corners on the contour.
    for k in range(4):
        n = [nodes[(k + i) % 4] for i in range(4)]
        c = [edges[(k + i) % 4] for i in range(4)]
        bit = [1 << ((k + i) % 4) for i in range(4)]
        alone = (code == bit[0]) | ((code == bit[0] | bit[2]) & ~is_joined)
        two.append(_pick(alone, c[0], c[3], n[0]))
        pair = code == bit[0] | bit[1]
        one.append(_pick(pair, c[3], n[0], n[1]))
        two.append(_pick(pair, c[1], c[3], n[1]))
        three = code == bit[0] | bit[1] | bit[2]
        one += [_pick(three, c[3], n[0], n[1]), _pick(three, c[2], n[1], n[2])]
        two.append(_pick(three, c[2], c[3], n[1]))
        if k < 2:  # a saddle is symmetric under half a turn
            saddle = (code == bit[0] | bit[2]) & is_joined
            one += [_pick(saddle, c[0], n[2], n[0]), _pick(saddle, c[2], n[0], n[2])]
            two += [_pick(saddle, c[0], c[1], n[2]), _pick(saddle, c[2], c[3], n[0])]
    full = code == 15
    inner += [_pick(full, nodes[0], nodes[1], nodes[2]), _pick(full, nodes[0], nodes[2], nodes[3])]
    return _Triangles(np.concatenate(inner), np.concatenate(one), np.concatenate(two))


def _pick(cells: NDArray[np.bool_], *corners: Ids) -> Ids:
    """Return the triangles of the chosen cells: (n, 3)."""
    return np.stack([corner[cells] for corner in corners], axis=1)


def _close(
    nodes: NDArray[np.float64], contour: NDArray[np.float64], triangles: _Triangles
) -> tuple[NDArray[np.float64], Ids]:
    """Insert the rings, mirror the sheet, and join both sheets along the contour.

    Args:
        nodes: (N, 3) in cells.
        contour: (C, 3) in cells, z = 0.
        triangles: of the front sheet, without rings.

    Returns:
        (V, 3) vertices in cells, and (F, 3) faces.
    """
    one, two = triangles.one_on_contour, triangles.two_on_contour
    # A spoke joins a contour vertex and a node. Triangles that share a spoke share its ring vertices.
    pairs = np.concatenate([one[:, [0, 1]], one[:, [0, 2]], two[:, [0, 2]], two[:, [1, 2]]])
    spokes, spoke_of = np.unique(pairs, axis=0, return_inverse=True)
    fraction = (np.arange(1, RINGS + 1) / (RINGS + 1))[None, :, None]  # of the height
    start, end = contour[spokes[:, 0], None], nodes[spokes[:, 1], None]  # (S, 1, 3) each
    rings = start + (end - start) * fraction**2  # (S, RINGS, 3): height ~ sqrt(distance), so distance ~ height^2
    rings[..., 2] = end[..., 2] * fraction[..., 0]

    front = np.concatenate([contour, nodes, rings.reshape(-1, 3)])
    ladder = np.concatenate(  # (T, RINGS + 2) vertex numbers along the spoke of each pair, from contour to node
        [
            spokes[:, :1],
            len(contour) + len(nodes) + np.arange(len(spokes) * RINGS).reshape(-1, RINGS),
            len(contour) + spokes[:, 1:],
        ],
        axis=1,
    )[spoke_of.reshape(-1)]
    first, second, third, fourth = np.split(ladder, np.cumsum([len(one), len(one), len(two)]))
    faces = np.concatenate(
        [
            len(contour) + triangles.inner,
            *(np.stack([first[:, k], first[:, k + 1], second[:, k + 1]], axis=1) for k in range(RINGS + 1)),
            *(np.stack([first[:, k], second[:, k + 1], second[:, k]], axis=1) for k in range(1, RINGS + 1)),
            *(np.stack([third[:, k], fourth[:, k], fourth[:, k + 1]], axis=1) for k in range(RINGS + 1)),
            *(np.stack([third[:, k], fourth[:, k + 1], third[:, k + 1]], axis=1) for k in range(RINGS)),
        ]
    )
    # The back sheet shares the contour vertices; all others are mirrored copies with the opposite orientation.
    mirrored = np.where(faces < len(contour), faces, faces + len(front) - len(contour))[:, ::-1]
    back = front[len(contour) :] * (1, 1, -1)
    return np.concatenate([front, back]), np.concatenate([faces, mirrored])
