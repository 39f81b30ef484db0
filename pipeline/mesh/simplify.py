"""Mesh simplification by edge collapse in the order of quadric error. Knows nothing of textures.

Each vertex carries the sum of its faces' quadrics; an edge collapses to the point that minimises the sum of its two
quadrics. A collapse is rejected if it violates the link condition, flips a face or creates a sliver. A closed manifold
therefore stays a closed manifold, and a manifold with boundaries keeps their number.

Boundaries hold by quadrics of planes through their edges, perpendicular to the faces, as in the paper; and an interior
vertex that collapses into a boundary takes the place of the boundary's vertex.

Departures from the paper:
- Passes instead of one heap. A pass takes the cheapest edges and collapses those whose ends no earlier collapse of the
  pass has moved, so that every cost is exact when it is used. It visits edges of about the same cost in the order of
  the memory, which is that of space; the last pass visits them strictly by cost. The error is that of one heap.
- The face count is a hard target, reached by relaxing the rejections in steps.
- Each quadric has a weak term that pulls the vertex to its old position, which makes the minimum unique on planes and
  along straight edges.

Source: Garland and Heckbert, "Surface simplification using quadric error metrics", SIGGRAPH 97; Dey, Edelsbrunner,
Guha, Nekhayev, "Topology preserving edge contraction", 1999 (the link condition).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from pipeline.mesh.clean import separate_coincident_vertices
from pipeline.mesh.kernels import kernel
from pipeline.mesh.topology import NO_OPPOSITE, half_edge_ends, pair_half_edges
from pipeline.mesh.tri_mesh import TriMesh

LEAST_FACES = 4  # a tetrahedron, the smallest closed manifold
# (least cosine between a face's normal before and after, least face quality; 1 is equilateral), strictest first. A
# later pair is used only if the earlier ones left too many faces. They permit turns of 78, 90 and 120 degrees.
STRICTNESS = ((0.2, 0.005), (0.0, 0.0), (-0.5, 0.0))
# Weight of the pull towards the old position, relative to the faces' area: small enough not to move a vertex by a
# visible amount, large enough to make the quadric's matrix invertible in float64.
STAY_WEIGHT = 1e-6
MIN_CONDITION = 1e-12  # of the determinant, relative to the cube of the trace: below it, the solution is noise
MIN_CROSS2 = 1e-28  # square of twice a face's area, in squared diagonals of the bounding box: below it, degenerate
# Weight of a boundary edge's plane, relative to the square of the edge: an area of that many times the edge's square.
# Large enough that the boundary hardly moves, small enough that the faces around it still count in float64.
BORDER_WEIGHT = 100.0
SHARE, CLASSES = 0.3, 4
"""Share of the edges, the cheapest, that a pass takes; and how many classes of equal cost it visits one after another.
Of the heap's mean error, at a tenth of 527,000 faces: 1.00; with 2 classes 1.02, without 1.06; share 0.5 1.02."""
MOST_COLLAPSED = 0.45
"""Share of a pass's edges that collapse, at most; 0.3 to 0.35 is usual, for the ends of the others were moved."""
FINE_SHARE, FINE_BELOW, FINE_NEAR = 0.1, 30_000, 1.6
"""The share where fewer faces are left than that number, or than that multiple of the target. Such small meshes are
visited strictly by cost: without, 1,000 faces of 160,000 had a largest error of 1.2 to 1.3 times the heap's."""
GROWTH_BELOW = 0.2
"""Share of a pass's edges that collapse, below which the next pass takes twice as many: rejected edges stay cheap."""
LEAST_PROGRESS = 0.001
"""Of the faces to remove: a pass over all edges that removes a smaller share ends a step of `STRICTNESS`."""
CELL_BITS = 5  # of each coordinate: 15 bits in all, which numpy sorts in linear time
SQRT_3 = 1.7320508  # further digits would change which collapses are rejected, and so the output's bytes


@dataclass(eq=False)
class _Surface:
    """A mesh between two passes.

    Attributes:
        points: (V, 3), in diagonals of the bounding box.
        faces: (F, 3).
        quadrics: (V, 10), see `_add_quadrics`.
        border: (V,) whether a vertex lies on a boundary.
        locked: (V,) whether it is an end of an edge with more than two faces; it neither moves nor vanishes.
    """

    points: NDArray[np.float64]
    faces: NDArray[np.int32]
    quadrics: NDArray[np.float64]
    border: NDArray[np.bool_]
    locked: NDArray[np.bool_]


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
    surface = _surface_of((mesh.vertices.astype(np.float64) - low) / scale, mesh.faces.astype(np.int32))
    for strictness in STRICTNESS:
        growth = 1.0
        while len(surface.faces) > target_faces:
            before = len(surface.faces)
            is_fine = before <= max(FINE_BELOW, FINE_NEAR * target_faces)
            share = min(1.0, growth * (FINE_SHARE if is_fine else SHARE))
            tried = _run_pass(surface, target_faces, share, *strictness)
            removed = before - len(surface.faces)
            if share >= 1 and removed <= LEAST_PROGRESS * (before - target_faces):
                break
            if removed < 2 * GROWTH_BELOW * tried:
                growth *= 2
    _drop_unused(surface)
    vertices = (surface.points * scale + low).astype(np.float32)
    # The conversion to float32 may make two vertices equal; readers that merge equal vertices would join them.
    return separate_coincident_vertices(TriMesh(vertices, surface.faces))


def _surface_of(points: NDArray[np.float64], faces: NDArray[np.int32]) -> _Surface:
    """Order a mesh, (V, 3) in [0, 1] and (F, 3), by space, and compute its quadrics and boundaries."""
    points, faces = _in_order_of_space(points, faces)
    none = np.zeros(len(points), np.bool_)
    surface = _Surface(points, faces, np.zeros((len(points), 10)), none, none.copy())
    _add_quadrics(points, faces, surface.quadrics, np.empty(4))
    open_edges, non_manifold = _edges_without_two_faces(faces)
    surface.border[open_edges] = True
    surface.locked[non_manifold] = True
    if surface.border.any():
        surface.quadrics += _border_quadrics(points, faces)
    return surface


def _in_order_of_space(
    points: NDArray[np.float64], faces: NDArray[np.int32]
) -> tuple[NDArray[np.float64], NDArray[np.int32]]:
    """Order the vertices and faces along a space-filling curve: neighbours on the surface become so in memory.

    (V, 3) in [0, 1] and (F, 3) -> the same.
    """
    # Morton code: the bits of the three coordinates in turn.
    cells = np.minimum(points * 2**CELL_BITS, 2**CELL_BITS - 1).astype(np.uint16)  # (V, 3)
    code = np.zeros(len(points), np.uint16)
    for bit in range(CELL_BITS):
        for axis in range(3):
            code |= (cells[:, axis] >> bit & 1) << (3 * bit + axis)
    order = np.argsort(code, kind="stable")
    number = np.empty(len(points), np.int32)
    number[order] = np.arange(len(points), dtype=np.int32)
    faces = faces.take(np.argsort(code.take(faces[:, 0]), kind="stable"), axis=0)
    return points.take(order, axis=0), number.take(faces)


def _run_pass(surface: _Surface, target: int, share: float, least_cosine: float, least_quality: float) -> int:
    """Collapse edges among the cheapest `share` of all; see the module's text.

    Returns:
        The number of edges that were taken.
    """
    points, faces = surface.points, surface.faces
    starts, around = _faces_of_vertices(faces, len(points))
    # Every edge has a face, and is counted at its lower vertex.
    first, second = np.empty(len(around), np.int32), np.empty(len(around), np.int32)
    cost = np.empty(len(around), np.float32)
    seen_from, both = np.zeros(len(points), np.int32), np.empty(10)
    count = _price_edges(
        points, faces, surface.quadrics, surface.border, surface.locked, starts, around, seen_from, both, first,
        second, cost,
    )  # fmt: skip
    is_last = MOST_COLLAPSED * share * count >= (len(faces) - target) / 2  # then it may stop between two edges
    is_fine = is_last or len(faces) <= FINE_BELOW
    order = _order_of(cost[:count], share, classes=None if is_fine else CLASSES)
    alive, touched = np.ones(len(faces), np.bool_), np.zeros(len(points), np.bool_)
    stamp = np.full(len(points), -1, np.int32)
    _collapse(
        first.take(order), second.take(order), points, faces, surface.quadrics, surface.border, starts, around, alive,
        touched, stamp, both, target, least_cosine, least_quality,
    )  # fmt: skip
    surface.faces = faces.compress(alive, axis=0)
    if len(surface.faces) < len(points):  # half of the vertices are unused
        _drop_unused(surface)
    return len(order)


def _order_of(cost: NDArray[np.float32], share: float, *, classes: int | None) -> NDArray[np.intp]:
    """The cheapest share of the edges, (E,) -> (N,): by classes of about equal cost, or strictly by cost for None."""
    count = int(np.ceil(share * len(cost)))
    taken = np.flatnonzero(cost <= np.partition(cost, count - 1)[count - 1]) if count < len(cost) else np.arange(count)
    costs = cost[taken]
    if classes is None:
        return taken[np.argsort(costs, kind="stable")]
    bounds = np.quantile(costs[:: max(1, len(costs) // 4096)], np.arange(1, classes) / classes)
    return taken[np.argsort(np.searchsorted(bounds, costs).astype(np.uint8), kind="stable")]


def _drop_unused(surface: _Surface) -> None:
    """Drop the vertices without a face."""
    is_used = np.zeros(len(surface.points), np.bool_)
    is_used[surface.faces] = True
    number = np.cumsum(is_used, dtype=np.int32) - 1
    surface.faces = number.take(surface.faces)
    # `compress`: numpy takes several times as long for an index into rows.
    surface.points, surface.quadrics = (each.compress(is_used, axis=0) for each in (surface.points, surface.quadrics))
    surface.border, surface.locked = surface.border[is_used], surface.locked[is_used]


def _edges_without_two_faces(faces: NDArray[np.int32]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The edges with one face, (N, 2), and those with more than two, (M, 2), of faces (F, 3)."""
    following = faces.take([1, 2, 0], axis=1)
    keys = np.minimum(faces, following).astype(np.int64) << 32 | np.maximum(faces, following)
    keys = np.sort(keys, axis=None)  # one int64 sorts faster than two columns
    if len(keys) % 2 == 0 and (keys[::2] == keys[1::2]).all() and (keys[1:-1:2] != keys[2::2]).all():
        keys = keys[:0]  # the usual case: all have two
    unique, counts = np.unique(keys, return_counts=True)
    edges = np.stack([unique >> 32, unique & 0xFFFFFFFF], axis=1)
    return edges[counts == 1], edges[counts > 2]


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
    return _incidence(corners, vertices, np.float64).T @ values


def _incidence(corners: NDArray[np.integer], vertices: int, dtype: type) -> csr_matrix:
    """A row for each face or edge, with a one at each of its vertices: (F, K) -> (F, V)."""
    count, ends = corners.shape
    row_starts = np.arange(0, corners.size + 1, ends, dtype=np.int32)
    return csr_matrix((np.ones(corners.size, dtype), corners.ravel(), row_starts), shape=(count, vertices))


def _faces_of_vertices(faces: NDArray[np.int32], vertices: int) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Where the faces of each vertex begin in a list, (V + 1,), and the list of faces, ascending, (3F,)."""
    at_corner = _incidence(faces, vertices, np.int8).tocsc()
    return np.asarray(at_corner.indptr, np.int32), np.asarray(at_corner.indices, np.int32)


@kernel
def _add_quadrics(
    points: NDArray[np.float64],  # (V, 3)
    faces: NDArray[np.int32],  # (F, 3)
    quadrics: NDArray[np.float64],  # (V, 10) written
    equation: NDArray[np.float64],  # (4,) written
) -> None:
    """Add the faces' quadrics at each vertex.

    The ten numbers are the upper triangle, row by row, of the symmetric 4 x 4 matrix of the quadratic form on
    (x, y, z, 1). Each face adds a third of its area times its squared distance (Garland and Heckbert weight all faces
    equally; area weights make the result independent of the tessellation).
    """
    for f in range(len(faces)):
        a, b, c = faces[f, 0], faces[f, 1], faces[f, 2]
        x, y, z = points[a, 0], points[a, 1], points[a, 2]
        ux, uy, uz = points[b, 0] - x, points[b, 1] - y, points[b, 2] - z
        vx, vy, vz = points[c, 0] - x, points[c, 1] - y, points[c, 2] - z
        nx, ny, nz = uy * vz - uz * vy, uz * vx - ux * vz, ux * vy - uy * vx
        double_area = math.sqrt(nx * nx + ny * ny + nz * nz)
        scale = 1 / double_area if double_area > 1e-300 else 1e300
        equation[0], equation[1], equation[2] = nx * scale, ny * scale, nz * scale
        equation[3] = -(equation[0] * x + equation[1] * y + equation[2] * z)
        weight = double_area / 6  # a third of the area
        for corner in range(3):
            v = faces[f, corner]
            k = 0
            for i in range(4):
                for j in range(i, 4):
                    quadrics[v, k] += weight * equation[i] * equation[j]
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


@kernel
def _error(q: NDArray[np.float64], x: float, y: float, z: float) -> float:
    """Value of a quadric, (10,), at a point."""
    return (
        x * (q[0] * x + 2 * (q[1] * y + q[2] * z + q[3]))
        + y * (q[4] * y + 2 * (q[5] * z + q[6]))
        + z * (q[7] * z + 2 * q[8])
        + q[9]
    )


@kernel
def _placement(
    q: NDArray[np.float64],  # (10,) sum of both ends' quadrics
    points: NDArray[np.float64],  # (V, 3)
    border: NDArray[np.bool_],  # (V,)
    u: int,
    v: int,
) -> tuple[float, float, float, float]:
    """Position for the collapse of the edge u v: x, y, z and the quadric's value there, not below 0."""
    px, py, pz = points[u, 0], points[u, 1], points[u, 2]
    rx, ry, rz = points[v, 0], points[v, 1], points[v, 2]
    x, y, z = (px + rx) / 2, (py + ry) / 2, (pz + rz) / 2
    if border[u] != border[v]:  # a boundary's vertex stays where it is if the other is none
        x, y, z = (px, py, pz) if border[u] else (rx, ry, rz)
        return x, y, z, max(_error(q, x, y, z), 0.0)
    a, b, c, d, e, f = q[0], q[1], q[2], q[4], q[5], q[7]
    # Cramer's rule: i, j, k and m, n, o are cofactors of the symmetric matrix ((a, b, c), (b, d, e), (c, e, f)).
    i, j, k = d * f - e * e, c * e - b * f, b * e - c * d
    det = a * i + b * j + c * k
    size = a + d + f
    if det > MIN_CONDITION * size * size * size:
        o, m, n = a * f - c * c, b * c - a * e, a * d - b * b
        scale = -1 / det
        bx = (i * q[3] + j * q[6] + k * q[8]) * scale
        by = (j * q[3] + o * q[6] + m * q[8]) * scale
        bz = (k * q[3] + m * q[6] + n * q[8]) * scale
        sx, sy, sz = px - rx, py - ry, pz - rz
        tx, ty, tz = bx - x, by - y, bz - z
        # Accept the minimum within two edge lengths of the midpoint. Almost parallel planes meet far away: there the
        # minimum is exact and useless.
        if tx * tx + ty * ty + tz * tz < 4 * (sx * sx + sy * sy + sz * sz):
            return bx, by, bz, max(_error(q, bx, by, bz), 0.0)
    # As in the paper, fall back to the best of both ends and the midpoint; the midpoint wins ties.
    error, at_p, at_r = _error(q, x, y, z), _error(q, px, py, pz), _error(q, rx, ry, rz)
    if at_p < error and at_p <= at_r:
        x, y, z, error = px, py, pz, at_p
    elif at_r < error:
        x, y, z, error = rx, ry, rz, at_r
    return x, y, z, max(error, 0.0)  # rounding gives values just below 0


@kernel
def _price_edges(
    points: NDArray[np.float64],  # (V, 3)
    faces: NDArray[np.int32],  # (F, 3)
    quadrics: NDArray[np.float64],  # (V, 10)
    border: NDArray[np.bool_],  # (V,)
    locked: NDArray[np.bool_],  # (V,)
    starts: NDArray[np.int32],  # (V + 1,) see `_faces_of_vertices`
    around: NDArray[np.int32],  # (3F,)
    seen_from: NDArray[np.int32],  # (V,) 0; written: 1 + the last vertex that an edge to this one was found from
    both: NDArray[np.float64],  # (10,) written
    first: NDArray[np.int32],  # (3F,) lower vertex of each edge, written
    second: NDArray[np.int32],  # (3F,) higher vertex, written
    cost: NDArray[np.float32],  # (3F,) written
) -> int:
    """The error of the collapse of every edge between unlocked vertices; returns the number of those edges."""
    count = 0
    for v in range(len(points)):
        for n in range(starts[v], starts[v + 1]):
            for k in range(3):
                w = faces[around[n], k]
                if w > v and seen_from[w] != v + 1 and not locked[v] and not locked[w]:
                    seen_from[w] = v + 1
                    for j in range(10):
                        both[j] = quadrics[v, j] + quadrics[w, j]
                    first[count], second[count] = v, w
                    cost[count] = _placement(both, points, border, first[count], second[count])[
                        3
                    ]  # typed as in `_collapse`
                    count += 1
    return count


@kernel
def _flips_or_degenerates(
    v: int,
    other: int,
    x: float,
    y: float,
    z: float,
    points: NDArray[np.float64],  # (V, 3)
    faces: NDArray[np.int32],  # (F, 3)
    alive: NDArray[np.bool_],  # (F,)
    starts: NDArray[np.int32],  # (V + 1,)
    around: NDArray[np.int32],  # (3F,)
    least_cosine: float,
    least_quality: float,
) -> bool:
    """Whether moving v to (x, y, z) flips a face of v or makes it a sliver.

    Faces that contain `other`, the edge's second vertex, are skipped: the collapse removes them.
    """
    for at in range(starts[v], starts[v + 1]):
        f = around[at]
        if not alive[f]:
            continue
        b, c = faces[f, 1], faces[f, 2]
        if b == v:
            b, c = c, faces[f, 0]
        elif c == v:
            b, c = faces[f, 0], b
        if b == other or c == other:
            continue
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
        if new2 < MIN_CROSS2 or dot < least_cosine * math.sqrt(old2 * new2):
            return True
        # Quality: 4 sqrt(3) area / (sum of squared sides), 1 for an equilateral triangle.
        dx, dy, dz = nx - ex, ny - ey, nz - ez
        sides = (
            ex * ex + ey * ey + ez * ez + nx * nx + ny * ny + nz * nz
            + dx * dx + dy * dy + dz * dz
        )  # fmt: skip
        if 2 * SQRT_3 * math.sqrt(new2) < least_quality * sides:
            return True
    return False


@kernel
def _collapse(
    first: NDArray[np.int32],  # (N,) ends of the edges, in the order in which they are tried
    second: NDArray[np.int32],  # (N,)
    points: NDArray[np.float64],  # (V, 3) changed, as all below
    faces: NDArray[np.int32],  # (F, 3)
    quadrics: NDArray[np.float64],  # (V, 10)
    border: NDArray[np.bool_],  # (V,)
    starts: NDArray[np.int32],  # (V + 1,) see `_faces_of_vertices`; not changed
    around: NDArray[np.int32],  # (3F,) not changed
    alive: NDArray[np.bool_],  # (F,) True; faces that are left afterwards
    touched: NDArray[np.bool_],  # (V,) False; vertices of edges that were collapsed afterwards
    stamp: NDArray[np.int32],  # (V,) -1; 2 n at neighbours of the n-th edge's first vertex, 2 n + 1: second
    both: NDArray[np.float64],  # (10,)
    target: int,
    least_cosine: float,
    least_quality: float,
) -> None:
    """Collapse those of the edges whose ends are untouched, until at most `target` faces are alive."""
    # Invariants: the living faces form the same topology as the input. A vertex that is not in `touched` has its old
    # position, quadric and list of faces, some of them dead, and so has an edge between two such vertices its cost.
    left = len(faces)
    for n in range(len(first)):
        if left <= target:
            break
        u, v = first[n], second[n]
        if touched[u] or touched[v]:
            continue
        # Link condition: u and v share exactly the vertices opposite the edge. More common neighbours mean a collapse
        # that pinches the surface.
        around_u = around_v = common = at_edge = 0
        for at in range(starts[u], starts[u + 1]):
            f = around[at]
            if alive[f]:
                for k in range(3):
                    w = faces[f, k]
                    at_edge += w == v
                    if w != u and stamp[w] != 2 * n:
                        stamp[w] = 2 * n
                        around_u += 1
        for at in range(starts[v], starts[v + 1]):
            f = around[at]
            if alive[f]:
                for k in range(3):
                    w = faces[f, k]
                    if w != v and stamp[w] != 2 * n + 1:
                        common += stamp[w] == 2 * n
                        stamp[w] = 2 * n + 1
                        around_v += 1
        # An edge between two vertices of boundaries either lies on a boundary, with one face, or must stay: without it
        # the surface would hang together at a vertex. A single triangle must stay one, and a tetrahedron.
        if border[u] and border[v]:
            if common != 1 or at_edge != 1 or (around_u == 2 and around_v == 2):
                continue
        elif common != 2 or (around_u == 3 and around_v == 3 and not (border[u] or border[v])):
            continue
        for j in range(10):
            both[j] = quadrics[u, j] + quadrics[v, j]
        x, y, z, _ = _placement(both, points, border, u, v)
        if _flips_or_degenerates(
            u, v, x, y, z, points, faces, alive, starts, around, least_cosine, least_quality
        ) or _flips_or_degenerates(v, u, x, y, z, points, faces, alive, starts, around, least_cosine, least_quality):
            continue
        # Merge v into u: the faces with both die, in the others u takes v's place.
        for at in range(starts[v], starts[v + 1]):
            f = around[at]
            if alive[f]:
                if faces[f, 0] == u or faces[f, 1] == u or faces[f, 2] == u:
                    alive[f] = False
                    left -= 1
                for k in range(3):
                    if faces[f, k] == v:
                        faces[f, k] = u
        points[u, 0], points[u, 1], points[u, 2] = x, y, z
        border[u] = border[u] or border[v]
        touched[u] = touched[v] = True
        for j in range(10):
            quadrics[u, j] = both[j]
