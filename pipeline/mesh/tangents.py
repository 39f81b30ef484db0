"""Tangents of a textured mesh, by the rule that all readers share, so that a normal map looks the same in each.

Readers that find no tangents in a file compute them this way; a normal map is only right in the frame it was baked in.

Source: Mikkelsen, Simulation of Wrinkled Surfaces Revisited, 2008 (MikkTSpace), which glTF 2.0 section 3.7.2.1 names.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def vertex_tangents(
    vertices: NDArray[np.floating],
    faces: NDArray[np.int32],
    normals: NDArray[np.floating],
    uvs: NDArray[np.floating],
) -> NDArray[np.float32]:
    """Tangents of the vertices of a mesh that is split along the seams of its texture.

    At each vertex it is the mean of the directions of growing u on its faces, each with its part
    along the vertex normal removed and weighted by the angle of the face's corner there.

    Args:
        vertices: (V, 3).
        faces: (F, 3).
        normals: (V, 3) unit vectors.
        uvs: (V, 2), v downwards, as in glTF; charts may be mirrored.

    Returns:
        (V, 4) float32: unit tangents, each across its normal, and the sign w of the bitangent cross(normal, tangent) w,
        which points to smaller v. Vertices without a usable face get some direction across the normal.
    """
    corners, places = vertices.astype(np.float64)[faces], uvs.astype(np.float64)[faces]
    edge_1, edge_2 = corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]
    (u_1, v_1), (u_2, v_2) = (places[:, 1] - places[:, 0]).T, (places[:, 2] - places[:, 0]).T
    # dP/du up to the positive factor 1 / |determinant|; faces without area in the texture say nothing.
    determinant = u_1 * v_2 - u_2 * v_1
    along_u = (edge_1 * v_2[:, None] - edge_2 * v_1[:, None]) * np.sign(determinant)[:, None]
    along_u /= np.maximum(np.linalg.norm(along_u, axis=1, keepdims=True), 1e-30)
    total = np.zeros((len(vertices), 3))
    for k in range(3):
        at = faces[:, k]
        normal = normals.astype(np.float64)[at]
        to_next, to_last = (_across(corners[:, (k + step) % 3] - corners[:, k], normal) for step in (1, 2))
        angle = np.arccos(np.clip((to_next * to_last).sum(axis=1), -1, 1))
        weighted = _across(along_u, normal) * angle[:, None]
        for axis in range(3):
            total[:, axis] += np.bincount(at, weighted[:, axis], len(vertices))
    tangents = _across(total, normals.astype(np.float64))
    # Seen from outside, a face that is not mirrored runs counter-clockwise, so clockwise where v grows downwards.
    mirrored = np.bincount(faces.ravel(), np.repeat(np.sign(determinant), 3), len(vertices)) > 0
    lost = np.linalg.norm(tangents, axis=1) < 0.5
    tangents[lost] = _any_across(normals[lost].astype(np.float64))
    return np.column_stack([tangents, np.where(mirrored, -1.0, 1.0)]).astype(np.float32)


def _across(vectors: NDArray[np.float64], normals: NDArray[np.float64]) -> NDArray[np.float64]:
    """The part of vectors across unit normals, of length 1, or 0 where there is none: (N, 3), (N, 3) -> (N, 3)."""
    part = vectors - normals * (vectors * normals).sum(axis=1, keepdims=True)
    length = np.linalg.norm(part, axis=1, keepdims=True)
    return np.where(length > 1e-12, part / np.maximum(length, 1e-12), 0.0)


def _any_across(normals: NDArray[np.float64]) -> NDArray[np.float64]:
    """A unit vector across each unit normal: (N, 3) -> (N, 3)."""
    axis = np.eye(3)[np.argmin(np.abs(normals), axis=1)]
    return _across(axis, normals)
