"""Mesh simplification by edge collapse in the order of quadric error. Knows nothing of textures.

Each vertex carries the sum of its faces' quadrics; an edge collapses to the point that minimises the sum of its two
quadrics. A collapse is rejected if it violates the link condition, flips a face or creates a sliver. A closed manifold
therefore stays a closed manifold, and a manifold with boundaries keeps their number.

Boundaries hold by quadrics of planes through their edges, perpendicular to the faces, as in the paper; and an interior
vertex that collapses into a boundary takes the place of the boundary's vertex.

Departures from the paper: the face count is a hard target, reached by relaxing the rejections in steps; each quadric
has a weak term that pulls the vertex to its old position, which makes the minimum unique on planes and along straight
edges.

Source: Garland and Heckbert, "Surface simplification using quadric error metrics", SIGGRAPH 97; Dey, Edelsbrunner,
Guha, Nekhayev, "Topology preserving edge contraction", 1999 (the link condition).
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

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
SQRT_3 = 1.7320508  # further digits would change which collapses are rejected, and so the output's bytes


def simplify(mesh: TriMesh, *, target_faces: int) -> TriMesh:
    """Collapse edges until at most `target_faces` faces are left.

    Args:
        mesh: a manifold, (V, 3) vertices and (F, 3) faces; it may have boundaries.
        target_faces: number of faces to keep; a closed component keeps at least 4, one with a boundary at least 1.

    Returns:
        A mesh with `target_faces` faces, or one fewer; more if the topology does not allow that. The input itself if
        it is small enough already.
    """
    if len(mesh.faces) <= max(target_faces, LEAST_FACES):
        return mesh
    # Work in units of the bounding box's diagonal, so that the thresholds do not depend on the mesh's scale.
    low, high = mesh.bounds()
    scale = float(np.linalg.norm(high - low)) or 1.0
    points = (mesh.vertices.astype(np.float64) - low) / scale
    faces = mesh.faces.astype(np.int32).copy()
    quadrics = _quadrics(points, faces)
    edges, face_counts = _edges(faces)
    border = np.zeros(len(points), np.bool_)
    border[edges[face_counts == 1].ravel()] = True
    if border.any():
        quadrics += _border_quadrics(points, faces)
    locked = np.zeros(len(points), np.bool_)
    locked[edges[face_counts > 2].ravel()] = True
    alive = np.ones(len(faces), np.bool_)
    for least_cosine, least_quality in STRICTNESS:
        # Faces and quadrics carry over to the next round; the heap is rebuilt from the edges that are left.
        _collapse(points, faces, alive, quadrics, edges, locked, border, target_faces, least_cosine, least_quality)
        if alive.sum() <= target_faces:
            break
        edges, _ = _edges(faces[alive])  # (F, 3) -> (E, 2)
    kept = faces[alive]
    used, numbers = np.unique(kept, return_inverse=True)
    vertices = (points[used] * scale + low).astype(np.float32)
    # The conversion to float32 may make two vertices equal; readers that merge equal vertices would join them.
    return separate_coincident_vertices(TriMesh(vertices, numbers.reshape(-1, 3).astype(np.int32)))


def _edges(faces: NDArray[np.int32]) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """Each edge once, (E, 2) from (F, 3) faces, and its number of faces, (E,)."""
    pairs = np.sort(faces[:, [0, 1, 1, 2, 2, 0]].reshape(-1, 2), axis=1)  # (F, 3) -> (3F, 2)
    keys = pairs[:, 0].astype(np.int64) << 32 | pairs[:, 1]  # one int64 sorts faster than two columns
    unique, counts = np.unique(keys, return_counts=True)
    return np.stack([unique >> 32, unique & 0xFFFFFFFF], axis=1).astype(np.int32), counts


def _quadrics(points: NDArray[np.float64], faces: NDArray[np.int32]) -> NDArray[np.float64]:
    """Sum of the faces' quadrics at each vertex, (V, 3) and (F, 3) -> (V, 10).

    The ten numbers are the upper triangle, row by row, of the symmetric 4 x 4 matrix of the quadratic form on
    (x, y, z, 1). Each face adds a third of its area times its squared distance (Garland and Heckbert weight all faces
    equally; area weights make the result independent of the tessellation).
    """
    corners = points[faces]
    cross = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    double_area = np.linalg.norm(cross, axis=1)
    normal = cross / np.maximum(double_area, 1e-300)[:, None]
    offset = -np.einsum("fi,fi->f", normal, corners[:, 0])
    plane = np.concatenate([normal, offset[:, None]], axis=1)  # (F, 4)
    first, second = np.triu_indices(4)
    per_face = plane[:, first] * plane[:, second] * (double_area / 6)[:, None]  # (F, 10): a third of the area each
    quadrics = np.empty((len(points), 10))
    flat = faces.ravel()
    for k in range(10):  # bincount adds in the order of the faces, so the sums are reproducible
        quadrics[:, k] = np.bincount(flat, weights=np.repeat(per_face[:, k], 3), minlength=len(points))
    weight = STAY_WEIGHT * np.bincount(flat, weights=np.repeat(double_area / 6, 3), minlength=len(points))
    # The quadric of weight * |x - point|^2.
    stay = np.stack(
        [
            weight,
            np.zeros_like(weight),
            np.zeros_like(weight),
            -weight * points[:, 0],
            weight,
            np.zeros_like(weight),
            -weight * points[:, 1],
            weight,
            -weight * points[:, 2],
            weight * (points**2).sum(axis=1),
        ],
        axis=1,
    )
    return quadrics + stay


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
    quadrics = np.empty((len(points), 10))
    ends = np.concatenate([start, end])
    for k in range(10):
        quadrics[:, k] = np.bincount(ends, weights=np.tile(per_edge[:, k], 2), minlength=len(points))
    return quadrics


# The kernels below are annotated but have no explicit numba signature: a signature would compile at import, and nothing
# happens at import here. They compile at the first call and are cached on disk.


@njit(cache=True, inline="always")
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


@njit(cache=True)
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


@njit(cache=True)
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


@njit(cache=True)
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


@njit(cache=True)
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


@njit(cache=True)
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


@njit(cache=True)
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


@njit(cache=True)
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


@njit(cache=True)
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


@njit(cache=True)
def _collapse(
    points: NDArray[np.float64],  # (V, 3)
    faces: NDArray[np.int32],  # (F, 3)
    alive: NDArray[np.bool_],  # (F,) faces that are left
    quadrics: NDArray[np.float64],  # (V, 10)
    edges: NDArray[np.int32],  # (E, 2)
    locked: NDArray[np.bool_],  # (V,) vertices that neither move nor vanish
    border: NDArray[np.bool_],  # (V,) vertices on boundaries
    target: int,
    least_cosine: float,
    least_quality: float,
) -> None:
    """Collapse edges, the cheapest first, until at most `target` faces are alive or every collapse is rejected.

    Changes `points`, `faces`, `alive`, `quadrics` and `border`.
    """
    # The faces of a vertex are a linked list of corners 3 f + k: `head[v]` is the first, `next_corner` the rest, -1
    # ends it. A removed vertex has `head` -1.
    vertices = len(points)
    head = np.full(vertices, -1, np.int32)
    next_corner = np.full(3 * len(faces), -1, np.int32)
    faces_left = 0
    for f in range(len(faces)):
        if not alive[f]:
            continue
        faces_left += 1
        for k in range(3):
            v = faces[f, k]
            next_corner[3 * f + k] = head[v]
            head[v] = 3 * f + k

    # The heap never decreases a cost: a changed edge gets a new entry, and the old one is skipped when it is popped.
    # An entry is outdated if an end was removed or the sum of its ends' versions has changed.
    version = np.zeros(vertices, np.int32)
    stamp = np.full(vertices, -1, np.int64)
    mark = 0
    ring = np.empty(MAX_RING, np.int32)
    others = np.empty(MAX_RING, np.int32)
    both = np.empty(10)
    room = 2 * len(edges) + len(ring)  # half of a full heap is outdated, so a clean-up is rare and frees enough
    first = np.empty(room, np.int32)
    second = np.empty(room, np.int32)
    entry_version = np.empty(room, np.int32)  # sum of both ends' versions when the entry was made
    cost = np.empty(room)
    item = np.empty(room, np.int32)
    free = np.empty(room, np.int32)
    free_count = 0
    used = 0
    size = 0
    for e in range(len(edges)):
        u, v = edges[e, 0], edges[e, 1]
        if locked[u] or locked[v]:
            continue
        for k in range(10):
            both[k] = quadrics[u, k] + quadrics[v, k]
        first[used], second[used], entry_version[used] = u, v, 0
        cost[size], item[size] = _placement(both, points, border, u, v)[3], used
        used += 1
        size += 1
    for at in range(size // 2 - 1, -1, -1):
        _sift_down(cost, item, size, at)

    # Invariants: the living faces form the same topology as the input; `points` and `quadrics` are right for every
    # vertex that is left; every edge between unlocked vertices has one current entry, unless it was rejected.
    while faces_left > target and size > 0:
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
