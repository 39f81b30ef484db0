"""Orders faces after their neighbours and vertices after their first use, for codecs of indices and caches of vertices.

Nothing is left out: the faces are the same but for their order, the rotation of their corners, and the numbers of the
vertices. Knows nothing of positions and formats.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pipeline.mesh.kernels import kernel
from pipeline.mesh.topology import pair_half_edges

RECENT_EDGES, RECENT_VERTICES = 15, 12
"""What glTF's meshopt codec of triangles refers to in a byte: the last edges and the last vertices."""
NAMING_COST = 3
"""What a vertex costs that such a codec has to name, in faces; chosen by the bytes of the six test images' meshes."""


def reorder(faces: NDArray[np.int32], vertices: int) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Order faces and vertices.

    Args:
        faces: (F, 3).
        vertices: how many there are. Those that are no corner of a face come last.

    Returns:
        (F, 3) int32 faces with the new numbers, and (V,) int32 the old number of each new vertex.
    """
    order = np.zeros(len(faces), np.int64)
    faces_left = np.bincount(faces.ravel(), minlength=vertices)
    opposite, _ = pair_half_edges(faces, vertices)
    used_at, edges = np.full(vertices, -1), np.full(RECENT_EDGES, -1)
    _order_faces(faces.astype(np.int64), opposite, faces_left, used_at, np.zeros(len(faces), np.bool_), edges, order)
    ordered = faces[order]
    used, first = np.unique(ordered, return_index=True)
    unused = np.setdiff1d(np.arange(vertices), used, assume_unique=True)
    old = np.concatenate([used[np.argsort(first)], unused]).astype(np.int32)
    new = np.empty(vertices, np.int32)
    new[old] = np.arange(vertices)
    return new[ordered], old


@kernel
def _order_faces(
    faces: NDArray[np.int64],  # (F, 3)
    opposite: NDArray[np.int64],  # (3F,) the opposite of each half-edge, or -1
    faces_left: NDArray[np.int64],  # (V,) how many faces a vertex has; written
    used_at: NDArray[np.int64],  # (V,) how many vertices were used before this one, -1 if it was not; written
    is_done: NDArray[np.bool_],  # (F,) False; written
    edges: NDArray[np.int64],  # (RECENT_EDGES,) recent half-edges, -1; written
    order: NDArray[np.int64],  # (F,) the faces in their new order; written
) -> None:
    """Walk over the faces through recent edges."""
    pushed = used = first = 0
    for place in range(len(faces)):
        # Through the edge that is recent, to a far corner that has few faces left, so that none stays behind alone.
        best, least = -1, len(faces) + 1000
        for age in range(RECENT_EDGES):
            half_edge = edges[(pushed - 1 - age) % RECENT_EDGES]
            if half_edge < 0 or is_done[half_edge // 3]:
                continue
            far = faces[half_edge // 3, (half_edge + 2) % 3]
            cost = age + faces_left[far]
            if used_at[far] >= 0 and used - used_at[far] > RECENT_VERTICES:
                cost += NAMING_COST
            if cost < least:
                best, least = half_edge, cost
        if best < 0:
            while is_done[first]:
                first += 1
            best = 3 * first
        f = best // 3
        order[place] = f
        is_done[f] = True
        for step in range(3):  # the edge that it was reached by first
            half_edge = 3 * f + (best + step) % 3
            vertex = faces[f, half_edge % 3]
            faces_left[vertex] -= 1
            if used_at[vertex] < 0 or used - used_at[vertex] > 16:
                used_at[vertex] = used
                used += 1
            across = opposite[half_edge]
            if across >= 0 and not is_done[across // 3]:
                edges[pushed % RECENT_EDGES] = across
                pushed += 1
