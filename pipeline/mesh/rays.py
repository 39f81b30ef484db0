"""Straight lines through a closed triangle mesh: where each leaves the solid that it starts in.

A bounding-volume hierarchy over the faces, in Morton order, so that its tree is complete and needs no pointers.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.mesh.kernels import kernel
from pipeline.mesh.tri_mesh import TriMesh

LEAF_FACES = 4
MORTON_BITS = 20
MAX_HITS = 128
"""Surfaces that a ray may cross; those beyond are ignored. A body seen through 64 walls has no wall worth measuring."""


class RayTree(NamedTuple):
    """Faces sorted along a Morton curve, and the boxes of a complete binary tree over groups of them.

    Attributes:
        corners: (N, 3, 3) float64, the corners of each face in the order of the curve.
        normals: (N, 3) float64, outward unit normals.
        low, high: (2 L, 3) float64, boxes of the nodes: 1 is the root, 2 k and 2 k + 1 are the children of k, and leaf
            j is node L + j with the faces from `LEAF_FACES` j on; empty leaves have infinite boxes.
    """

    corners: NDArray[np.float64]
    normals: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]


def ray_tree(mesh: TriMesh) -> RayTree:
    """Build the tree of a mesh with at least one face; faces without area are left out."""
    cross = mesh.face_cross_products()
    length = np.linalg.norm(cross, axis=1)
    has_area = length > 0
    corners = mesh.corners[has_area].astype(np.float64)
    normals = cross[has_area] / length[has_area, None]
    order = np.argsort(_morton_codes(corners.mean(axis=1)), kind="stable")
    corners, normals = corners[order], normals[order]
    leaves = 1 << max(0, int(np.ceil(np.log2(max(1, len(corners)) / LEAF_FACES))))
    padding = ((0, leaves * LEAF_FACES - len(corners)), (0, 0))
    low, high = np.empty((2 * leaves, 3)), np.empty((2 * leaves, 3))
    for box, reduced, empty, reduce in (
        (low, corners.min(axis=1), np.inf, np.minimum),
        (high, corners.max(axis=1), -np.inf, np.maximum),
    ):
        of_faces = np.pad(reduced, padding, constant_values=empty)
        box[leaves:] = reduce.reduce(of_faces.reshape(leaves, LEAF_FACES, 3), axis=1)
        first = leaves
        while first > 1:  # the parents of nodes first to 2 first - 1
            box[first // 2 : first] = reduce(box[first : 2 * first : 2], box[first + 1 : 2 * first : 2])
            first //= 2
    return RayTree(corners, normals, low, high)


def _morton_codes(points: NDArray[np.float64]) -> NDArray[np.int64]:
    """Position along a Morton curve of each point: (N, 3) -> (N,)."""
    low, high = points.min(axis=0), points.max(axis=0)
    cells = ((points - low) / max(float((high - low).max()), 1e-30) * (2**MORTON_BITS - 1)).astype(np.int64)
    code = np.zeros(len(points), np.int64)
    for bit in range(MORTON_BITS):
        for axis in range(3):
            code |= ((cells[:, axis] >> bit) & 1) << (3 * bit + axis)
    return code


def exits(
    tree: RayTree, origins: NDArray[np.float64], directions: NDArray[np.float64], *, skip: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Follow rays that start on the surface and lead into the solid up to where they leave it.

    Surfaces of other shells inside the solid are passed: the ray has left when it has crossed as many surfaces outward
    as inward, the one that it starts on included.

    Args:
        origins: (R, 3) on the surface.
        directions: (R, 3) unit vectors.
        skip: crossings nearer than this belong to the surface that the ray starts on.

    Returns:
        (R,) distances, inf for a ray that never leaves; and (R,) the cosine between the ray and the outward normal
        where it leaves.
    """
    return _exits(tree, origins, directions, skip)


def windings(
    tree: RayTree, origins: NDArray[np.float64], directions: NDArray[np.float64], *, skip: float
) -> NDArray[np.int64]:
    """In how many shells the points just off a surface lie: (R,); the arguments are those of `exits`."""
    return _windings(tree, origins, directions, skip)


@kernel
def _crossings(
    tree: RayTree,
    origin: NDArray[np.float64],
    direction: NDArray[np.float64],
    skip: float,
    distances: NDArray[np.float64],
    faces: NDArray[np.int64],
    stack: NDArray[np.int64],
) -> int:
    """Write the distances and the faces that a ray crosses, in no order; returns how many."""
    corners, low, high = tree.corners, tree.low, tree.high
    leaves = len(low) // 2
    count, top = 0, 1
    stack[0] = 1
    while top > 0:
        top -= 1
        node = stack[top]
        near, far = skip, np.inf
        for axis in range(3):
            # An axis that the ray does not move along excludes the box if the origin is outside of its slab.
            if direction[axis] == 0.0:
                if origin[axis] < low[node, axis] or origin[axis] > high[node, axis]:
                    far = -1.0
                continue
            a = (low[node, axis] - origin[axis]) / direction[axis]
            b = (high[node, axis] - origin[axis]) / direction[axis]
            near, far = max(near, min(a, b)), min(far, max(a, b))
        if near > far:
            continue
        if node < leaves:
            stack[top], stack[top + 1] = 2 * node, 2 * node + 1
            top += 2
            continue
        first = (node - leaves) * LEAF_FACES
        for face in range(first, min(first + LEAF_FACES, len(corners))):
            t = _distance(corners[face], origin, direction)
            if t > skip and count < MAX_HITS:
                distances[count], faces[count] = t, face
                count += 1
    return count


@kernel
def _distance(corners: NDArray[np.float64], origin: NDArray[np.float64], direction: NDArray[np.float64]) -> float:
    """Distance along a ray to a triangle, -1 if it misses. Source: Möller and Trumbore 1997, both sides hit."""
    ax, ay, az = corners[0, 0], corners[0, 1], corners[0, 2]
    ux, uy, uz = corners[1, 0] - ax, corners[1, 1] - ay, corners[1, 2] - az
    vx, vy, vz = corners[2, 0] - ax, corners[2, 1] - ay, corners[2, 2] - az
    dx, dy, dz = direction[0], direction[1], direction[2]
    px, py, pz = dy * vz - dz * vy, dz * vx - dx * vz, dx * vy - dy * vx
    determinant = ux * px + uy * py + uz * pz
    if determinant == 0.0:
        return -1.0
    sx, sy, sz = origin[0] - ax, origin[1] - ay, origin[2] - az
    u = (sx * px + sy * py + sz * pz) / determinant
    if u < 0.0 or u > 1.0:
        return -1.0
    qx, qy, qz = sy * uz - sz * uy, sz * ux - sx * uz, sx * uy - sy * ux
    v = (dx * qx + dy * qy + dz * qz) / determinant
    if v < 0.0 or u + v > 1.0:
        return -1.0
    return (vx * qx + vy * qy + vz * qz) / determinant


@kernel
def _exits(
    tree: RayTree, origins: NDArray[np.float64], directions: NDArray[np.float64], skip: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """See `exits`."""
    lengths, cosines = np.full(len(origins), np.inf), np.zeros(len(origins))
    distances, faces = np.empty(MAX_HITS), np.empty(MAX_HITS, np.int64)
    stack = np.empty(128, np.int64)  # a node gives way to its two children: one entry for each level of the tree
    for ray in range(len(origins)):
        count = _crossings(tree, origins[ray], directions[ray], skip, distances, faces, stack)
        depth = 1
        for index in np.argsort(distances[:count]):
            cosine = np.dot(tree.normals[faces[index]], directions[ray])
            depth += -1 if cosine > 0 else 1
            if depth == 0:
                lengths[ray], cosines[ray] = distances[index], cosine
                break
    return lengths, cosines


@kernel
def _windings(
    tree: RayTree, origins: NDArray[np.float64], directions: NDArray[np.float64], skip: float
) -> NDArray[np.int64]:
    """See `windings`."""
    depth = np.zeros(len(origins), np.int64)
    distances, faces = np.empty(MAX_HITS), np.empty(MAX_HITS, np.int64)
    stack = np.empty(128, np.int64)
    for ray in range(len(origins)):
        count = _crossings(tree, origins[ray], directions[ray], skip, distances, faces, stack)
        for index in range(count):
            depth[ray] += 1 if np.dot(tree.normals[faces[index]], directions[ray]) > 0 else -1
    return depth
