"""Closes the small holes of an open surface with a fan of triangles each. Knows nothing of where the surface is from.

Source: the rule of JeffreyXiang/CuMesh@cf1a2f0, which TRELLIS.2 applies to its decoder's mesh.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from pipeline.mesh.tri_mesh import TriMesh


def fill_small_holes(mesh: TriMesh, *, max_perimeter_m: float) -> TriMesh:
    """Close every loop of border edges that is shorter than a limit.

    A border edge has one face. Two of them belong together if they share a vertex that has no third one and no edge
    with more than two faces; a set is a loop if both ends of each of its edges meet another edge of the set. A loop
    gets one new vertex, the mean of its edges' middles, and a triangle for each edge. The new faces are not oriented
    like their neighbours: the surface need not be consistent.

    Args:
        mesh: (V, 3) vertices, (F, 3) faces, wound in any way.
        max_perimeter_m: loops of this length and longer ones stay open.

    Returns:
        The mesh with new vertices and faces after the old ones.
    """
    pairs = np.sort(mesh.faces[:, [0, 1, 1, 2, 2, 0]].reshape(-1, 2), axis=1)
    edges, counts = np.unique(pairs, axis=0, return_counts=True)
    border = edges[counts == 1]  # (B, 2), smaller index first
    if len(border) == 0:
        return mesh
    at_vertex = np.bincount(border.ravel(), minlength=len(mesh.vertices))
    may_link = at_vertex == 2
    may_link[edges[counts > 2].ravel()] = False
    loop = _loops(border, may_link)
    start, end = mesh.vertices[border[:, 0]], mesh.vertices[border[:, 1]]
    length = np.linalg.norm(end - start, axis=1)
    count = int(loop.max(initial=-1)) + 1
    perimeter = np.bincount(loop[loop >= 0], length[loop >= 0], count)
    is_small = perimeter < max_perimeter_m
    chosen = (loop >= 0) & is_small[loop]
    number = np.cumsum(is_small) - 1  # of each small loop among the small ones
    of_edge = number[loop[chosen]]
    middles = ((start + end) / 2)[chosen]
    total = np.stack([np.bincount(of_edge, middles[:, k], is_small.sum()) for k in range(3)], axis=1)
    centres = total / np.bincount(of_edge, minlength=is_small.sum())[:, None]
    fans = np.column_stack([border[chosen][:, ::-1], len(mesh.vertices) + of_edge])
    return TriMesh(
        np.concatenate([mesh.vertices, centres.astype(mesh.vertices.dtype)]),
        np.concatenate([mesh.faces, fans.astype(np.int32)]),
    )


def _loops(border: NDArray[np.integer], may_link: NDArray[np.bool_]) -> NDArray[np.int64]:
    """The number of the loop that each border edge is part of, -1 for edges of no loop: (B, 2), (V,) -> (B,)."""
    edge = np.repeat(np.arange(len(border)), 2)
    vertex = border.ravel()
    linked = may_link[vertex]
    order = np.argsort(vertex[linked], kind="stable")
    pairs = edge[linked][order].reshape(-1, 2)  # both border edges of each vertex that links
    graph = coo_matrix((np.ones(len(pairs), np.int8), (pairs[:, 0], pairs[:, 1])), shape=(len(border),) * 2)
    _, part = connected_components(graph, directed=False)
    is_closed = np.ones(part.max() + 1, bool)
    # Both ends of every edge meet another edge of the set, be it one that the set is not connected by.
    _, met, times = np.unique(np.stack([part[edge], vertex], axis=1), axis=0, return_inverse=True, return_counts=True)
    is_closed[part[edge[times[met] < 2]]] = False
    number = np.cumsum(is_closed) - 1
    return np.where(is_closed[part], number[part], -1).astype(np.int64)
