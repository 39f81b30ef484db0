"""Makes a solid of an open surface: sheets get a thickness, bodies keep their shape, hollows are filled.

The surface is resampled. A grid around it holds the least of two distances: the signed one of the bodies, and the
distance of the sheets less half of their thickness. Cells with positive values that are not connected to the outside
become solid. The zero surface of the grid, by marching cubes, is closed, does not cross itself and has no cavities.

Work and memory have bounds that do not depend on the surface: see `MOST_CELLS` and `MOST_VISITS`.

Source: Curless and Levoy, "A volumetric method for building complex models from range images", SIGGRAPH 96, section 4
(space that is not reached from outside is solid); Lewiner et al., "Efficient implementation of marching cubes' cases
with topological guarantees", Journal of Graphics Tools 8 (2), 2003, as scikit-image has it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.mesh.clean import separate_coincident_vertices
from pipeline.mesh.clean_open import faces_of_bodies
from pipeline.mesh.kernels import kernel
from pipeline.mesh.nearest_surface import nearest_in_triangle
from pipeline.mesh.simplify import simplify
from pipeline.mesh.tri_mesh import TriMesh

THICKNESS_SHARE = 0.015
"""Thickness of a sheet made a body, as a share of the longest side: 1.5 mm of a print of 100 mm, a printable wall."""
CELLS_ALONG = 256
"""Cells along the longest side: 0.4 mm of a print of 100 mm, the width of a usual nozzle's line."""
LEAST_CELLS_ALONG, COARSER = 32, 1.25
"""Where the grid ends to become coarser, and by what factor it does in a step."""
CELLS_PER_THICKNESS = 2.5
"""Cells that a sheet's thickness has at least: a thinner one could pass between the points of the grid."""
MOST_CELLS = 24_000_000
"""Points of the grid, which take 10 bytes each. A cube of `CELLS_ALONG` has 19 million with its margin."""
MOST_VISITS = 2_000_000_000
"""Pairs of a face and a point near it, of which most end after one comparison: 2 to 10 ns each."""
MARGIN = 2.0
"""Distance in cells up to which the grid holds distances. Those at the ends of a crossed edge are below 1."""
LONGEST_EDGE = 6.0
"""In cells: longer faces are split, so that the box around a piece has few points that are far from it."""
LEAST_VALUE = 2e-3
"""In cells: a value nearer to zero would give triangles without area around its point."""
SUBCELLS = 2048
"""Steps of a cell to which vertices are rounded for the test what is inside, which is exact in integers then."""


@dataclass(frozen=True, eq=False)
class Solids:
    """What was made of an open surface.

    Attributes:
        mesh: one or more closed manifolds without cavities, float32, wound outward.
        thickness_m: of what had a border, in metres.
        cell_m: side of a cell of the grid, in metres; the surface differs from the exact one by less.
    """

    mesh: TriMesh
    thickness_m: float
    cell_m: float


def solidify(mesh: TriMesh, *, thickness_m: float, most_faces: int, cells_along: int = CELLS_ALONG) -> Solids:
    """Make closed solids without cavities of a surface: sheets get a thickness, half of it on either side.

    Edges and gaps that are finer than a cell are lost. The grid is made finer where the thickness asks for that, and
    coarser where the bounds on work and memory do; then sheets get `CELLS_PER_THICKNESS` cells if that is more.

    Args:
        mesh: a manifold, consistently wound, as `clean_open` returns it. What has no border is wound outward.
        thickness_m: of what has a border, in metres.
        most_faces: the result is simplified to this number of faces.
        cells_along: cells along the longest side.
    """
    from skimage.measure import marching_cubes  # takes a second to import

    is_body = faces_of_bodies(mesh)
    cell = _cell_size(mesh, is_body, thickness_m, cells_along)
    thickness_m = max(thickness_m, CELLS_PER_THICKNESS * cell)
    low, shape = _grid_around(mesh, thickness_m / 2, cell)
    corners = (mesh.corners.astype(np.float64) - low) / cell  # (F, 3, 3) in cells
    values = np.full(shape, MARGIN, np.float32)
    _lower_to_distance(values, corners[is_body], 0.0, MARGIN)
    _negate_inside(values, _fixed_point(corners[is_body]))
    half = thickness_m / 2 / cell
    _lower_to_distance(values, corners[~is_body], half, half + MARGIN)
    _fill_hollows(values)
    near_zero = np.abs(values) < LEAST_VALUE
    values[near_zero] = np.where(values[near_zero] < 0, -LEAST_VALUE, LEAST_VALUE)
    vertices, faces, _, _ = marching_cubes(values, 0.0, gradient_direction="descent")
    placed = vertices.astype(np.float64) * cell + low
    whole = separate_coincident_vertices(TriMesh(placed.astype(np.float32), faces.astype(np.int32)))
    return Solids(simplify(whole, target_faces=most_faces), thickness_m, cell)


def _grid_around(mesh: TriMesh, reach_m: float, cell: float) -> tuple[NDArray[np.float64], tuple[int, int, int]]:
    """Place of the first point, (3,), and number of points along each axis, with two layers of points outside."""
    low, high = mesh.bounds()
    first = low - reach_m - 2 * cell
    x, y, z = np.ceil((high - low + 2 * reach_m) / cell).astype(int) + 5
    return first, (int(x), int(y), int(z))


def _cell_size(mesh: TriMesh, is_body: NDArray[np.bool_], thickness_m: float, cells_along: int) -> float:
    """Metres of a cell: as asked, but small enough for the thickness, and large enough for the bounds."""
    low, high = mesh.bounds()
    longest = float((high - low).max())
    cell = min(longest / cells_along, thickness_m / CELLS_PER_THICKNESS)
    while cell < longest / LEAST_CELLS_ALONG:
        _, shape = _grid_around(mesh, thickness_m / 2, cell)
        if np.prod(shape, dtype=np.float64) <= MOST_CELLS:
            corners, half = mesh.corners.astype(np.float64) / cell, thickness_m / 2 / cell
            visits = _visits(corners[is_body], MARGIN, MOST_VISITS)
            visits += _visits(corners[~is_body], half + MARGIN, MOST_VISITS)
            if visits <= MOST_VISITS:
                break
        cell *= COARSER
    return cell


def _fixed_point(corners: NDArray[np.float64]) -> NDArray[np.int64]:
    """Corners in odd numbers of half steps, so that none is above or beside a point of the grid: (F, 3, 3)."""
    return 2 * np.floor(corners * SUBCELLS).astype(np.int64) + 1


def _fill_hollows(values: NDArray[np.float32]) -> None:
    """Make negative what is positive and not connected to the outside through the six neighbours of a point."""
    from scipy import ndimage

    labels = np.empty(values.shape, np.int32)
    ndimage.label(values > 0, output=labels)
    if labels.max() > 1:
        hollow = (labels != labels[0, 0, 0]) & (labels != 0)
        values[hollow] = -values[hollow]


@kernel
def _halves(corners: NDArray[np.float64], halves: NDArray[np.float64]) -> bool:
    """Split a triangle, (3, 3), at its longest edge if that is long: whether it was; writes `halves`, (2, 3, 3)."""
    longest, at = LONGEST_EDGE * LONGEST_EDGE, -1
    for k in range(3):
        length = 0.0
        for axis in range(3):
            length += (corners[(k + 1) % 3, axis] - corners[k, axis]) ** 2
        if length > longest:
            longest, at = length, k
    if at < 0:
        return False
    for axis in range(3):
        start, end, apex = corners[at, axis], corners[(at + 1) % 3, axis], corners[(at + 2) % 3, axis]
        middle = (start + end) / 2
        halves[0, 0, axis], halves[0, 1, axis], halves[0, 2, axis] = start, middle, apex
        halves[1, 0, axis], halves[1, 1, axis], halves[1, 2, axis] = middle, end, apex
    return True


@kernel
def _visits(faces: NDArray[np.float64], reach: float, most: int) -> int:
    """Pairs of a piece of a face, (F, 3, 3) in cells, and a point in the box around it; counts little beyond `most`."""
    total = 0.0
    stack = np.empty((64, 3, 3))
    halves = np.empty((2, 3, 3))
    for f in range(len(faces)):
        stack[0] = faces[f]
        size = 1
        while size > 0 and total <= most:
            size -= 1
            if size < 62 and _halves(stack[size], halves):
                stack[size], stack[size + 1] = halves[0], halves[1]
                size += 2
                continue
            box = 1.0
            for axis in range(3):
                box *= stack[size, :, axis].max() - stack[size, :, axis].min() + 2 * reach
            total += box
    return int(total)


@kernel
def _lower_to_distance(
    values: NDArray[np.float32],  # (X, Y, Z) in cells, lowered
    faces: NDArray[np.float64],  # (F, 3, 3) in cells
    offset: float,
    reach: float,
) -> None:
    """Lower each value to the distance from the nearest face less an offset, where that distance is within reach."""
    stack = np.empty((64, 3, 3))
    halves = np.empty((2, 3, 3))
    first, last = np.empty(3, np.int64), np.empty(3, np.int64)
    point = np.empty(3)
    for f in range(len(faces)):
        stack[0] = faces[f]
        size = 1
        while size > 0:
            size -= 1
            if size < 62 and _halves(stack[size], halves):
                stack[size], stack[size + 1] = halves[0], halves[1]
                size += 2
                continue
            piece = stack[size]
            for axis in range(3):
                first[axis] = max(int(np.ceil(piece[:, axis].min() - reach)), 0)
                last[axis] = min(int(np.floor(piece[:, axis].max() + reach)), values.shape[axis] - 1)
            _lower_around(values, piece, offset, reach, first, last, point)


@kernel
def _lower_around(
    values: NDArray[np.float32],  # (X, Y, Z)
    piece: NDArray[np.float64],  # (3, 3)
    offset: float,
    reach: float,
    first: NDArray[np.int64],  # (3,) the box of points
    last: NDArray[np.int64],  # (3,)
    point: NDArray[np.float64],  # (3,) scratch
) -> None:
    # A sphere around the face: a point outside of it by more than its value already has is passed over.
    cx = (piece[0, 0] + piece[1, 0] + piece[2, 0]) / 3
    cy = (piece[0, 1] + piece[1, 1] + piece[2, 1]) / 3
    cz = (piece[0, 2] + piece[1, 2] + piece[2, 2]) / 3
    radius = 0.0
    for k in range(3):
        radius = max(radius, (piece[k, 0] - cx) ** 2 + (piece[k, 1] - cy) ** 2 + (piece[k, 2] - cz) ** 2)
    radius = np.sqrt(radius)
    for x in range(first[0], last[0] + 1):
        for y in range(first[1], last[1] + 1):
            flat = (x - cx) ** 2 + (y - cy) ** 2
            for z in range(first[2], last[2] + 1):
                bound = min(values[x, y, z] + offset, reach) + radius
                if bound <= 0 or flat + (z - cz) ** 2 >= bound * bound:
                    continue
                point[0], point[1], point[2] = x, y, z
                u, v, w = nearest_in_triangle(point, piece)
                d2 = 0.0
                for k in range(3):
                    d2 += (u * piece[0, k] + v * piece[1, k] + w * piece[2, k] - point[k]) ** 2
                values[x, y, z] = min(values[x, y, z], np.sqrt(d2) - offset)


@kernel
def _negate_inside(
    values: NDArray[np.float32],  # (X, Y, Z)
    faces: NDArray[np.int64],  # (F, 3, 3) odd numbers of half steps of a cell
) -> None:
    """Negate the values of points around which the faces of closed bodies wind at least once.

    Along each line of points in the direction of z, a face that is entered counts one up and one that is left counts
    one down. Which lines meet a face is decided in integers; a line through an edge meets one of its two faces, or both
    or none where they are seen as an outline.
    """
    step = 2 * SUBCELLS
    turns = np.zeros(values.shape, np.int16)
    for f in range(len(faces)):
        a, b, c = faces[f, 0], faces[f, 1], faces[f, 2]
        area = (b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0])
        if area == 0:
            continue
        if area < 0:
            b, c = c, b
        low_x, high_x = min(a[0], b[0], c[0]) // step + 1, max(a[0], b[0], c[0]) // step
        low_y, high_y = min(a[1], b[1], c[1]) // step + 1, max(a[1], b[1], c[1]) // step
        for x in range(low_x, high_x + 1):
            for y in range(low_y, high_y + 1):
                of_a = _side(b, c, x * step, y * step)
                of_b = _side(c, a, x * step, y * step)
                of_c = _side(a, b, x * step, y * step)
                if of_a < 0 or of_b < 0 or of_c < 0:
                    continue
                total = float(abs(area))
                height = (of_a / total * a[2] + of_b / total * b[2] + of_c / total * c[2]) / step
                turns[x, y, max(int(np.ceil(height)), 0)] += 1 if area < 0 else -1
    for x in range(values.shape[0]):
        for y in range(values.shape[1]):
            around = 0
            for z in range(values.shape[2]):
                around += turns[x, y, z]
                if around > 0:
                    values[x, y, z] = -values[x, y, z]


@kernel
def _side(start: NDArray[np.int64], end: NDArray[np.int64], x: int, y: int) -> int:
    """Twice the area of the triangle of an edge and a point, -1 for points on an edge that belong to its other side."""
    dx, dy = end[0] - start[0], end[1] - start[1]
    area = dx * (y - start[1]) - dy * (x - start[0])
    if area == 0 and not (dy > 0 or (dy == 0 and dx > 0)):
        return -1
    return area
