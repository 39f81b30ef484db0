"""Fewer triangles, the same body: edge collapses in the order of the error that they make.

Each vertex carries the quadric of the planes that it stands for; an edge is collapsed to the point where both quadrics
together are least. A collapse is refused where it would join sheets that only touch (the link condition), turn a face
over, or make a needle. So a closed manifold stays one, and the requested number is met.

Sources: Garland and Heckbert, "Surface simplification using quadric error metrics", SIGGRAPH 97; Dey, Edelsbrunner,
Guha, Nekhayev, "Topology preserving edge contraction", 1999. Knows nothing of texture.
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

from pipeline.mesh.clean import separate
from pipeline.mesh.tri_mesh import TriMesh

LEAST_FACES = 4
# Refusals in turn, each tried only when the one before leaves too many faces: the least cosine between a face's normal
# before and after, and the least quality of a face (1 is equilateral).
STRICTNESS = ((0.2, 0.005), (0.0, 0.0), (-0.5, 0.0))


def simplify(mesh: TriMesh, *, target_faces: int) -> TriMesh:
    """Collapse edges until at most `target_faces` faces are left.

    Args:
        mesh: a manifold; borders, if it has any, stay as they are.
        target_faces: how many faces to keep; at least 4 a body are left.

    Returns:
        A mesh with `target_faces` faces, or one fewer; more where the topology of the bodies does not allow that.
        The input itself when it is small enough already.
    """
    if len(mesh.faces) <= max(target_faces, LEAST_FACES):
        return mesh
    # Sizes in units of the box's diagonal, so that no threshold depends on metres.
    low, high = mesh.bounds()
    scale = float(np.linalg.norm(high - low)) or 1.0
    points = (mesh.vertices.astype(np.float64) - low) / scale
    faces = mesh.faces.astype(np.int32).copy()
    quadrics = _quadrics(points, faces)
    alive = np.ones(len(faces), np.bool_)
    for least_cosine, least_quality in STRICTNESS:
        edges, is_border = _edges(faces[alive])
        locked = np.zeros(len(points), np.bool_)
        locked[edges[is_border].ravel()] = True
        _collapse(points, faces, alive, quadrics, edges, locked, target_faces, least_cosine, least_quality)
        if alive.sum() <= target_faces:
            break
    kept = faces[alive]
    used, numbers = np.unique(kept, return_inverse=True)
    vertices = (points[used] * scale + low).astype(np.float32)
    return separate(TriMesh(vertices, numbers.reshape(-1, 3).astype(np.int32)))


def _edges(faces: NDArray[np.int32]) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
    """Every edge once, (E, 2), and whether it has other than two faces."""
    pairs = np.sort(faces[:, [0, 1, 1, 2, 2, 0]].reshape(-1, 2), axis=1)
    keys = pairs[:, 0].astype(np.int64) << 32 | pairs[:, 1]
    unique, counts = np.unique(keys, return_counts=True)
    return np.stack([unique >> 32, unique & 0xFFFFFFFF], axis=1).astype(np.int32), counts != 2


def _quadrics(points: NDArray[np.float64], faces: NDArray[np.int32]) -> NDArray[np.float64]:
    """The sum of the faces' quadrics at each vertex, (V, 10): a symmetric 3 x 3, a vector and a constant.

    Weighted by area. A trace of "stay where you are" keeps the least defined on planes.
    """
    corners = points[faces]
    cross = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    double_area = np.linalg.norm(cross, axis=1)
    normal = cross / np.maximum(double_area, 1e-300)[:, None]
    offset = -np.einsum("fi,fi->f", normal, corners[:, 0])
    plane = np.concatenate([normal, offset[:, None]], axis=1)
    first, second = np.triu_indices(4)
    per_face = plane[:, first] * plane[:, second] * (double_area / 6)[:, None]
    quadrics = np.empty((len(points), 10))
    flat = faces.ravel()
    for k in range(10):
        quadrics[:, k] = np.bincount(flat, weights=np.repeat(per_face[:, k], 3), minlength=len(points))
    weight = 1e-6 * np.bincount(flat, weights=np.repeat(double_area / 6, 3), minlength=len(points))
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


@njit(cache=True, inline="always")
def _error(q, x, y, z):  # type: ignore[no-untyped-def]
    """The quadric's value at a point."""
    return (
        q[0] * x * x + 2 * q[1] * x * y + 2 * q[2] * x * z + 2 * q[3] * x
        + q[4] * y * y + 2 * q[5] * y * z + 2 * q[6] * y
        + q[7] * z * z + 2 * q[8] * z
        + q[9]
    )  # fmt: skip


@njit(cache=True)
def _best_point(q, p, r):  # type: ignore[no-untyped-def]
    """Where between and around p and r the quadric is least: x, y, z and the error there."""
    a, b, c, d, e, f = q[0], q[1], q[2], q[4], q[5], q[7]
    i, j, k = d * f - e * e, c * e - b * f, b * e - c * d
    det = a * i + b * j + c * k
    size = a + d + f
    if det > 1e-12 * size * size * size:
        o, m, n = a * f - c * c, b * c - a * e, a * d - b * b
        x = -(i * q[3] + j * q[6] + k * q[8]) / det
        y = -(j * q[3] + o * q[6] + m * q[8]) / det
        z = -(k * q[3] + m * q[6] + n * q[8]) / det
        length2 = (p[0] - r[0]) ** 2 + (p[1] - r[1]) ** 2 + (p[2] - r[2]) ** 2
        mx, my, mz = (p[0] + r[0]) / 2, (p[1] + r[1]) / 2, (p[2] + r[2]) / 2
        if (x - mx) ** 2 + (y - my) ** 2 + (z - mz) ** 2 < 4 * length2:
            return x, y, z, max(_error(q, x, y, z), 0.0)
    x, y, z = (p[0] + r[0]) / 2, (p[1] + r[1]) / 2, (p[2] + r[2]) / 2
    error = _error(q, x, y, z)
    at_p, at_r = _error(q, p[0], p[1], p[2]), _error(q, r[0], r[1], r[2])
    if at_p < error and at_p <= at_r:
        return p[0], p[1], p[2], max(at_p, 0.0)
    if at_r < error:
        return r[0], r[1], r[2], max(at_r, 0.0)
    return x, y, z, max(error, 0.0)


@njit(cache=True)
def _sift_down(cost, item, size, at):  # type: ignore[no-untyped-def]
    """Restore the heap below a place."""
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
def _sift_up(cost, item, at):  # type: ignore[no-untyped-def]
    """Restore the heap above a place."""
    c, e = cost[at], item[at]
    while at > 0:
        parent = (at - 1) // 2
        if cost[parent] <= c:
            break
        cost[at], item[at] = cost[parent], item[parent]
        at = parent
    cost[at], item[at] = c, e


@njit(cache=True)
def _neighbours(v, faces, alive, head, next_corner, stamp, mark, out):  # type: ignore[no-untyped-def]
    """The vertices around v, each once, into `out`; marks them with `mark`. Drops dead faces from v's list."""
    count = 0
    last = -1
    corner = head[v]
    while corner >= 0:
        f = corner // 3
        after = next_corner[corner]
        if not alive[f]:
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
def _flips_or_degenerates(v, other, x, y, z, points, faces, alive, head, next_corner, least_cosine, least_quality):  # type: ignore[no-untyped-def]
    """Whether moving v to (x, y, z) turns a face of v over or makes a needle; faces with `other` go anyway."""
    corner = head[v]
    while corner >= 0:
        f = corner // 3
        if alive[f]:
            k = corner % 3
            b, c = faces[f, (k + 1) % 3], faces[f, (k + 2) % 3]
            if b != other and c != other:
                bx, by, bz = points[b, 0], points[b, 1], points[b, 2]
                ex, ey, ez = points[c, 0] - bx, points[c, 1] - by, points[c, 2] - bz
                ox, oy, oz = points[v, 0] - bx, points[v, 1] - by, points[v, 2] - bz
                nx, ny, nz = x - bx, y - by, z - bz
                o0, o1, o2 = ey * oz - ez * oy, ez * ox - ex * oz, ex * oy - ey * ox
                n0, n1, n2 = ey * nz - ez * ny, ez * nx - ex * nz, ex * ny - ey * nx
                old2, new2 = o0 * o0 + o1 * o1 + o2 * o2, n0 * n0 + n1 * n1 + n2 * n2
                dot = o0 * n0 + o1 * n1 + o2 * n2
                if new2 < 1e-28 or dot < least_cosine * np.sqrt(old2 * new2):
                    return True
                sides = (
                    ex * ex + ey * ey + ez * ez + nx * nx + ny * ny + nz * nz
                    + (nx - ex) ** 2 + (ny - ey) ** 2 + (nz - ez) ** 2
                )  # fmt: skip
                if 2 * 1.7320508 * np.sqrt(new2) < least_quality * sides:
                    return True
        corner = next_corner[corner]
    return False


@njit(cache=True)
def _drop_degenerate(cost, item, size, first, second, entry_version, version, head, free, free_count):  # type: ignore[no-untyped-def]
    """Drop the heap's entries whose edge is no longer what it was; returns its size and the number of free slots."""
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
    for at in range(kept // 2 - 1, -1, -1):
        _sift_down(cost, item, kept, at)
    return kept, free_count


@njit(cache=True)
def _collapse(points, faces, alive, quadrics, edges, locked, target, least_cosine, least_quality):  # type: ignore[no-untyped-def]
    """Collapse edges, the cheapest first, until `target` faces are alive or no edge may go. Changes its arguments.

    Args:
        points: (V, 3) float64.
        faces: (F, 3) int32.
        alive: (F,) bool, faces that count.
        quadrics: (V, 10) float64.
        edges: (E, 2) int32.
        locked: (V,) bool, vertices that stay.
    """
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

    version = np.zeros(vertices, np.int32)
    stamp = np.full(vertices, -1, np.int64)
    mark = np.int64(0)
    ring = np.empty(4096, np.int32)
    others = np.empty(4096, np.int32)
    both = np.empty(10)
    room = 2 * len(edges) + len(ring)
    first = np.empty(room, np.int32)
    second = np.empty(room, np.int32)
    entry_version = np.empty(room, np.int32)  # the versions of both ends together, at the time of the entry
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
        cost[size], item[size] = _best_point(both, points[u], points[v])[3], used
        used += 1
        size += 1
    for at in range(size // 2 - 1, -1, -1):
        _sift_down(cost, item, size, at)

    while faces_left > target and size > 0:
        entry = item[0]
        size -= 1
        if size > 0:
            cost[0], item[0] = cost[size], item[size]
            _sift_down(cost, item, size, 0)
        u, v, expected = first[entry], second[entry], entry_version[entry]
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
        # `stamp` now tells v's neighbours; those of u among them must be the two corners opposite the edge.
        common = 0
        for k in range(around_u):
            if stamp[ring[k]] == mark:
                common += 1
        if common != 2 or (around_u == 3 and around_v == 3):
            continue
        for k in range(10):
            both[k] = quadrics[u, k] + quadrics[v, k]
        x, y, z, _ = _best_point(both, points[u], points[v])
        if _flips_or_degenerates(
            u, v, x, y, z, points, faces, alive, head, next_corner, least_cosine, least_quality
        ) or _flips_or_degenerates(v, u, x, y, z, points, faces, alive, head, next_corner, least_cosine, least_quality):
            continue

        # u takes over: v's faces become u's, those that had both die.
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
        for k in range(10):
            quadrics[u, k] = both[k]
        # Entries of u's and v's edges are void; a version that only grows tells them apart from new ones.
        version[u] = version[u] + version[v] + 1
        mark += 1
        around = _neighbours(u, faces, alive, head, next_corner, stamp, mark, ring)
        if size + around > room:
            size, free_count = _drop_degenerate(
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
            cost[size], item[size] = _best_point(both, points[u], points[w])[3], slot
            size += 1
            _sift_up(cost, item, size - 1)
