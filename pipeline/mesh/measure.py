"""Counts and measures of a mesh, for reports and checks. Changes nothing."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from pipeline.mesh.topology import edge_keys, half_edge_ends
from pipeline.mesh.tri_mesh import TriMesh


@dataclass(frozen=True)
class MeshReport:
    """Counts and sizes of a mesh.

    Attributes:
        is_watertight: every edge has exactly two faces.
        is_winding_consistent: the two faces of every edge with two faces run along it in opposite directions.
        non_manifold_edges: edges with more than two faces.
        boundary_edges: edges with one face.
        components: connected components; two components share no vertex.
        volume: signed, cubic metres.
        lowest, highest: corners of the axis-aligned bounding box, metres.
    """

    faces: int
    vertices: int
    is_watertight: bool
    is_winding_consistent: bool
    non_manifold_edges: int
    boundary_edges: int
    components: int
    volume: float
    lowest: tuple[float, float, float]
    highest: tuple[float, float, float]


def measure(mesh: TriMesh) -> MeshReport:
    """Measure a mesh, (V, 3) vertices and (F, 3) faces; vertices without a face are ignored."""
    count = len(mesh.vertices)
    start, end = half_edge_ends(mesh.faces)
    _, edge, uses = np.unique(edge_keys(mesh.faces, max(count, 1)), return_inverse=True, return_counts=True)
    # Per edge, faces that run from its lower to its higher vertex minus the others: 0 for two consistent faces.
    balance = np.bincount(edge.reshape(-1), weights=np.where(start < end, 1, -1), minlength=len(uses))
    used = np.unique(mesh.faces)
    low, high = TriMesh(mesh.vertices[used], np.zeros((0, 3), np.int32)).bounds()
    return MeshReport(
        faces=len(mesh.faces),
        vertices=len(used),
        is_watertight=len(mesh.faces) > 0 and bool((uses == 2).all()),
        is_winding_consistent=bool((balance[uses == 2] == 0).all()),
        non_manifold_edges=int((uses > 2).sum()),
        boundary_edges=int((uses == 1).sum()),
        components=len(np.unique(label_components(mesh)[used])) if len(used) else 0,
        volume=mesh.volume() if len(mesh.faces) else 0.0,
        lowest=(float(low[0]), float(low[1]), float(low[2])),
        highest=(float(high[0]), float(high[1]), float(high[2])),
    )


def label_components(mesh: TriMesh) -> NDArray[np.int32]:
    """Number of the connected component of each vertex: (V,) int32; a vertex without a face is its own component."""
    count = len(mesh.vertices)
    # Two of a face's edges connect its three vertices.
    start, end = mesh.faces[:, :2].ravel(), mesh.faces[:, 1:].ravel()
    graph = coo_matrix((np.ones(len(start), np.int8), (start, end)), shape=(count, count))
    return connected_components(graph, directed=False)[1]
