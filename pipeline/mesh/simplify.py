"""Mesh simplification by edge collapse in the order of quadric error. Knows nothing of textures.

Each vertex carries the sum of its faces' quadrics; an edge collapses to the point that minimises the sum of its two
quadrics. A collapse is rejected if it violates the link condition, flips a face or creates a sliver. A closed manifold
therefore stays a closed manifold, and a manifold with boundaries keeps their number.

Boundaries hold by quadrics of planes through their edges, perpendicular to the faces, as in the paper; and an interior
vertex that collapses into a boundary takes the place of the boundary's vertex.

A large mesh is cut into parts, which collapse their cheapest edges at the same time; the last pass, down to the
target, runs over the whole. The cut does not depend on the number of threads, so the result does not either.

Departures from the paper: the face count is a hard target, reached by relaxing the rejections in steps; each quadric
has a weak term that pulls the vertex to its old position, which makes the minimum unique on planes and along straight
edges.

Source: Garland and Heckbert, "Surface simplification using quadric error metrics", SIGGRAPH 97; Dey, Edelsbrunner,
Guha, Nekhayev, "Topology preserving edge contraction", 1999 (the link condition).
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from pipeline.mesh.clean import separate_coincident_vertices
from pipeline.mesh.topology import NO_OPPOSITE, half_edge_ends, pair_half_edges
from pipeline.mesh.tri_mesh import TriMesh

LEAST_FACES = 4  # a tetrahedron, the smallest closed manifold
# (least cosine between a face's normal before and after, least face quality; 1 is equilateral), strictest first. A
# later pair is used only if the earlier ones left too many faces. They permit turns of 78, 90 and 120 degrees.
STRICTNESS = ((0.2, 0.005), (0.0, 0.0), (-0.5, 0.0))
# Most neighbours of a vertex; a vertex with more is not collapsed. Extracted meshes have about 6, fans over holes at
# most `clean.MAX_HOLE_EDGES` = 2000.
MAX_RING = 4096
# Weight of the pull towards the old position, relative to the faces' area: small enough not to move a vertex by a
# visible amount, large enough to make the quadric's matrix invertible in float64.
STAY_WEIGHT = 1e-6
MIN_CONDITION = 1e-12  # of the determinant, relative to the cube of the trace: below it, the solution is noise
MIN_CROSS2 = 1e-28  # square of twice a face's area, in squared diagonals of the bounding box: below it, degenerate
# Weight of a boundary edge's plane, relative to the square of the edge: an area of that many times the edge's square.
# Large enough that the boundary hardly moves, small enough that the faces around it still count in float64.
BORDER_WEIGHT = 100.0
PART_FACES = 32768
"""Least faces of a part: its arrays, about 6 MB, stay near the core. Smaller parts have longer rims, and those cost
accuracy."""
PARTS_STOP, PARTS_STOP_ABOVE = 2.5, 2.6
"""Multiples of the target at which the parts stop, and above which they go on. At 1.2 the rims, which only the last
pass simplifies, raise the mean error by a tenth; at 2.5 by less than a hundredth."""
RIM_WEIGHT = 2
"""Faces that the parts leave for each face on their rims. At 0, 1,000 of 160,000 faces had three times the error; at 1
the largest error is up to 1.5 times that of one heap, at 2 at most 1.06 times."""
LEAST_REDUCTION = 4.0
"""Least ratio of the face count to the target at which parts are worth it."""
FIRST_LIMIT, LIMIT_STEP = 1e-18, 4.0
"""First limit of the cost, and its growth: on a smooth surface the count falls by a third from one to the next."""
SQRT_3 = 1.7320508  # further digits would change which collapses are rejected, and so the output's bytes


def simplify(mesh: TriMesh, *, target_faces: int) -> TriMesh:
    """Collapse edges until at most `target_faces` faces are left.

    Args:
        mesh: a manifold, (V, 3) vertices and (F, 3) faces; it may have boundaries.
        target_faces: number of faces to keep; a closed component keeps at least 4, one with a boundary at least 1.

    Returns:
        A mesh with `target_faces` faces, or one fewer; more if the topology does not allow that. The input itself if
        it is small enough already. The same bytes for any number of threads.
    """
    if len(mesh.faces) <= max(target_faces, LEAST_FACES):
        return mesh
    # Work in units of the bounding box's diagonal, so that the thresholds do not depend on the mesh's scale.
    low, high = mesh.bounds()
    scale = float(np.linalg.norm(high - low)) or 1.0
    points = (mesh.vertices.astype(np.float64) - low) / scale
    faces = mesh.faces.astype(np.int32)
    parts = len(faces) // PART_FACES if target_faces < len(faces) / LEAST_REDUCTION else 1
    points, faces, of_vertex, of_face = _split(points, faces, max(parts, 1))
    quadrics = np.zeros((len(points), 10))
    _add_quadrics(points, faces, quadrics)
    edges, face_counts = _edges(faces)
    border = np.zeros(len(points), np.bool_)
    border[edges[face_counts == 1].ravel()] = True
    if border.any():
        quadrics += _border_quadrics(points, faces)
    locked = np.zeros(len(points), np.bool_)
    locked[edges[face_counts > 2].ravel()] = True
    if parts > 1:
        faces = _collapse_parts(points, faces, quadrics, edges, locked, border, of_vertex, of_face, target_faces)
        points, faces, used = _without_unused(points, faces)
        quadrics, locked, border = quadrics[used], locked[used], border[used]
        edges, _ = _edges(faces)
    for least_cosine, least_quality in STRICTNESS:
        # Faces and quadrics carry over to the next round; the heap is rebuilt from the edges that are left.
        state = _new_state(points, faces, quadrics, edges, locked, border)
        _collapse(state, target_faces, np.inf, least_cosine, least_quality)
        faces = faces[state.alive]
        if len(faces) <= target_faces:
            break
        edges, _ = _edges(faces)  # (F, 3) -> (E, 2)
    points, faces, _ = _without_unused(points, faces)
    vertices = (points * scale + low).astype(np.float32)
    # The conversion to float32 may make two vertices equal; readers that merge equal vertices would join them.
    return separate_coincident_vertices(TriMesh(vertices, faces))


def _without_unused(
    points: NDArray[np.float64], faces: NDArray[np.int32]
) -> tuple[NDArray[np.float64], NDArray[np.int32], NDArray[np.intp]]:
    """Drop the vertices without a face: (V, 3), (F, 3) -> (W, 3), (F, 3) and the old numbers of those left, (W,)."""
    is_used = np.zeros(len(points), np.bool_)
    is_used[faces] = True
    used = np.flatnonzero(is_used)
    number = np.empty(len(points), np.int32)
    number[used] = np.arange(len(used), dtype=np.int32)
    return points[used], number[faces], used


def _split(
    points: NDArray[np.float64], faces: NDArray[np.int32], parts: int
) -> tuple[NDArray[np.float64], NDArray[np.int32], NDArray[np.int64], NDArray[np.int64]]:
    """Reorder a mesh along a space-filling curve and cut it into parts of equally many vertices.

    Neighbours on the surface become neighbours in memory, and the parts are compact.

    Args:
        points: (V, 3) in [0, 1].
        faces: (F, 3).
        parts: P.

    Returns:
        (V, 3) points and (F, 3) faces; (P + 1,) first vertex of each part, where the vertices that faces of several
        parts share come last; and (P + 1,) first face of each part.
    """
    # Morton code: the bits of the three coordinates in turn.
    cells = np.minimum(points * 1024, 1023).astype(np.int64)  # (V, 3)
    for shift, mask in ((16, 0x030000FF), (8, 0x0300F00F), (4, 0x030C30C3), (2, 0x09249249)):
        cells = (cells | cells << shift) & mask
    order = np.argsort(cells @ np.array([4, 2, 1]), kind="stable")
    part = np.empty(len(points), np.int64)
    part[order] = np.arange(len(points)) * parts // len(points)
    face_part = part[faces[:, 0]]  # (F,)
    by_part = np.argsort(face_part.astype(np.uint16), kind="stable")  # a radix sort, linear time
    faces = faces[by_part]
    starts = np.searchsorted(face_part[by_part], np.arange(parts + 1))
    lowest, highest = np.full(len(points), parts), np.full(len(points), parts)
    for p in range(parts):
        highest[faces[starts[p] : starts[p + 1]]] = p
    for p in reversed(range(parts)):
        lowest[faces[starts[p] : starts[p + 1]]] = p
    owner = np.where(lowest == highest, lowest, parts)
    order = order[np.argsort(owner[order].astype(np.uint16), kind="stable")]
    number = np.empty(len(points), np.int32)
    number[order] = np.arange(len(points), dtype=np.int32)
    return points[order], number[faces], np.searchsorted(owner[order], np.arange(parts + 1)), starts


def _collapse_parts(
    points: NDArray[np.float64],
    faces: NDArray[np.int32],
    quadrics: NDArray[np.float64],
    edges: NDArray[np.int32],
    locked: NDArray[np.bool_],
    border: NDArray[np.bool_],
    of_vertex: NDArray[np.int64],
    of_face: NDArray[np.int64],
    target: int,
) -> NDArray[np.int32]:
    """Collapse edges inside of the parts, several parts at once, down to `PARTS_STOP_ABOVE` times the target and the
    rims.

    Collapses in two parts do not influence each other, because the vertices that parts share stay. So each part may
    collapse its cheapest edges by itself, up to a limit of the cost that is the same for all and rises in steps: what
    is left is what one heap for the whole mesh would leave, but near the parts' borders.

    Args:
        points, faces, quadrics, edges, locked, border: see `_State`; changes `points`, `quadrics` and `border`.
        of_vertex, of_face: see `_split`.
        target: number of faces.

    Returns:
        The faces that are left, (G, 3).
    """
    shared = of_vertex[-1]  # the first vertex of those that parts share
    states, outside = [], []
    ends = np.searchsorted(edges[:, 0], of_vertex)  # the edges are sorted by their lower vertex
    for p in range(len(of_vertex) - 1):
        first, last = of_vertex[p], of_vertex[p + 1]
        corners = faces[of_face[p] : of_face[p + 1]]
        # Number the part's own vertices from 0, and after them its rim: the shared ones.
        inside = corners < shared
        rim, number = np.unique(corners[~inside], return_inverse=True)
        own = corners - np.int32(first)
        own[~inside] = last - first + number
        number = np.concatenate([np.arange(first, last), rim])
        own_edges = edges[ends[p] : ends[p + 1]]
        own_edges = own_edges[own_edges[:, 1] < shared] - np.int32(first)
        own_locked = locked[number]
        own_locked[last - first :] = True
        states.append(_new_state(points[number], own, quadrics[number], own_edges, own_locked, border[number]))
        outside.append(number)
    left = sum(len(state.faces) for state in states)
    # The rims keep their faces until the last pass. Counted towards the target, they would leave none for the inside.
    rims = RIM_WEIGHT * int((faces >= shared).any(axis=1).sum())
    limit = FIRST_LIMIT
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        while left > PARTS_STOP_ABOVE * target + rims and limit < 1:
            # No part goes below its share of the stop, so that no flat part uses up the faces of the others.
            share = (PARTS_STOP * target + rims) / left

            def advance(state: _State, limit: float = limit, share: float = share) -> bool:
                floor = int(np.ceil(share * state.counts[FACES_LEFT]))
                return _collapse(state, floor, limit, *STRICTNESS[0])

            is_held = list(pool.map(advance, states))
            left = sum(int(state.counts[FACES_LEFT]) for state in states)
            if not any(is_held):
                limit *= LIMIT_STEP
    rest = []
    for state, number in zip(states, outside, strict=True):
        own = np.flatnonzero(number < shared)
        points[number[own]], quadrics[number[own]] = state.points[own], state.quadrics[own]
        border[number[own]] = state.border[own]
        rest.append(number[state.faces[state.alive]].astype(np.int32))
    return np.concatenate(rest)


class _State(NamedTuple):
    """A mesh while its edges collapse. Arrays only, so that a kernel can stop and go on.

    The faces of a vertex are a linked list of corners 3 f + k: `head` is the first, `next_corner` the rest, -1 ends it.
    A removed vertex has the head -1. The heap never decreases a cost: a changed edge gets a new entry, and the old one
    is skipped when it is popped. An entry is outdated if an end was removed or the sum of its ends' versions changed.
    """

    points: NDArray[np.float64]  # (V, 3)
    faces: NDArray[np.int32]  # (F, 3)
    alive: NDArray[np.bool_]  # (F,) faces that are left
    quadrics: NDArray[np.float64]  # (V, 10)
    locked: NDArray[np.bool_]  # (V,) vertices that neither move nor vanish
    border: NDArray[np.bool_]  # (V,) vertices on boundaries
    head: NDArray[np.int32]  # (V,)
    next_corner: NDArray[np.int32]  # (3F,)
    version: NDArray[np.int32]  # (V,)
    stamp: NDArray[np.int64]  # (V,) mark of the last visit
    cost: NDArray[np.float64]  # (N,) by place in the heap
    item: NDArray[np.int32]  # (N,) entry at each place of the heap
    first: NDArray[np.int32]  # (N,) vertex, by entry
    second: NDArray[np.int32]  # (N,) vertex, by entry
    entry_version: NDArray[np.int32]  # (N,) sum of both ends' versions when the entry was made
    free: NDArray[np.int32]  # (N,) stack of unused entries
    counts: NDArray[np.int64]  # (5,): see the constants


FACES_LEFT, HEAP_SIZE, USED_ENTRIES, FREE_ENTRIES, LAST_MARK = range(5)


def _new_state(
    points: NDArray[np.float64],
    faces: NDArray[np.int32],
    quadrics: NDArray[np.float64],
    edges: NDArray[np.int32],
    locked: NDArray[np.bool_],
    border: NDArray[np.bool_],
) -> _State:
    """The state before the first collapse, with an empty heap; the first five arrays are changed by the collapses."""
    # Half of a full heap is outdated, so a clean-up is rare and frees enough.
    edges = edges[~(locked[edges[:, 0]] | locked[edges[:, 1]])]
    vertices, room = len(points), 2 * len(edges) + MAX_RING
    state = _State(
        points,
        faces,
        np.ones(len(faces), np.bool_),
        quadrics,
        locked,
        border,
        np.full(vertices, -1, np.int32),
        np.full(3 * len(faces), -1, np.int32),
        np.zeros(vertices, np.int32),
        np.full(vertices, -1, np.int64),
        np.empty(room),
        np.empty(room, np.int32),
        np.empty(room, np.int32),
        np.empty(room, np.int32),
        np.zeros(room, np.int32),
        np.empty(room, np.int32),
        np.array([len(faces), 0, len(edges), 0, 0]),
    )
    state.first[: len(edges)], state.second[: len(edges)] = edges.T
    return state


def _edges(faces: NDArray[np.int32]) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """Each edge once, (E, 2) from (F, 3) faces, and its number of faces, (E,)."""
    pairs = np.sort(faces[:, [0, 1, 1, 2, 2, 0]].reshape(-1, 2), axis=1)  # (F, 3) -> (3F, 2)
    keys = pairs[:, 0].astype(np.int64) << 32 | pairs[:, 1]  # one int64 sorts faster than two columns
    unique, counts = np.unique(keys, return_counts=True)
    return np.stack([unique >> 32, unique & 0xFFFFFFFF], axis=1).astype(np.int32), counts


def _border_quadrics(points: NDArray[np.float64], faces: NDArray[np.int32]) -> NDArray[np.float64]:
    """Sum of the quadrics of the boundary edges at each vertex, (V, 3) and (F, 3) -> (V, 10); see `BORDER_WEIGHT`."""
    opposite, _ = pair_half_edges(faces, len(points))
    half_edges = np.flatnonzero(opposite == NO_OPPOSITE)
    start, end = (each[half_edges] for each in half_edge_ends(faces))
    corners = points[faces[half_edges // 3]]
    face_normal = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    along = points[end] - points[start]
    across = np.cross(along, face_normal)
    across /= np.maximum(np.linalg.norm(across, axis=1), 1e-300)[:, None]
    plane = np.concatenate([across, -np.einsum("ei,ei->e", across, points[start])[:, None]], axis=1)  # (E, 4)
    first, second = np.triu_indices(4)
    per_edge = plane[:, first] * plane[:, second] * (BORDER_WEIGHT * (along**2).sum(axis=1))[:, None]  # (E, 10)
    return _sum_at_corners(per_edge, np.stack([start, end], axis=1), len(points))


def _sum_at_corners(values: NDArray[np.float64], corners: NDArray[np.integer], vertices: int) -> NDArray[np.float64]:
    """Sum at each vertex of the values of its faces or edges, in their order: (F, C), (F, K) -> (V, C)."""
    count, ends = corners.shape
    at_corner = csr_matrix(
        (np.ones(corners.size), corners.ravel(), np.arange(0, corners.size + 1, ends)), shape=(count, vertices)
    )
    return at_corner.T @ values


# The kernels below are annotated but have no explicit numba signature: a signature would compile at import, and nothing
# happens at import here. They compile at the first call and are cached on disk.


@njit(cache=True, nogil=True, error_model="numpy")
def _add_quadrics(
    points: NDArray[np.float64],  # (V, 3)
    faces: NDArray[np.int32],  # (F, 3)
    quadrics: NDArray[np.float64],  # (V, 10) written
) -> None:
    """Add the faces' quadrics at each vertex.

    The ten numbers are the upper triangle, row by row, of the symmetric 4 x 4 matrix of the quadratic form on
    (x, y, z, 1). Each face adds a third of its area times its squared distance (Garland and Heckbert weight all faces
    equally; area weights make the result independent of the tessellation).
    """
    plane = np.empty(4)
    for f in range(len(faces)):
        a, b, c = faces[f, 0], faces[f, 1], faces[f, 2]
        x, y, z = points[a, 0], points[a, 1], points[a, 2]
        ux, uy, uz = points[b, 0] - x, points[b, 1] - y, points[b, 2] - z
        vx, vy, vz = points[c, 0] - x, points[c, 1] - y, points[c, 2] - z
        nx, ny, nz = uy * vz - uz * vy, uz * vx - ux * vz, ux * vy - uy * vx
        double_area = np.sqrt(nx * nx + ny * ny + nz * nz)
        scale = 1 / max(double_area, 1e-300)
        plane[0], plane[1], plane[2] = nx * scale, ny * scale, nz * scale
        plane[3] = -(plane[0] * x + plane[1] * y + plane[2] * z)
        weight = double_area / 6  # a third of the area
        for corner in range(3):
            v = faces[f, corner]
            k = 0
            for i in range(4):
                for j in range(i, 4):
                    quadrics[v, k] += weight * plane[i] * plane[j]
                    k += 1
            # The quadric of STAY_WEIGHT * weight * |x - point|^2.
            stay = STAY_WEIGHT * weight
            x, y, z = points[v, 0], points[v, 1], points[v, 2]
            quadrics[v, 0] += stay
            quadrics[v, 3] -= stay * x
            quadrics[v, 4] += stay
            quadrics[v, 6] -= stay * y
            quadrics[v, 7] += stay
            quadrics[v, 8] -= stay * z
            quadrics[v, 9] += stay * (x * x + y * y + z * z)


@njit(cache=True, error_model="numpy")
def _error(
    q: NDArray[np.float64],  # (10,)
    x: float,
    y: float,
    z: float,
) -> float:
    """Value of a quadric at a point."""
    return (
        q[0] * x * x + 2 * q[1] * x * y + 2 * q[2] * x * z + 2 * q[3] * x
        + q[4] * y * y + 2 * q[5] * y * z + 2 * q[6] * y
        + q[7] * z * z + 2 * q[8] * z
        + q[9]
    )  # fmt: skip


@njit(cache=True, error_model="numpy")
def _best_point(
    q: NDArray[np.float64],  # (10,)
    p: NDArray[np.float64],  # (3,)
    r: NDArray[np.float64],  # (3,)
) -> tuple[float, float, float, float]:
    """Position for the collapse of the edge p r: x, y, z and the quadric's value there, not below 0."""
    a, b, c, d, e, f = q[0], q[1], q[2], q[4], q[5], q[7]
    # Cramer's rule: i, j, k and m, n, o are cofactors of the symmetric matrix ((a, b, c), (b, d, e), (c, e, f)).
    i, j, k = d * f - e * e, c * e - b * f, b * e - c * d
    det = a * i + b * j + c * k
    size = a + d + f
    if det > MIN_CONDITION * size * size * size:
        o, m, n = a * f - c * c, b * c - a * e, a * d - b * b
        x = -(i * q[3] + j * q[6] + k * q[8]) / det
        y = -(j * q[3] + o * q[6] + m * q[8]) / det
        z = -(k * q[3] + m * q[6] + n * q[8]) / det
        length2 = (p[0] - r[0]) ** 2 + (p[1] - r[1]) ** 2 + (p[2] - r[2]) ** 2
        mx, my, mz = (p[0] + r[0]) / 2, (p[1] + r[1]) / 2, (p[2] + r[2]) / 2
        # Accept the minimum within two edge lengths of the midpoint. Almost parallel planes meet far away: there the
        # minimum is exact and useless.
        if (x - mx) ** 2 + (y - my) ** 2 + (z - mz) ** 2 < 4 * length2:
            return x, y, z, max(_error(q, x, y, z), 0.0)
    # As in the paper, fall back to the best of both ends and the midpoint; the midpoint wins ties.
    x, y, z = (p[0] + r[0]) / 2, (p[1] + r[1]) / 2, (p[2] + r[2]) / 2
    error = _error(q, x, y, z)
    at_p, at_r = _error(q, p[0], p[1], p[2]), _error(q, r[0], r[1], r[2])
    if at_p < error and at_p <= at_r:
        return p[0], p[1], p[2], max(at_p, 0.0)
    if at_r < error:
        return r[0], r[1], r[2], max(at_r, 0.0)
    return x, y, z, max(error, 0.0)  # rounding gives values just below 0


@njit(cache=True, error_model="numpy")
def _placement(
    q: NDArray[np.float64],  # (10,)
    points: NDArray[np.float64],  # (V, 3)
    border: NDArray[np.bool_],  # (V,)
    u: int,
    v: int,
) -> tuple[float, float, float, float]:
    """Position for the collapse of the edge u v: a boundary's vertex stays where it is if the other is none."""
    if border[u] == border[v]:
        return _best_point(q, points[u], points[v])
    w = u if border[u] else v
    x, y, z = points[w, 0], points[w, 1], points[w, 2]
    return x, y, z, max(_error(q, x, y, z), 0.0)


@njit(cache=True, error_model="numpy")
def _sift_down(
    cost: NDArray[np.float64],  # (N,)
    item: NDArray[np.int32],  # (N,)
    size: int,
    at: int,
) -> None:
    """Restore the binary heap of `size` entries below index `at`."""
    # Invariant: the entry (c, e) belongs at `at` or below; every other parent costs at most as much as its children.
    c, e = cost[at], item[at]
    while True:
        child = 2 * at + 1
        if child >= size:
            break
        if child + 1 < size and cost[child + 1] < cost[child]:
            child += 1
        if cost[child] >= c:
            break
        cost[at], item[at] = cost[child], item[child]
        at = child
    cost[at], item[at] = c, e


@njit(cache=True, error_model="numpy")
def _sift_up(
    cost: NDArray[np.float64],  # (N,)
    item: NDArray[np.int32],  # (N,)
    at: int,
) -> None:
    """Restore the binary heap above index `at`."""
    c, e = cost[at], item[at]
    while at > 0:
        parent = (at - 1) // 2
        if cost[parent] <= c:
            break
        cost[at], item[at] = cost[parent], item[parent]
        at = parent
    cost[at], item[at] = c, e


@njit(cache=True, error_model="numpy")
def _neighbours(
    v: int,
    faces: NDArray[np.int32],  # (F, 3)
    alive: NDArray[np.bool_],  # (F,)
    head: NDArray[np.int32],  # (V,)
    next_corner: NDArray[np.int32],  # (3F,)
    stamp: NDArray[np.int64],  # (V,) mark of the last visit
    mark: int,
    out: NDArray[np.int32],  # (R,)
) -> int:
    """Write the vertices adjacent to v, each once, to `out` and set their stamp to `mark`.

    Removes dead faces from v's list of corners.

    Returns:
        The number of adjacent vertices; those beyond `len(out)` are counted but not written.
    """
    count = 0
    last = -1  # the last living corner of the list so far
    corner = head[v]
    while corner >= 0:
        f = corner // 3
        after = next_corner[corner]
        if not alive[f]:  # unlink it, so that lists do not grow with the number of collapses
            if last < 0:
                head[v] = after
            else:
                next_corner[last] = after
            corner = after
            continue
        for k in range(3):
            w = faces[f, k]
            if w != v and stamp[w] != mark:
                stamp[w] = mark
                if count < len(out):
                    out[count] = w
                count += 1
        last = corner
        corner = after
    return count


@njit(cache=True, error_model="numpy")
def _faces_at_edge(
    u: int,
    v: int,
    faces: NDArray[np.int32],  # (F, 3)
    alive: NDArray[np.bool_],  # (F,)
    head: NDArray[np.int32],  # (V,)
    next_corner: NDArray[np.int32],  # (3F,)
) -> int:
    """Number of living faces with both vertices."""
    count = 0
    corner = head[u]
    while corner >= 0:
        f = corner // 3
        if alive[f] and (faces[f, 0] == v or faces[f, 1] == v or faces[f, 2] == v):
            count += 1
        corner = next_corner[corner]
    return count


@njit(cache=True, error_model="numpy")
def _flips_or_degenerates(
    v: int,
    other: int,
    x: float,
    y: float,
    z: float,
    points: NDArray[np.float64],  # (V, 3)
    faces: NDArray[np.int32],  # (F, 3)
    alive: NDArray[np.bool_],  # (F,)
    head: NDArray[np.int32],  # (V,)
    next_corner: NDArray[np.int32],  # (3F,)
    least_cosine: float,
    least_quality: float,
) -> bool:
    """Whether moving v to (x, y, z) flips a face of v or makes it a sliver.

    Faces that contain `other`, the edge's second vertex, are skipped: the collapse removes them.
    """
    corner = head[v]
    while corner >= 0:
        f = corner // 3
        if alive[f]:
            k = corner % 3
            b, c = faces[f, (k + 1) % 3], faces[f, (k + 2) % 3]
            if b != other and c != other:
                # The edge b c stays; o and n are v's old and new position relative to b.
                bx, by, bz = points[b, 0], points[b, 1], points[b, 2]
                ex, ey, ez = points[c, 0] - bx, points[c, 1] - by, points[c, 2] - bz
                ox, oy, oz = points[v, 0] - bx, points[v, 1] - by, points[v, 2] - bz
                nx, ny, nz = x - bx, y - by, z - bz
                # Cross products: normals of length twice the area, before and after.
                o0, o1, o2 = ey * oz - ez * oy, ez * ox - ex * oz, ex * oy - ey * ox
                n0, n1, n2 = ey * nz - ez * ny, ez * nx - ex * nz, ex * ny - ey * nx
                old2, new2 = o0 * o0 + o1 * o1 + o2 * o2, n0 * n0 + n1 * n1 + n2 * n2
                dot = o0 * n0 + o1 * n1 + o2 * n2
                if new2 < MIN_CROSS2 or dot < least_cosine * np.sqrt(old2 * new2):
                    return True
                # Quality: 4 sqrt(3) area / (sum of squared sides), 1 for an equilateral triangle.
                sides = (
                    ex * ex + ey * ey + ez * ez + nx * nx + ny * ny + nz * nz
                    + (nx - ex) ** 2 + (ny - ey) ** 2 + (nz - ez) ** 2
                )  # fmt: skip
                if 2 * SQRT_3 * np.sqrt(new2) < least_quality * sides:
                    return True
        corner = next_corner[corner]
    return False


@njit(cache=True, error_model="numpy")
def _drop_outdated(
    cost: NDArray[np.float64],  # (N,)
    item: NDArray[np.int32],  # (N,) entry of each place of the heap
    size: int,
    first: NDArray[np.int32],  # (N,) vertex, by entry
    second: NDArray[np.int32],  # (N,) vertex, by entry
    entry_version: NDArray[np.int32],  # (N,) by entry
    version: NDArray[np.int32],  # (V,)
    head: NDArray[np.int32],  # (V,)
    free: NDArray[np.int32],  # (N,) stack of unused entries
    free_count: int,
) -> tuple[int, int]:
    """Remove outdated entries from the heap and restore it.

    Returns:
        The heap's size and the number of free slots.
    """
    kept = 0
    for at in range(size):
        entry = item[at]
        u, v = first[entry], second[entry]
        if head[u] >= 0 and head[v] >= 0 and version[u] + version[v] == entry_version[entry]:
            cost[kept], item[kept] = cost[at], entry
            kept += 1
        else:
            free[free_count] = entry
            free_count += 1
    for at in range(kept // 2 - 1, -1, -1):  # Floyd's construction: linear time
        _sift_down(cost, item, kept, at)
    return kept, free_count


@njit(cache=True, nogil=True, error_model="numpy")
def _collapse(
    state: _State,
    floor: int,
    max_cost: float,
    least_cosine: float,
    least_quality: float,
) -> bool:
    """Collapse edges, the cheapest first, until at most `floor` faces are alive or every cheaper collapse is rejected.

    Returns:
        Whether `floor` was reached.
    """
    points, faces, alive, quadrics = state.points, state.faces, state.alive, state.quadrics
    locked, border, head, next_corner = state.locked, state.border, state.head, state.next_corner
    version, stamp, cost, item = state.version, state.stamp, state.cost, state.item
    first, second, entry_version, free = state.first, state.second, state.entry_version, state.free
    faces_left, size, used, free_count, mark = state.counts
    room = len(cost)
    ring = np.empty(MAX_RING, np.int32)
    others = np.empty(MAX_RING, np.int32)
    both = np.empty(10)
    if mark == 0:  # the first call: make the lists of corners and the heap
        for corner in range(3 * len(faces)):
            v = faces[corner // 3, corner % 3]
            next_corner[corner] = head[v]
            head[v] = corner
        for entry in range(used):
            u, v = first[entry], second[entry]
            for k in range(10):
                both[k] = quadrics[u, k] + quadrics[v, k]
            cost[entry], item[entry] = _placement(both, points, border, u, v)[3], entry
        size = used
        for at in range(size // 2 - 1, -1, -1):  # Floyd's construction: linear time
            _sift_down(cost, item, size, at)
        mark = 1

    # Invariants: the living faces form the same topology as the input; `points` and `quadrics` are right for every
    # vertex that is left; every edge between unlocked vertices has one current entry, unless it was rejected.
    while faces_left > floor and size > 0 and cost[0] <= max_cost:
        entry = item[0]
        size -= 1
        if size > 0:
            cost[0], item[0] = cost[size], item[size]
            _sift_down(cost, item, size, 0)
        u, v, expected = int(first[entry]), int(second[entry]), entry_version[entry]
        free[free_count] = entry
        free_count += 1
        if head[u] < 0 or head[v] < 0 or version[u] + version[v] != expected:
            continue

        mark += 1
        around_u = _neighbours(u, faces, alive, head, next_corner, stamp, mark, ring)
        around_v = _neighbours(v, faces, alive, head, next_corner, stamp, mark + 1, others)
        if around_u > len(ring) or around_v > len(others):
            mark += 1
            continue
        mark += 1
        # `stamp` now marks v's neighbours. Link condition: u and v share exactly the vertices opposite the edge.
        # More common neighbours mean a collapse that pinches the surface; a tetrahedron must stay one.
        common = 0
        for k in range(around_u):
            if stamp[ring[k]] == mark:
                common += 1
        # An edge between two vertices of boundaries either lies on a boundary, with one face, or must stay: without it
        # the surface would hang together at a vertex. A single triangle must stay one.
        at_edge = 2
        if border[u] and border[v]:
            at_edge = _faces_at_edge(u, v, faces, alive, head, next_corner)
            if at_edge != 1 or (around_u == 2 and around_v == 2):
                continue
        if common != at_edge or (around_u == 3 and around_v == 3 and not (border[u] or border[v])):
            continue
        for k in range(10):
            both[k] = quadrics[u, k] + quadrics[v, k]
        x, y, z, _ = _placement(both, points, border, u, v)
        if _flips_or_degenerates(
            u, v, x, y, z, points, faces, alive, head, next_corner, least_cosine, least_quality
        ) or _flips_or_degenerates(v, u, x, y, z, points, faces, alive, head, next_corner, least_cosine, least_quality):
            continue

        # Merge v into u: append v's corners to u's list, replace v by u in its faces, remove the two faces with both.
        last = head[u]
        while next_corner[last] >= 0:
            last = next_corner[last]
        next_corner[last] = head[v]
        corner = head[v]
        while corner >= 0:
            f = corner // 3
            after = next_corner[corner]
            if alive[f]:
                if faces[f, 0] == u or faces[f, 1] == u or faces[f, 2] == u:
                    alive[f] = False
                    faces_left -= 1
                else:
                    faces[f, corner % 3] = u
            corner = after
        head[v] = -1
        points[u, 0], points[u, 1], points[u, 2] = x, y, z
        border[u] = border[u] or border[v]
        for k in range(10):
            quadrics[u, k] = both[k]
        # The entries of all edges at u and v become outdated. The new version exceeds both old ones, and versions only
        # grow, so no old sum can match again.
        version[u] = version[u] + version[v] + 1
        mark += 1
        around = _neighbours(u, faces, alive, head, next_corner, stamp, mark, ring)
        if size + around > room:  # outdated entries fill the heap
            size, free_count = _drop_outdated(
                cost, item, size, first, second, entry_version, version, head, free, free_count
            )
        for k in range(min(around, len(ring))):
            w = ring[k]
            if locked[w] or locked[u]:
                continue
            for j in range(10):
                both[j] = quadrics[u, j] + quadrics[w, j]
            if free_count > 0:
                free_count -= 1
                slot = free[free_count]
            else:
                slot = used
                used += 1
            first[slot], second[slot], entry_version[slot] = u, w, version[u] + version[w]
            cost[size], item[size] = _placement(both, points, border, u, w)[3], slot
            size += 1
            _sift_up(cost, item, size - 1)
    state.counts[0], state.counts[1], state.counts[2] = faces_left, size, used
    state.counts[3], state.counts[4] = free_count, mark
    return faces_left <= floor
