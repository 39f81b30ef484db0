"""Slow, obvious reference implementation of FlexiCubes' extraction: one cube, edge and vertex at a time, in float64."""

from __future__ import annotations

from itertools import product

import numpy as np
from numpy.typing import NDArray

from pipeline.ops.flexicubes import CORNERS, EDGES, case_tables

Vector = NDArray[np.float64]


def crossing_cubes(sdf: NDArray[np.float64]) -> list[tuple[int, int, int]]:
    """Cubes with corners on both sides, ascending, of values (R + 1, R + 1, R + 1) at the grid's vertices."""
    found = []
    for cube in product(*(range(side - 1) for side in sdf.shape)):
        inside = [sdf[tuple(np.add(cube, corner))] < 0 for corner in CORNERS]
        if any(inside) and not all(inside):
            found.append((cube[0], cube[1], cube[2]))
    return found


def dual_mesh(
    sdf: NDArray[np.float64],
    values: NDArray[np.float64],
    alpha: NDArray[np.float64],
    beta: NDArray[np.float64],
    gamma: NDArray[np.float64],
) -> tuple[list[Vector], list[tuple[int, int, int]]]:
    """Dual vertices and triangles.

    Args:
        sdf: (R + 1, R + 1, R + 1) signed distance at the grid's vertices.
        values: (R + 1, R + 1, R + 1, K) what is interpolated there, the position first.
        alpha: (S, 8) of the crossing cubes, in their order.
        beta: (S, 12).
        gamma: (S,).
    """
    cubes = crossing_cubes(sdf)
    number = {cube: k for k, cube in enumerate(cubes)}
    tables = case_tables()
    cases = {
        cube: sum(1 << i for i, corner in enumerate(CORNERS) if sdf[tuple(np.add(cube, corner))] < 0) for cube in cubes
    }
    vertices: list[Vector] = []
    dual_at: dict[tuple[tuple[int, int, int], int], int] = {}  # by cube and edge
    for k, cube in enumerate(cubes):
        case = cases[cube]
        if tables.flagged[case]:
            x, y, z = np.add(cube, tables.ambiguous_side[case]).tolist()
            if tables.flagged[cases.get((x, y, z), 0)]:
                case = 255 - case
        for dual in range(int(tables.dual_count[case])):
            total, weight = np.zeros(values.shape[-1]), 0.0
            for e, (a, b) in enumerate(EDGES):
                if tables.dual_of_edge[case, e] != dual:
                    continue
                at_a, at_b = (tuple(np.add(cube, CORNERS[i])) for i in (a, b))
                s_a, s_b = sdf[at_a] * alpha[k, a], sdf[at_b] * alpha[k, b]
                total += beta[k, e] * (values[at_a] * s_b - values[at_b] * s_a) / (s_b - s_a)
                weight += beta[k, e]
                dual_at[cube, e] = len(vertices)
            vertices.append(total / weight)
    faces: list[tuple[int, int, int]] = []
    side = sdf.shape[0] - 1
    for x, y, z, axis in product(range(side + 1), range(side + 1), range(side + 1), range(3)):
        low = np.array([x, y, z])
        high = low + np.eye(3, dtype=int)[axis]
        if high.max() > side or (sdf[tuple(low)] < 0) == (sdf[tuple(high)] < 0):
            continue
        u, v = (axis + 1) % 3, (axis + 2) % 3
        around = []  # counter-clockwise seen from the edge's upper end
        for du, dv in ((-1, -1), (0, -1), (0, 0), (-1, 0)):
            cube = low.copy()
            cube[u] += du
            cube[v] += dv
            around.append((int(cube[0]), int(cube[1]), int(cube[2])))
        if not all(cube in number for cube in around):
            continue
        quad = []
        for cube in around:
            ends = [tuple(low - cube), tuple(high - cube)]
            e = next(
                e
                for e, (a, b) in enumerate(EDGES)
                if {CORNERS[a], CORNERS[b]} == set(map(tuple, np.array(ends).tolist()))
            )
            quad.append((dual_at[cube, e], gamma[number[cube]]))
        if sdf[tuple(high)] < 0:  # the positive side is below
            quad.reverse()
        (a, ga), (b, gb), (c, gc), (d, gd) = quad
        faces += [(a, b, c), (a, c, d)] if ga * gc > gb * gd else [(b, c, d), (b, d, a)]
    return vertices, faces
