"""Mesh repair: from an extracted surface to closed, oriented manifolds. Knows nothing of textures or face counts.

The order matters: merge coincident vertices, so that adjacency is known; drop degenerate and duplicate faces; pair the
faces at non-manifold edges; make the winding consistent; split non-manifold vertices; fill holes; split edges that two
surfaces still share; drop small components; orient outward; separate vertices that a reader would merge again.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from pipeline.mesh.measure import label_components
from pipeline.mesh.topology import NO_OPPOSITE, boundary_loops, half_edge_ends, label_fans, pair_half_edges
from pipeline.mesh.tri_mesh import TriMesh

WELD_M = 1e-6
"""Vertices are merged on a grid of this spacing; readers of the files merge vertices at about this distance."""
SEPARATION_M = 4e-6
"""Displacement that separates two vertices: four grid cells, which rounding to float32 keeps."""
MIN_COMPONENT_SHARE = 0.02
"""Components whose bounding box's diagonal is less than this share of the whole mesh's are dropped."""
MAX_HOLE_EDGES = 2000
MAX_SPLIT_ROUNDS = 16
"""Bounds the loop; each round splits at least one edge."""
TRIPLE_FACTORS = np.array([0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9], np.uint64)
GRID_STRIDE = 3_000_017
"""Packs three cell indices into one int64, without overflow up to 1 m from the origin; assets lie within 0.5 m."""


Pairing = Callable[[NDArray[np.float64], NDArray[np.int32], NDArray[np.int64]], list[tuple[int, ...]]]
"""Groups the half-edges (K,) of one non-manifold edge: pairs that stay connected, and single ones."""


def clean(mesh: TriMesh, *, max_hole_edges: int = MAX_HOLE_EDGES) -> TriMesh:
    """Make a mesh closed, manifold and consistently wound, without small components.

    Args:
        mesh: any triangles, (V, 3) vertices in metres and (F, 3) faces.
        max_hole_edges: holes with longer boundaries stay open.

    Returns:
        The repaired mesh, float32; empty if no part of the input encloses a volume. Components are wound outward,
        cavities inside a component inward.
    """
    vertices = np.asarray(mesh.vertices, np.float64)
    vertices, faces = weld(vertices, mesh.faces)
    faces = _drop_degenerate_faces(faces)
    opposite, non_manifold = pair_faces(vertices, faces, _pair_around)
    faces, opposite = wind_one_way(faces, opposite)
    is_manifold = non_manifold == 0 and bool((opposite != NO_OPPOSITE).all())  # and so it stays below
    vertices, faces = split_fans(vertices, faces, opposite)
    vertices, faces = close_holes(vertices, faces, opposite, max_edges=max_hole_edges)
    if not is_manifold:
        vertices, faces = split_non_manifold_edges(vertices, faces, _pair_around)
    vertices, faces = drop_small_components(vertices, faces)
    faces = orient_outward(vertices, faces)
    return separate_coincident_vertices(TriMesh(vertices.astype(np.float32), faces))


def separate_coincident_vertices(mesh: TriMesh) -> TriMesh:
    """Displace vertices that readers would merge, so that two surfaces that touch stay two surfaces in every reader.

    Each moves a few micrometres against its normal, into its own solid, until all grid cells are distinct.

    Args:
        mesh: (V, 3) vertices in metres and (F, 3) faces.

    Returns:
        The mesh with float32 vertices; the faces are the input's.
    """
    vertices = np.asarray(mesh.vertices, np.float64)
    normals = None
    for attempt in range(1, 9):  # bounded: a vertex that still shares a cell afterwards stays where it is
        shared = _shares_cell(vertices)
        if not shared.any():
            break
        if normals is None:
            normals = mesh.vertex_normals()
            vertices = vertices.copy()
        # Three step lengths in turn and a changing axis, because normals may be zero, or equal at the same point.
        rank = np.cumsum(shared)[shared] % 3 + 1
        vertices[shared] -= normals[shared] * (SEPARATION_M * attempt * rank)[:, None]
        vertices[shared, attempt % 3] += SEPARATION_M * rank
    return TriMesh(vertices.astype(np.float32), mesh.faces)


def _grid_cells(vertices: NDArray[np.float64]) -> NDArray[np.int64]:
    """Cell of each vertex in a grid of `WELD_M`, as one number: (V, 3) -> (V,)."""
    # Round to float32 first: that is the value that the files hold and the reader sees.
    cells = np.round(vertices.astype(np.float32).astype(np.float64) / WELD_M).astype(np.int64)
    return (cells[:, 0] * GRID_STRIDE + cells[:, 1]) * GRID_STRIDE + cells[:, 2]


def _shares_cell(vertices: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Whether an earlier vertex lies in the same grid cell: (V, 3) -> (V,)."""
    _, first = np.unique(_grid_cells(vertices), return_index=True)
    shared = np.ones(len(vertices), bool)
    shared[first] = False
    return shared


def weld(vertices: NDArray[np.float64], faces: NDArray[np.int32]) -> tuple[NDArray[np.float64], NDArray[np.int32]]:
    """Merge vertices in one grid cell, drop faces with non-finite corners: (V, 3), (F, 3) -> (W, 3), (G, 3)."""
    is_finite = np.asarray(np.isfinite(vertices).all(axis=1))
    faces = faces[is_finite[faces].all(axis=1)]
    finite = np.nan_to_num(vertices, posinf=0, neginf=0)
    # The first vertex of a cell stands for all: a mean would move vertices of a good mesh by rounding.
    _, first, cell = np.unique(_grid_cells(finite), return_index=True, return_inverse=True)
    welded = cell.reshape(-1)[faces].astype(np.int32)
    return finite[first], welded


def _drop_degenerate_faces(faces: NDArray[np.int32]) -> NDArray[np.int32]:
    """Drop faces with equal corners, and of faces on the same three vertices all but what does not cancel out.

    Two copies of opposite winding enclose nothing and cancel; of copies with the same winding one stays.
    (F, 3) -> (G, 3).
    """
    a, b, c = faces.T
    faces = faces[(a != b) & (b != c) & (c != a)]
    if len(faces) == 0:
        return faces
    ordered = np.sort(faces, axis=1)
    # Equal triples have equal sums of products with odd numbers, modulo 2^64; without equal sums there are none.
    sums = np.sort(ordered.astype(np.uint64) @ TRIPLE_FACTORS)
    if not (sums[1:] == sums[:-1]).any():
        return faces
    # Winding: a cyclic permutation of ascending corners has two ascents, any other has one.
    is_even = ((faces[:, 0] < faces[:, 1]).astype(int) + (faces[:, 1] < faces[:, 2]) + (faces[:, 2] < faces[:, 0])) == 2
    count = int(ordered.max()) + 1
    key = ordered[:, 0].astype(np.int64) * count + ordered[:, 1] * np.int64(1)
    order = np.lexsort((ordered[:, 2], key))  # equal vertex triples become neighbours
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


def pair_faces(
    vertices: NDArray[np.float64], faces: NDArray[np.int32], group: Pairing
) -> tuple[NDArray[np.int64], int]:
    """Opposite half-edge of each, (3F,), and the number of non-manifold edges, of which `group` makes the pairs."""
    opposite, non_manifold = pair_half_edges(faces, len(vertices))
    for half_edges in non_manifold:
        for members in group(vertices, faces, half_edges):
            if len(members) == 2:
                first, second = members
                opposite[first], opposite[second] = second, first
    return opposite, len(non_manifold)


def _pair_around(
    vertices: NDArray[np.float64], faces: NDArray[np.int32], half_edges: NDArray[np.int64]
) -> list[tuple[int, ...]]:
    """Pairs among the half-edges (K,) of one non-manifold edge: neighbours by angle that enclose solid.

    Pairing across the solid separates two solids that touch at the edge; pairing across the empty side would join them.
    """
    around = half_edges[np.argsort(angles_around(vertices, faces, half_edges), kind="stable")]
    corners = faces.ravel()
    after = half_edges[0] - half_edges[0] % 3 + (half_edges[0] % 3 + 1) % 3
    forward = corners[around] == min(corners[half_edges[0]], corners[after])
    free = np.ones(len(around), bool)
    pairs = []
    for k in range(len(around)):
        after = (k + 1) % len(around)
        # Counter-clockwise, the solid lies between a backward half-edge and the forward one after it.
        if free[k] and free[after] and not forward[k] and forward[after]:
            pairs.append((int(around[k]), int(around[after])))
            free[k] = free[after] = False
    return pairs


def angles_around(
    vertices: NDArray[np.float64], faces: NDArray[np.int32], half_edges: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Angles of the faces of half-edges (K,) around their common edge, in radians from -pi to pi: (K,)."""
    corners = faces.ravel()
    after = half_edges - half_edges % 3 + (half_edges % 3 + 1) % 3
    low, high = sorted((int(corners[half_edges[0]]), int(corners[after[0]])))
    axis = vertices[high] - vertices[low]
    apex = vertices[corners[half_edges - half_edges % 3 + (half_edges % 3 + 2) % 3]] - vertices[low]  # (K, 3)
    # The axis of the smallest component is never parallel to the edge.
    across = np.cross(axis, np.eye(3)[np.argmin(np.abs(axis))])
    upward = np.cross(axis, across) / max(float(np.linalg.norm(axis)), 1e-30)
    return np.arctan2(apex @ upward, apex @ across)


def split_non_manifold_edges(
    vertices: NDArray[np.float64], faces: NDArray[np.int32], group: Pairing
) -> tuple[NDArray[np.float64], NDArray[np.int32]]:
    """Insert a midpoint in all but one of the surfaces that pass through the same edge.

    Splitting vertices does not remove such an edge: both of its ends may be manifold, each in its own way.
    (V, 3), (F, 3) -> (W, 3), (G, 3).

    Args:
        group: says which of an edge's half-edges belong to one surface.
    """
    for _ in range(MAX_SPLIT_ROUNDS):
        _, non_manifold = pair_half_edges(faces, len(vertices))
        if not non_manifold:
            break
        touched: set[int] = set()  # a face changes once per round; its other edges wait for the next
        middles, added, split = [], [], faces.copy()
        for half_edges in non_manifold:
            for members in group(vertices, faces, half_edges)[1:]:
                own = {half_edge // 3 for half_edge in members}
                if own & touched:
                    continue
                touched |= own
                middle = len(vertices) + len(middles)
                start, end = faces.ravel()[members[0]], faces[members[0] // 3, (members[0] % 3 + 1) % 3]
                middles.append((vertices[start] + vertices[end]) / 2)
                for half_edge in members:
                    face, corner = divmod(half_edge, 3)
                    a, b, c = np.roll(faces[face], -corner)
                    split[face] = (a, middle, c)
                    added.append((middle, b, c))
        if not middles:
            break
        vertices = np.concatenate([vertices, middles])
        faces = np.concatenate([split, np.array(added, np.int32)])
    return vertices, faces


def wind_one_way(faces: NDArray[np.int32], opposite: NDArray[np.int64]) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """Reverse faces so that opposite half-edges run in opposite directions; in each component, the minority reverses.

    A non-orientable component (a Möbius strip) has no such winding: it is cut open where two half-edges disagree.

    Returns:
        Faces (F, 3) and the opposite half-edges (3F,) of their new numbering.
    """
    start, _ = half_edge_ends(faces)
    paired = np.flatnonzero(opposite > np.arange(len(opposite)))
    alike = start[paired] == start[opposite[paired]]
    if not alike.any():
        return faces, opposite
    count = len(faces)
    first, second = paired // 3, opposite[paired] // 3
    # The orientation double cover: two nodes per face, as it is (f) and reversed (f + F). An edge joins two nodes that
    # are consistent with each other, so a connected component is a consistent choice for all of its faces.
    mirrored = alike.astype(np.int64) * count
    rows = np.concatenate([first, first + count])
    columns = np.concatenate([second + mirrored, second + (count - mirrored)])
    graph = coo_matrix((np.ones(len(rows), np.int8), (rows, columns)), shape=(2 * count, 2 * count))
    labels = connected_components(graph, directed=False)[1]
    as_it_is = np.bincount(labels[:count], minlength=labels.max() + 1)
    own, other = labels[:count], labels[count:]
    reversed_ = as_it_is[own] < as_it_is[other]
    tie = (as_it_is[own] == as_it_is[other]) & (own > other)
    reversed_ |= tie
    faces = faces.copy()
    faces[reversed_] = faces[reversed_][:, ::-1]
    # Corner order (0, 1, 2) became (2, 1, 0): the edge of half-edge 0 is now that of 1, 1 that of 0, and 2 stays.
    moved = np.arange(len(opposite))
    within = moved % 3
    is_reversed = np.repeat(reversed_, 3)
    moved[is_reversed] += np.array([1, -1, 0])[within[is_reversed]]
    renumbered = np.full_like(opposite, NO_OPPOSITE)
    has = opposite != NO_OPPOSITE
    renumbered[moved[has]] = moved[opposite[has]]
    start, end = half_edge_ends(faces)
    torn = (renumbered != NO_OPPOSITE) & (start != end[renumbered])
    renumbered[torn] = NO_OPPOSITE
    return faces, renumbered


def split_fans(
    vertices: NDArray[np.float64], faces: NDArray[np.int32], opposite: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.int32]]:
    """Give each fan of faces its own copy of the vertex; unused vertices vanish. (V, 3), (F, 3) -> (W, 3), (F, 3)."""
    fan, fans = label_fans(opposite)
    corner = faces.ravel()
    of_fan = np.empty(fans, np.int64)
    of_fan[fan] = corner
    # Number the copies in the order of the old vertices, so that a manifold mesh keeps its numbering.
    order = np.argsort(of_fan, kind="stable")
    number = np.empty(fans, np.int64)
    number[order] = np.arange(fans)
    return vertices[of_fan[order]], number[fan].reshape(-1, 3).astype(np.int32)


def close_holes(
    vertices: NDArray[np.float64],
    faces: NDArray[np.int32],
    opposite: NDArray[np.int64],
    *,
    max_edges: int = MAX_HOLE_EDGES,
    max_extent_m: float = np.inf,
) -> tuple[NDArray[np.float64], NDArray[np.int32]]:
    """Fill boundary loops: three edges with a face, longer ones with a fan around the mean of their vertices.

    (V, 3), (F, 3) -> (V + M, 3), (F + G, 3).

    Args:
        max_edges: longer loops stay.
        max_extent_m: loops whose bounding box has a longer diagonal stay.
    """
    is_open = opposite == NO_OPPOSITE
    if not is_open.any():
        return vertices, faces
    start, end = half_edge_ends(faces)
    # After `split_fans` a vertex starts at most one open half-edge, so the loops are simple.
    open_at = np.full(len(vertices), -1, np.int64)
    open_at[start[is_open]] = np.flatnonzero(is_open)
    next_open = np.where(is_open, open_at[end], -1)
    loop, loops = boundary_loops(next_open)
    lengths = np.bincount(loop[is_open], minlength=loops)
    fits = (lengths >= 3) & (lengths <= max_edges)
    if np.isfinite(max_extent_m):
        low, high = np.full((loops, 3), np.inf), np.full((loops, 3), -np.inf)
        np.minimum.at(low, loop[is_open], vertices[start[is_open]])
        np.maximum.at(high, loop[is_open], vertices[start[is_open]])
        fits &= np.linalg.norm(high - low, axis=1) <= max_extent_m
    added = np.cumsum(fits & (lengths > 3)) - 1 + len(vertices)
    middles = np.zeros((loops, 3))
    np.add.at(middles, loop[is_open], vertices[start[is_open]])
    middles /= np.maximum(lengths, 1)[:, None]
    # A new face runs along its boundary edge backwards, so the winding stays consistent.
    edges = np.flatnonzero(is_open & fits[loop] & (lengths[loop] > 3))
    new_faces = [faces, np.stack([end[edges], start[edges], added[loop[edges]]], axis=1).astype(np.int32)]
    threes = np.flatnonzero(is_open & (lengths[loop] == 3) & fits[loop])
    _, firsts = np.unique(loop[threes], return_index=True)
    for h in threes[firsts]:
        second = next_open[h]
        new_faces.append(np.array([[start[h], start[next_open[second]], start[second]]], np.int32))
    return np.concatenate([vertices, middles[fits & (lengths > 3)]]), np.concatenate(new_faces)


def drop_small_components(
    vertices: NDArray[np.float64], faces: NDArray[np.int32]
) -> tuple[NDArray[np.float64], NDArray[np.int32]]:
    """Drop components smaller than `MIN_COMPONENT_SHARE`, and unused vertices. (V, 3), (F, 3) -> (W, 3), (G, 3)."""
    if len(faces) == 0:
        return vertices[:0], faces
    component = label_components(TriMesh(vertices, faces))
    components = int(component.max()) + 1
    used = np.zeros(len(vertices), bool)
    used[faces] = True
    if components == 1:  # the usual case; each step below takes a tenth of the whole cleaning
        return vertices, faces
    low = np.full((components, 3), np.inf)  # stays infinite for a component of one unused vertex
    high = np.full((components, 3), -np.inf)
    np.minimum.at(low, component[used], vertices[used])
    np.maximum.at(high, component[used], vertices[used])
    whole = np.linalg.norm(vertices[used].max(axis=0) - vertices[used].min(axis=0))
    size = np.where(np.isfinite(low[:, 0]), np.linalg.norm(np.where(np.isfinite(high), high - low, 0), axis=1), 0)
    stays = size >= MIN_COMPONENT_SHARE * whole
    faces = faces[stays[component[faces[:, 0]]]]
    number = np.full(len(vertices), -1, np.int32)
    wanted = np.unique(faces)
    number[wanted] = np.arange(len(wanted), dtype=np.int32)
    return vertices[wanted], number[faces]


def orient_outward(vertices: NDArray[np.float64], faces: NDArray[np.int32]) -> NDArray[np.int32]:
    """Reverse components with negative volume, unless they are cavities of a positive one. (F, 3) -> (F, 3)."""
    if len(faces) == 0:
        return faces
    mesh = TriMesh(vertices, faces)
    component = label_components(mesh)[faces[:, 0]]  # (F,)
    corners = mesh.corners
    # Six times the signed volume of each component; the factor does not matter for the sign.
    volumes = np.bincount(
        component, weights=np.einsum("fi,fi->f", corners[:, 0], np.cross(corners[:, 1], corners[:, 2]))
    )
    inward = np.flatnonzero(volumes < 0)
    if len(inward) == 0:
        return faces
    oriented = faces.copy()
    outer = volumes[component] > 0
    for number in inward:
        own = component == number
        point = corners[np.flatnonzero(own)[0]].mean(axis=0)
        # The winding number is 0 outside of all positive components and 1 inside one; 0.5 allows for rounding.
        if not outer.any() or abs(_winding_number(point, corners[outer])) < 0.5:
            oriented[own] = oriented[own][:, ::-1]
    return oriented


def _winding_number(point: NDArray[np.float64], corners: NDArray[np.floating]) -> float:
    """Winding number of closed surfaces, corners (F, 3, 3), around a point (3,): the sum of solid angles over 4 pi.

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
