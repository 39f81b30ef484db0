"""From whatever an extraction gives to closed, oriented bodies. Knows nothing of texture or of the wanted size.

The order matters: equal vertices become one, so that what touches is seen to touch; faces that bound nothing go; the
faces around crowded edges and vertices are sorted into sheets, each with vertices of its own; winding is made one way
round; holes are closed; specks go; and vertices that would be taken for one again are moved apart.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from pipeline.mesh.measure import label_components
from pipeline.mesh.topology import NO_OPPOSITE, boundary_loops, half_edge_ends, label_fans, pair_half_edges
from pipeline.mesh.tri_mesh import TriMesh

WELD_M = 1e-6
"""Vertices closer than this are one: the distance at which readers of the files weld."""
APART_M = 4e-6
SPECK_SHARE = 0.02
"""Bodies smaller than this share of the whole are specks, by the diagonals of their boxes."""
MAX_HOLE_EDGES = 2000
MAX_SPLIT_ROUNDS = 16


def clean(mesh: TriMesh, *, max_hole_edges: int = MAX_HOLE_EDGES) -> TriMesh:
    """Make a mesh closed, manifold, consistently wound, and free of specks.

    Args:
        max_hole_edges: holes with longer borders stay open.

    Returns:
        A mesh that is empty when nothing of the input bounds a body. Bodies are wound outward; cavities inside a body,
        inward.
    """
    vertices = np.asarray(mesh.vertices, np.float64)
    vertices, faces = _weld(vertices, mesh.faces)
    faces = _drop_degenerate_faces(faces)
    opposite = _pair_faces(vertices, faces)
    faces, opposite = _wind_one_way(faces, opposite)
    vertices, faces = _split_fans(vertices, faces, opposite)
    vertices, faces = _close_holes(vertices, faces, opposite, max_hole_edges)
    vertices, faces = _split_non_manifold_edges(vertices, faces)
    vertices, faces = _drop_specks(vertices, faces)
    faces = _turn_outward(vertices, faces)
    return separate(TriMesh(vertices.astype(np.float32), faces))


def separate(mesh: TriMesh) -> TriMesh:
    """Move vertices apart that lie so close that a reader which welds would make them one.

    Each moves along its own sheet's normal, inward, by a few micrometres, until no two share a place.
    """
    vertices = np.asarray(mesh.vertices, np.float64)
    normals = None
    for attempt in range(1, 9):
        shared = _shares_place(vertices)
        if not shared.any():
            break
        if normals is None:
            normals = mesh.vertex_normals()
            vertices = vertices.copy()
        rank = np.cumsum(shared)[shared] % 3 + 1
        vertices[shared] -= normals[shared] * (APART_M * attempt * rank)[:, None]
        vertices[shared, attempt % 3] += APART_M * rank
    return TriMesh(vertices.astype(np.float32), mesh.faces)


def _places(vertices: NDArray[np.float64]) -> NDArray[np.int64]:
    """The cell of a grid of micrometres in which each vertex lies, as one number (V,)."""
    cells = np.round(vertices.astype(np.float32).astype(np.float64) / WELD_M).astype(np.int64)
    return (cells[:, 0] * 3_000_017 + cells[:, 1]) * 3_000_017 + cells[:, 2]


def _shares_place(vertices: NDArray[np.float64]) -> NDArray[np.bool_]:
    """(V,) whether an earlier vertex lies in the same place."""
    _, first = np.unique(_places(vertices), return_index=True)
    shared = np.ones(len(vertices), bool)
    shared[first] = False
    return shared


def _weld(vertices: NDArray[np.float64], faces: NDArray[np.int32]) -> tuple[NDArray[np.float64], NDArray[np.int32]]:
    """Make vertices in one place one; drop those that no face uses and faces that lose a corner."""
    is_finite = np.asarray(np.isfinite(vertices).all(axis=1))
    faces = faces[is_finite[faces].all(axis=1)]
    finite = np.nan_to_num(vertices, posinf=0, neginf=0)
    _, first, place = np.unique(_places(finite), return_index=True, return_inverse=True)
    welded = place.reshape(-1)[faces].astype(np.int32)
    return finite[first], welded


def _drop_degenerate_faces(faces: NDArray[np.int32]) -> NDArray[np.int32]:
    """Drop faces without three corners, repeated ones, and pairs that lie back to back."""
    a, b, c = faces.T
    faces = faces[(a != b) & (b != c) & (c != a)]
    if len(faces) == 0:
        return faces
    ordered = np.sort(faces, axis=1)
    is_even = ((faces[:, 0] < faces[:, 1]).astype(int) + (faces[:, 1] < faces[:, 2]) + (faces[:, 2] < faces[:, 0])) == 2
    count = int(ordered.max()) + 1
    key = ordered[:, 0].astype(np.int64) * count + ordered[:, 1] * np.int64(1)
    order = np.lexsort((ordered[:, 2], key))
    same = (key[order][1:] == key[order][:-1]) & (ordered[order, 2][1:] == ordered[order, 2][:-1])
    if not same.any():
        return faces
    group = np.concatenate([[0], np.cumsum(~same)])
    balance = np.bincount(group, weights=np.where(is_even[order], 1, -1))
    keeps_sign = np.where(balance > 0, 1, -1)[group] == np.where(is_even[order], 1, -1)
    wanted = keeps_sign & (balance != 0)[group]
    first_wanted = np.zeros(len(faces), bool)
    positions = np.flatnonzero(wanted)
    _, index = np.unique(group[positions], return_index=True)
    first_wanted[order[positions[index]]] = True
    return faces[first_wanted]


def _pair_faces(vertices: NDArray[np.float64], faces: NDArray[np.int32]) -> NDArray[np.int64]:
    """Partners of half-edges (3 F,); around crowded edges, faces that enclose the same part of a body."""
    opposite, crowded = pair_half_edges(faces, len(vertices))
    for half_edges in crowded:
        for first, second in _pair_around(vertices, faces, half_edges):
            opposite[first], opposite[second] = second, first
    return opposite


def _pair_around(
    vertices: NDArray[np.float64], faces: NDArray[np.int32], half_edges: NDArray[np.int64]
) -> list[tuple[int, int]]:
    """Of the half-edges of one crowded edge, those that belong together: two faces with the inside between them."""
    corners = faces.ravel()
    after = half_edges - half_edges % 3 + (half_edges % 3 + 1) % 3
    low, high = sorted((int(corners[half_edges[0]]), int(corners[after[0]])))
    axis = vertices[high] - vertices[low]
    opposite = vertices[corners[half_edges - half_edges % 3 + (half_edges % 3 + 2) % 3]] - vertices[low]
    across = np.cross(axis, np.eye(3)[np.argmin(np.abs(axis))])
    upward = np.cross(axis, across) / max(float(np.linalg.norm(axis)), 1e-30)
    order = np.argsort(np.arctan2(opposite @ upward, opposite @ across), kind="stable")
    around = half_edges[order]
    forward = corners[around] == low
    free = np.ones(len(around), bool)
    pairs = []
    for k in range(len(around)):
        next_corner = (k + 1) % len(around)
        # From a backward face to the next forward one, counter-clockwise, lies the inside.
        if free[k] and free[next_corner] and not forward[k] and forward[next_corner]:
            pairs.append((int(around[k]), int(around[next_corner])))
            free[k] = free[next_corner] = False
    return pairs


def _split_non_manifold_edges(
    vertices: NDArray[np.float64], faces: NDArray[np.int32]
) -> tuple[NDArray[np.float64], NDArray[np.int32]]:
    """Give each sheet its own edge where two pass through the same two vertices, by a vertex in its middle."""
    for _ in range(MAX_SPLIT_ROUNDS):
        _, crowded = pair_half_edges(faces, len(vertices))
        if not crowded:
            break
        touched: set[int] = set()
        middles, added, parted = [], [], faces.copy()
        for half_edges in crowded:
            for first, second in _pair_around(vertices, faces, half_edges)[1:]:
                if {first // 3, second // 3} & touched:
                    continue
                touched |= {first // 3, second // 3}
                middle = len(vertices) + len(middles)
                start, end = faces.ravel()[first], faces[first // 3, (first % 3 + 1) % 3]
                middles.append((vertices[start] + vertices[end]) / 2)
                for half_edge in (first, second):
                    face, corner = divmod(half_edge, 3)
                    a, b, c = np.roll(faces[face], -corner)
                    parted[face] = (a, middle, c)
                    added.append((middle, b, c))
        if not middles:
            break
        vertices = np.concatenate([vertices, middles])
        faces = np.concatenate([parted, np.array(added, np.int32)])
    return vertices, faces


def _wind_one_way(faces: NDArray[np.int32], opposite: NDArray[np.int64]) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """Turn faces so that partners run in opposite directions; the fewer of each sheet turn.

    A sheet that has but one side is cut open where it cannot be.
    """
    start, _ = half_edge_ends(faces)
    paired = np.flatnonzero(opposite > np.arange(len(opposite)))
    alike = start[paired] == start[opposite[paired]]
    if not alike.any():
        return faces, opposite
    count = len(faces)
    first, second = paired // 3, opposite[paired] // 3
    # Two nodes for a face, as it is and turned; joined when they go together.
    mirrored = alike.astype(np.int64) * count
    rows = np.concatenate([first, first + count])
    columns = np.concatenate([second + mirrored, second + (count - mirrored)])
    graph = coo_matrix((np.ones(len(rows), np.int8), (rows, columns)), shape=(2 * count, 2 * count))
    labels = connected_components(graph, directed=False)[1]
    as_it_is = np.bincount(labels[:count], minlength=labels.max() + 1)
    own, other = labels[:count], labels[count:]
    turned = as_it_is[own] < as_it_is[other]
    tie = (as_it_is[own] == as_it_is[other]) & (own > other)
    turned |= tie
    faces = faces.copy()
    faces[turned] = faces[turned][:, ::-1]
    # Turning a face renumbers its half-edges: corner order (0, 1, 2) became (2, 1, 0).
    moved = np.arange(len(opposite))
    within = moved % 3
    is_turned = np.repeat(turned, 3)
    moved[is_turned] += np.array([1, -1, 0])[within[is_turned]]
    renumbered = np.full_like(opposite, NO_OPPOSITE)
    has = opposite != NO_OPPOSITE
    renumbered[moved[has]] = moved[opposite[has]]
    start, end = half_edge_ends(faces)
    torn = (renumbered != NO_OPPOSITE) & (start != end[renumbered])
    renumbered[torn] = NO_OPPOSITE
    return faces, renumbered


def _split_fans(
    vertices: NDArray[np.float64], faces: NDArray[np.int32], opposite: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.int32]]:
    """Give each fan of faces around a vertex a vertex of its own; of unused vertices none stays."""
    fan, fans = label_fans(opposite, len(opposite))
    corner = faces.ravel()
    of_fan = np.empty(fans, np.int64)
    of_fan[fan] = corner
    # In the order of the old vertices, so that a mesh without crowded places stays as it is.
    order = np.argsort(of_fan, kind="stable")
    number = np.empty(fans, np.int64)
    number[order] = np.arange(fans)
    return vertices[of_fan[order]], number[fan].reshape(-1, 3).astype(np.int32)


def _close_holes(
    vertices: NDArray[np.float64], faces: NDArray[np.int32], opposite: NDArray[np.int64], max_hole_edges: int
) -> tuple[NDArray[np.float64], NDArray[np.int32]]:
    """Close borders: of three edges by a face, longer ones by a fan around their middle."""
    is_open = opposite == NO_OPPOSITE
    if not is_open.any():
        return vertices, faces
    start, end = half_edge_ends(faces)
    open_at = np.full(len(vertices), -1, np.int64)
    open_at[start[is_open]] = np.flatnonzero(is_open)
    next_open = np.where(is_open, open_at[end], -1)
    loop, loops = boundary_loops(opposite, next_open)
    lengths = np.bincount(loop[is_open], minlength=loops)
    fits = (lengths >= 3) & (lengths <= max_hole_edges)
    added = np.cumsum(fits & (lengths > 3)) - 1 + len(vertices)
    middles = np.zeros((loops, 3))
    np.add.at(middles, loop[is_open], vertices[start[is_open]])
    middles /= np.maximum(lengths, 1)[:, None]
    edges = np.flatnonzero(is_open & fits[loop] & (lengths[loop] > 3))
    new_faces = [faces, np.stack([end[edges], start[edges], added[loop[edges]]], axis=1).astype(np.int32)]
    threes = np.flatnonzero(is_open & (lengths[loop] == 3) & fits[loop])
    _, firsts = np.unique(loop[threes], return_index=True)
    for h in threes[firsts]:
        second = next_open[h]
        new_faces.append(np.array([[start[h], start[next_open[second]], start[second]]], np.int32))
    return np.concatenate([vertices, middles[fits & (lengths > 3)]]), np.concatenate(new_faces)


def _drop_specks(
    vertices: NDArray[np.float64], faces: NDArray[np.int32]
) -> tuple[NDArray[np.float64], NDArray[np.int32]]:
    """Drop bodies that are tiny beside the whole, and vertices that no face uses."""
    if len(faces) == 0:
        return vertices[:0], faces
    body = label_components(TriMesh(vertices, faces))
    bodies = int(body.max()) + 1
    used = np.zeros(len(vertices), bool)
    used[faces] = True
    low = np.full((bodies, 3), np.inf)
    high = np.full((bodies, 3), -np.inf)
    np.minimum.at(low, body[used], vertices[used])
    np.maximum.at(high, body[used], vertices[used])
    whole = np.linalg.norm(vertices[used].max(axis=0) - vertices[used].min(axis=0))
    size = np.where(np.isfinite(low[:, 0]), np.linalg.norm(np.where(np.isfinite(high), high - low, 0), axis=1), 0)
    stays = size >= SPECK_SHARE * whole
    faces = faces[stays[body[faces[:, 0]]]]
    number = np.full(len(vertices), -1, np.int32)
    wanted = np.unique(faces)
    number[wanted] = np.arange(len(wanted), dtype=np.int32)
    return vertices[wanted], number[faces]


def _turn_outward(vertices: NDArray[np.float64], faces: NDArray[np.int32]) -> NDArray[np.int32]:
    """Turn bodies that are wound inward, unless they are cavities of another."""
    if len(faces) == 0:
        return faces
    mesh = TriMesh(vertices, faces)
    body = label_components(mesh)[faces[:, 0]]
    corners = mesh.corners
    volumes = np.bincount(body, weights=np.einsum("fi,fi->f", corners[:, 0], np.cross(corners[:, 1], corners[:, 2])))
    inward = np.flatnonzero(volumes < 0)
    if len(inward) == 0:
        return faces
    turned = faces.copy()
    outer = volumes[body] > 0
    for number in inward:
        own = body == number
        point = corners[np.flatnonzero(own)[0]].mean(axis=0)
        if not outer.any() or abs(_winding_number(point, corners[outer])) < 0.5:
            turned[own] = turned[own][:, ::-1]
    return turned


def _winding_number(point: NDArray[np.float64], corners: NDArray[np.floating]) -> float:
    """How often closed surfaces (F, 3, 3) wind around a point.

    Source: Van Oosterom and Strackee, "The solid angle of a plane triangle", IEEE Trans. Biomed. Eng. 30 (1983).
    """
    a, b, c = (corners[:, k] - point for k in range(3))
    la, lb, lc = (np.linalg.norm(side, axis=1) for side in (a, b, c))
    numerator = np.einsum("fi,fi->f", a, np.cross(b, c))
    denominator = (
        la * lb * lc
        + np.einsum("fi,fi->f", a, b) * lc
        + np.einsum("fi,fi->f", b, c) * la
        + np.einsum("fi,fi->f", c, a) * lb
    )
    return float(np.arctan2(numerator, denominator).sum() / (2 * np.pi))
