"""Half-edges, fans and boundary loops, against dictionaries."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.mesh.topology import (
    NO_OPPOSITE,
    boundary_loops,
    edge_keys,
    half_edge_ends,
    label_fans,
    pair_half_edges,
)
from pipeline.mesh.tri_mesh import TriMesh
from tests.mesh.shapes import joined, sphere, tetrahedron

BOOK = np.array([[0, 1, 2], [0, 1, 3], [0, 1, 4]], np.int32)
"""Three faces at the edge 0 1."""


@pytest.mark.parametrize("faces", [np.zeros((0, 3), np.int32), BOOK[:1], BOOK, tetrahedron().faces, sphere(12).faces])
def test_pairs_are_those_that_a_dictionary_finds(faces: np.ndarray) -> None:
    count = int(faces.max(initial=-1)) + 1

    opposite, non_manifold = pair_half_edges(faces, count)

    by_edge: dict[frozenset[int], list[int]] = {}
    for f, face in enumerate(faces.tolist()):
        for k in range(3):
            by_edge.setdefault(frozenset((face[k], face[(k + 1) % 3])), []).append(3 * f + k)
    expected = [NO_OPPOSITE] * (3 * len(faces))
    for half_edges in by_edge.values():
        if len(half_edges) == 2:
            expected[half_edges[0]], expected[half_edges[1]] = half_edges[1], half_edges[0]
    assert opposite.tolist() == expected
    assert sorted(sorted(h.tolist()) for h in non_manifold) == sorted(h for h in by_edge.values() if len(h) > 2)


def test_both_directions_of_an_edge_have_one_key_and_other_edges_another() -> None:
    faces = tetrahedron().faces
    start, end = half_edge_ends(faces)

    keys = edge_keys(faces, 4)

    for a in range(12):
        for b in range(12):
            assert (keys[a] == keys[b]) == ({start[a], end[a]} == {start[b], end[b]})


def fans_of(mesh: TriMesh) -> tuple[list[int], int]:
    opposite, _ = pair_half_edges(mesh.faces, len(mesh.vertices))
    fan, fans = label_fans(opposite)
    return fan.tolist(), fans


def test_a_manifold_has_one_fan_for_each_vertex() -> None:
    mesh = sphere(12)

    fan, fans = fans_of(mesh)

    assert fans == len(np.unique(mesh.faces))
    assert len(set(zip(fan, mesh.faces.ravel().tolist(), strict=True))) == fans


def test_a_vertex_where_two_solids_touch_has_two_fans() -> None:
    mesh = joined(tetrahedron(), tetrahedron())
    faces = np.where(mesh.faces == 4, 0, mesh.faces).astype(np.int32)  # both share vertex 0

    fan, fans = fans_of(TriMesh(mesh.vertices, faces))

    assert fans == 8
    assert len({fan[c] for c in np.flatnonzero(faces.ravel() == 0)}) == 2


def test_a_fan_with_a_boundary_is_one_fan_wherever_the_walk_starts() -> None:
    around = np.array([[0, 2, 3], [0, 1, 2], [0, 3, 4]], np.int32)  # the first face is the middle one

    fan, _ = fans_of(TriMesh(np.zeros((5, 3)), around))

    assert len({fan[0], fan[3], fan[6]}) == 1


@pytest.mark.parametrize(("missing", "lengths"), [([], []), ([0], [3]), ([0, 40], [3, 3])])
def test_boundary_loops_are_the_removed_faces(missing: list[int], lengths: list[int]) -> None:
    faces = np.delete(sphere(12).faces, missing, axis=0)
    opposite, _ = pair_half_edges(faces, int(faces.max()) + 1)
    start, end = half_edge_ends(faces)
    is_open = opposite == NO_OPPOSITE
    at = {int(start[h]): int(h) for h in np.flatnonzero(is_open)}
    next_open = np.array([at[int(e)] if o else -1 for e, o in zip(end, is_open, strict=True)], np.int64)

    loop, loops = boundary_loops(next_open)

    assert loops == len(lengths)
    assert sorted(np.bincount(loop[is_open], minlength=loops).tolist()) == lengths
    assert (loop[~is_open] == -1).all()
