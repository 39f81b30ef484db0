"""The triangle table of marching cubes, derived from a rule instead of listed. Knows nothing of values or tensors.

The rule: on each face of a cell, segments separate the inside corners from the outside ones. On an ambiguous face, with
two inside corners on a diagonal, these are either joined or separated, as the bilinear interpolant decides. The rule
uses a face's own corners only, so two cells agree on the face that they share and the surface has no cracks. The
segments form closed loops of crossed edges, which are triangulated without new vertices: with the fewest chords inside
a face, because the neighbour might use the same chord, and among these with the greatest area, which comes closest to
the published tables.

Source: Lorensen and Cline 1987; the ambiguity of faces: Nielson and Hamann 1991.
"""

from __future__ import annotations

import math
from functools import cache
from itertools import pairwise, product

Edge = tuple[int, int]  # corner at its lower end, axis
Triangles = tuple[tuple[int, int, int], ...]

CORNERS = tuple(product((0, 1), repeat=3))
"""Corner number 4x + 2y + z: (8, 3)."""

EDGES: tuple[Edge, ...] = tuple(
    (number, axis) for axis in range(3) for number, corner in enumerate(CORNERS) if corner[axis] == 0
)
"""The twelve edges: the corner at the lower end and the edge's axis."""


@cache
def face_rings() -> tuple[tuple[int, ...], ...]:
    """Corners of the six faces, counter-clockwise seen from outside."""
    rings = []
    for axis, side in product(range(3), (0, 1)):
        u, v = ((axis + 1) % 3, (axis + 2) % 3) if side else ((axis + 2) % 3, (axis + 1) % 3)
        weight = (4, 2, 1)
        rings.append(
            tuple(weight[axis] * side + weight[u] * a + weight[v] * b for a, b in ((0, 0), (1, 0), (1, 1), (0, 1)))
        )
    return tuple(rings)


@cache
def ambiguous_faces(case: int) -> tuple[int, ...]:
    """Numbers of the ambiguous faces: two inside corners on a diagonal, two outside corners on the other."""
    inside = [[bool(case >> corner & 1) for corner in ring] for ring in face_rings()]
    return tuple(number for number, (a, b, c, d) in enumerate(inside) if a == c and b == d and a != b)


def _edge_between(first: int, second: int) -> Edge:
    """The edge between two adjacent corners."""
    axis = next(k for k in range(3) if CORNERS[first][k] != CORNERS[second][k])
    return min(first, second), axis


def _segments(ring: tuple[int, ...], case: int, joined: bool) -> list[tuple[Edge, Edge]]:
    """Segments on a face, each between two crossed edges, with the inside on their left seen from outside."""
    inside = [bool(case >> corner & 1) for corner in ring]
    crossed = [_edge_between(ring[k - 1], ring[k]) for k in range(4)]  # edge k ends at corner k of the ring
    entering = [k for k in range(4) if inside[k] and not inside[k - 1]]
    leaving = [k for k in range(4) if not inside[k] and inside[k - 1]]
    # Pair each edge that enters the inside with the next one that leaves it: each inside corner is cut off by itself.
    if len(entering) == 2 and leaving[0] < entering[0]:
        leaving.reverse()
    if joined:  # the other pairing connects the two inside corners
        leaving.reverse()
    return [(crossed[enter], crossed[leave]) for enter, leave in zip(entering, leaving, strict=True)]


def _loops(case: int, joined: frozenset[int]) -> list[list[Edge]]:
    """Closed loops of crossed edges, counter-clockwise seen from the side of smaller values."""
    follows: dict[Edge, Edge] = {}
    for number, ring in enumerate(face_rings()):
        follows |= dict(_segments(ring, case, number in joined))
    loops = []
    while follows:  # every crossed edge ends one segment and starts one, so the walk closes
        start = min(follows)
        loop = [start]
        while (edge := follows.pop(loop[-1])) != start:
            loop.append(edge)
        loops.append(loop)
    return loops


@cache
def _share_a_face(first: Edge, second: Edge) -> bool:
    """Whether one face contains both edges, so that a chord between them would lie in it."""
    ends = {end for corner, axis in (first, second) for end in (corner, corner + (4, 2, 1)[axis])}
    return any(ends <= set(ring) for ring in face_rings())


@cache
def _area(*corners: Edge) -> float:
    """Area of the triangle between three edges' midpoints, rounded so that equal areas compare as equal."""
    places = [[value + (k == axis) / 2 for k, value in enumerate(CORNERS[corner])] for corner, axis in corners]
    (ux, uy, uz), (vx, vy, vz) = ([b - a for a, b in zip(places[0], place, strict=True)] for place in places[1:])
    return round(math.hypot(uy * vz - uz * vy, uz * vx - ux * vz, ux * vy - uy * vx) / 2, 9)


def _cut(loop: list[Edge]) -> list[tuple[Edge, Edge, Edge]]:
    """Triangulation of a loop with the fewest chords inside a face, and among these the greatest area.

    Dynamic programming over the loop's intervals, as for the optimal triangulation of a convex polygon.
    """

    @cache
    def best(first: int, last: int) -> tuple[int, float, Triangles]:
        """Best (chords inside faces, negative area, triangles) of the polygon between two vertices of the loop."""
        if last - first < 2:
            return 0, 0.0, ()
        options = []
        for middle in range(first + 1, last):
            (left, area, some), (right, other_area, others) = best(first, middle), best(middle, last)
            area = round(area + other_area - _area(loop[first], loop[middle], loop[last]), 9)
            chords = [(a, b) for a, b in pairwise((first, middle, last)) if b - a > 1]
            along = sum(_share_a_face(loop[a], loop[b]) for a, b in chords)
            options.append((left + right + along, area, (*some, (first, middle, last), *others)))
        return min(options)

    return [(loop[a], loop[b], loop[c]) for a, b, c in best(0, len(loop) - 1)[2]]


@cache
def triangle_table() -> dict[tuple[int, frozenset[int]], Triangles]:
    """Triangles of each case, as numbers of `EDGES`, counter-clockwise seen from the side of smaller values.

    A case is the set of inside corners, bit c for corner c of `CORNERS`, and the set of its ambiguous faces whose
    inside corners are joined.
    """
    number = {edge: index for index, edge in enumerate(EDGES)}
    table = {}
    for case in range(256):
        faces = ambiguous_faces(case)
        for choice in product((False, True), repeat=len(faces)):
            joined = frozenset(face for face, is_joined in zip(faces, choice, strict=True) if is_joined)
            cuts = [triangle for loop in _loops(case, joined) for triangle in _cut(loop)]
            table[case, joined] = tuple((number[a], number[b], number[c]) for a, b, c in cuts)
    return table
