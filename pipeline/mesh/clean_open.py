"""Mesh repair for surfaces that enclose nothing, such as cloth and leaves: sheets with borders, oriented as one.

The steps are those of `pipeline.mesh.clean`, with other rules where the rules for bodies destroy sheets: of coincident
faces one stays, whichever way they face; at an edge where more than two faces meet, faces that are connected elsewhere
continue each other, then the straightest pairs; borders stay, and only holes up to a stated size are filled.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from pipeline.mesh.clean import (
    angles_around,
    close_holes,
    drop_small_components,
    pair_faces,
    separate_coincident_vertices,
    split_fans,
    split_non_manifold_edges,
    weld,
    wind_one_way,
)
from pipeline.mesh.measure import label_components
from pipeline.mesh.topology import NO_OPPOSITE, pair_half_edges
from pipeline.mesh.tri_mesh import TriMesh

MAX_HOLE_SHARE = 0.01
"""Holes up to this share of the bounding box's diagonal are filled: about four cells of a grid of 256."""


def clean_open(mesh: TriMesh, *, max_hole_share: float = MAX_HOLE_SHARE) -> TriMesh:
    """Make a surface manifold and consistently wound, and keep its borders.

    Args:
        mesh: any triangles, (V, 3) vertices in metres and (F, 3) faces.
        max_hole_share: holes up to this share of the bounding box's diagonal are filled. The outline of a sheet is
            never that small, as sheets that small are dropped.

    Returns:
        The repaired mesh, float32; empty if no face has an area. Connected faces are wound one way, each sheet as most
        of its faces were; closed components are wound outward, each by itself: which of them are the cavities of
        others is not known of a surface that was wound in any way.
    """
    vertices = np.asarray(mesh.vertices, np.float64)
    vertices, faces = weld(vertices, mesh.faces)
    faces = _drop_repeated_faces(faces)
    straightest = _StraightestPairs()
    opposite, _ = pair_faces(vertices, faces, straightest)
    faces, opposite = wind_one_way(faces, opposite)
    vertices, faces = split_fans(vertices, faces, opposite)
    vertices, faces = split_non_manifold_edges(vertices, faces, straightest)
    vertices, faces = drop_small_components(vertices, faces)
    if len(faces) == 0:
        return TriMesh(vertices.astype(np.float32), faces)
    diagonal = float(np.linalg.norm(vertices.max(axis=0) - vertices.min(axis=0)))
    opposite, _ = pair_half_edges(faces, len(vertices))
    vertices, faces = close_holes(vertices, faces, opposite, max_extent_m=max_hole_share * diagonal)
    faces = _orient_bodies_outward(vertices, faces)
    return separate_coincident_vertices(TriMesh(vertices.astype(np.float32), faces))


def faces_of_bodies(mesh: TriMesh) -> NDArray[np.bool_]:
    """Whether each face belongs to a component without a border: (F, 3) -> (F,)."""
    component = label_components(mesh)[mesh.faces[:, 0]]
    opposite, _ = pair_half_edges(mesh.faces, len(mesh.vertices))
    has_border = np.zeros(int(component.max()) + 1 if len(component) else 0, bool)
    has_border[component[np.flatnonzero(opposite == NO_OPPOSITE) // 3]] = True
    return ~has_border[component]


def _drop_repeated_faces(faces: NDArray[np.int32]) -> NDArray[np.int32]:
    """Drop faces with equal corners, and of faces on the same three vertices all but the first: (F, 3) -> (G, 3)."""
    a, b, c = faces.T
    faces = faces[(a != b) & (b != c) & (c != a)]
    _, first = np.unique(np.sort(faces, axis=1), axis=0, return_index=True)
    return faces[np.sort(first)]


class _StraightestPairs:
    """A `Pairing`: faces that are connected elsewhere continue each other, then those that bend least.

    Two bodies that touch along an edge have two faces each there, which are connected around the body; going straight
    would join each body to the other, inside out. The faces of sheets that cross are not connected elsewhere.
    """

    def __init__(self) -> None:
        self._faces: NDArray[np.int32] | None = None
        self._patch = np.zeros(0, np.int32)  # of each face of the array that was seen last

    def __call__(
        self, vertices: NDArray[np.float64], faces: NDArray[np.int32], half_edges: NDArray[np.int64]
    ) -> list[tuple[int, ...]]:
        """Groups the half-edges (K,) of one edge: pairs, then the one left over."""
        if faces is not self._faces:
            self._faces, self._patch = faces, _label_patches(faces, len(vertices))
        angles = angles_around(vertices, faces, half_edges)
        patch = self._patch[half_edges // 3]
        first, second = np.triu_indices(len(half_edges), k=1)
        bends = np.pi - np.abs((angles[first] - angles[second] + np.pi) % (2 * np.pi) - np.pi)  # 0: the faces lie flat
        free = np.ones(len(half_edges), bool)
        groups: list[tuple[int, ...]] = []
        for pair in np.lexsort((bends, patch[first] != patch[second])):
            i, j = first[pair], second[pair]
            if free[i] and free[j]:
                groups.append((int(half_edges[i]), int(half_edges[j])))
                free[i] = free[j] = False
        return groups + [(int(half_edge),) for half_edge in half_edges[free]]


def _label_patches(faces: NDArray[np.int32], vertices: int) -> NDArray[np.int32]:
    """Number the sets of faces that are connected through edges with two faces: (F, 3) -> (F,)."""
    opposite, _ = pair_half_edges(faces, vertices)
    paired = np.flatnonzero(opposite != NO_OPPOSITE)
    pairs = (np.ones(len(paired), np.int8), (paired // 3, opposite[paired] // 3))
    return connected_components(coo_matrix(pairs, shape=(len(faces),) * 2), directed=False)[1]


def _orient_bodies_outward(vertices: NDArray[np.float64], faces: NDArray[np.int32]) -> NDArray[np.int32]:
    """Wind each component without a border outward: (F, 3) -> (F, 3)."""
    mesh = TriMesh(vertices, faces)
    component = label_components(mesh)[faces[:, 0]]
    volumes = np.bincount(component, mesh.signed_volumes())
    is_inward = faces_of_bodies(mesh) & (volumes[component] < 0)
    return np.where(is_inward[:, None], faces[:, ::-1], faces)
