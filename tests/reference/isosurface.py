"""Slow, obvious reference implementation of marching cubes: one cell at a time over the whole grid, in float64."""

from __future__ import annotations

from itertools import product

import numpy as np
from numpy.typing import NDArray

from pipeline.ops.cell_table import CORNERS, EDGES, ambiguous_faces, face_rings, triangle_table

GridEdge = tuple[int, int, int, int]
"""x, y, z of the lower end, and the axis."""


def isosurface(
    values: NDArray[np.float64], level: float
) -> tuple[dict[GridEdge, float], list[tuple[GridEdge, GridEdge, GridEdge]]]:
    """The surface of values (R, R, R) at a level.

    Returns:
        The crossing's position along each crossed edge, 0 to 1, and the triangles by their edges.
    """
    crossings: dict[GridEdge, float] = {}
    triangles = []
    for first in product(*(range(side - 1) for side in values.shape)):
        corners = [float(values[tuple(np.add(first, corner))]) for corner in CORNERS]
        case = sum(1 << number for number, value in enumerate(corners) if value > level)
        joined = frozenset(
            face for face in ambiguous_faces(case) if _is_joined([corners[c] for c in face_rings()[face]], level)
        )
        edges: list[GridEdge] = []
        for corner, axis in EDGES:
            near, far = corners[corner], corners[corner + (4, 2, 1)[axis]]
            x, y, z = np.add(first, CORNERS[corner]).tolist()
            edges.append((x, y, z, axis))
            if (near > level) != (far > level):
                crossings[edges[-1]] = (level - near) / (far - near)
        triangles += [(edges[a], edges[b], edges[c]) for a, b, c in triangle_table()[case, joined]]
    return crossings, triangles


def _is_joined(ring: list[float], level: float) -> bool:
    """Whether the bilinear interpolant of four corners in order connects the two that are inside, at its saddle."""
    a, b, c, d = ring
    saddle = (a * c - b * d) / (a + c - b - d)
    return saddle > level


def triangle_count(case: int, joined: frozenset[int]) -> int:
    """Triangles of a cell: each loop of n crossed edges takes n - 2. Loops by merging sets of edges face by face."""
    inside = [bool(case >> corner & 1) for corner in range(8)]
    loops = [{edge} for edge in EDGES if inside[edge[0]] != inside[edge[0] + (4, 2, 1)[edge[1]]]]
    for number, ring in enumerate(face_rings()):
        edges = []  # edge k joins the corners k and k + 1 of the ring
        for k in range(4):
            low, high = sorted((ring[k], ring[(k + 1) % 4]))
            edges.append((low, (4, 2, 1).index(high - low)))
        crossed = [edge for k, edge in enumerate(edges) if inside[ring[k]] != inside[ring[(k + 1) % 4]]]
        if len(crossed) == 2:
            pairs = [tuple(crossed)]
        elif len(crossed) == 4:
            # A separated face cuts off the inside corners, a joined one the outside corners.
            cut_off = [k for k in range(4) if inside[ring[k]] != (number in joined)]
            pairs = [(edges[k - 1], edges[k]) for k in cut_off]
        else:
            pairs = []
        for first, second in pairs:
            one, other = (next(loop for loop in loops if edge in loop) for edge in (first, second))
            if one is not other:
                loops.remove(other)
                one |= other
    return sum(len(loop) - 2 for loop in loops)
