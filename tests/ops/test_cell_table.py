"""The triangle table of marching cubes, against loops found by merging sets of edges."""

from __future__ import annotations

import math
from itertools import product

import numpy as np

from pipeline.ops.cell_table import CORNERS, EDGES, ambiguous_faces, face_rings, triangle_table
from tests.reference.isosurface import triangle_count


def crossed_edges(case: int) -> set[int]:
    inside = [bool(case >> corner & 1) for corner in range(8)]
    return {n for n, (corner, axis) in enumerate(EDGES) if inside[corner] != inside[corner + (4, 2, 1)[axis]]}


def test_the_table_has_every_case_with_every_choice_at_ambiguous_faces() -> None:
    expected = sum(2 ** len(ambiguous_faces(case)) for case in range(256))

    assert len(triangle_table()) == expected


def test_every_case_has_as_many_triangles_as_its_loops_take() -> None:
    for (case, joined), triangles in triangle_table().items():
        assert len(triangles) == triangle_count(case, joined), (case, joined)


def test_the_table_uses_each_crossed_edge_and_no_other() -> None:
    for (case, _), triangles in triangle_table().items():
        assert set(np.ravel(triangles).tolist() if triangles else []) == crossed_edges(case)


def test_empty_and_full_cells_have_no_triangles_and_one_corner_has_one() -> None:
    table = triangle_table()

    assert table[0, frozenset()] == () and table[255, frozenset()] == ()
    for corner in range(8):
        assert len(table[1 << corner, frozenset()]) == 1


def test_triangles_of_one_corner_face_away_from_it() -> None:
    for corner in range(8):
        ((a, b, c),) = triangle_table()[1 << corner, frozenset()]
        middles = [np.array(CORNERS[EDGES[e][0]]) + np.eye(3)[EDGES[e][1]] / 2 for e in (a, b, c)]
        normal = np.cross(middles[1] - middles[0], middles[2] - middles[0])
        assert normal @ (middles[0] - CORNERS[corner]) > 0


def test_complementary_cases_have_the_same_surface_area() -> None:
    """Exchanging inside and outside, and joined and separated, keeps the loops; only the winding changes."""
    table = triangle_table()
    for case in range(256):
        faces = ambiguous_faces(case)
        for choice in product((False, True), repeat=len(faces)):
            joined = frozenset(face for face, is_joined in zip(faces, choice, strict=True) if is_joined)
            areas = [
                sum(area_of(triangle) for triangle in table[key])
                for key in ((case, joined), (255 - case, frozenset(faces) - joined))
            ]
            assert math.isclose(*areas, rel_tol=1e-9), (case, joined)


def area_of(triangle: tuple[int, int, int]) -> float:
    a, b, c = (np.array(CORNERS[EDGES[e][0]]) + np.eye(3)[EDGES[e][1]] / 2 for e in triangle)
    return float(np.linalg.norm(np.cross(b - a, c - a))) / 2


def test_rings_run_counter_clockwise_seen_from_outside() -> None:
    for ring in face_rings():
        a, b, c, d = (np.array(CORNERS[corner]) for corner in ring)
        normal = np.cross(b - a, c - b)
        assert normal @ ((a + b + c + d) / 4 - 0.5) > 0
