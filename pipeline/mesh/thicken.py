"""Gives an open surface a thickness, so that it becomes a body: what slicers need. Knows nothing of textures."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.mesh.clean import separate_coincident_vertices
from pipeline.mesh.clean_open import faces_of_bodies
from pipeline.mesh.simplify import simplify
from pipeline.mesh.topology import NO_OPPOSITE, half_edge_ends, pair_half_edges
from pipeline.mesh.tri_mesh import TriMesh


@dataclass(frozen=True, eq=False)
class Thickened:
    """A body made of a surface.

    Attributes:
        mesh: (V, 3) vertices and (G, 3) faces, closed and wound outward.
        source_corners: (G, 3) int32, the corner 3 f + k of the surface that each corner was made of.
    """

    mesh: TriMesh
    source_corners: NDArray[np.int32]


def thicken(mesh: TriMesh, *, thickness_m: float) -> Thickened:
    """Replace every component with a border by two layers at half the thickness on either side, joined along borders.

    Args:
        mesh: a manifold, consistently wound, as `clean_open` returns it; components without a border stay.
        thickness_m: distance of the layers in metres.
    """
    corners = np.arange(3 * len(mesh.faces), dtype=np.int32).reshape(-1, 3)
    is_body = faces_of_bodies(mesh)
    if is_body.all():
        return Thickened(mesh, corners)
    sheet = mesh.faces[~is_body]
    offset = TriMesh(mesh.vertices, sheet).vertex_normals().astype(np.float64) * (thickness_m / 2)
    on_sheet = np.unique(sheet)
    behind = np.full(len(mesh.vertices), -1, np.int32)
    behind[on_sheet] = len(mesh.vertices) + np.arange(len(on_sheet), dtype=np.int32)
    vertices = np.concatenate([mesh.vertices + offset, mesh.vertices[on_sheet] - offset[on_sheet]])

    opposite, _ = pair_half_edges(sheet, len(mesh.vertices))
    border = np.flatnonzero(opposite == NO_OPPOSITE)
    start, end = (ends[border].astype(np.int32) for ends in half_edge_ends(sheet))
    at_start = corners[~is_body].ravel()[border]
    at_end = corners[~is_body].ravel()[border - border % 3 + (border % 3 + 1) % 3]
    # A wall runs along its border edge backwards, so the winding stays consistent.
    parts = [
        (mesh.faces, corners),
        (behind[sheet][:, ::-1], corners[~is_body][:, ::-1]),
        (np.stack([end, start, behind[start]], axis=1), np.stack([at_end, at_start, at_start], axis=1)),
        (np.stack([end, behind[start], behind[end]], axis=1), np.stack([at_end, at_start, at_end], axis=1)),
    ]
    faces = np.concatenate([part for part, _ in parts]).astype(np.int32)
    body = separate_coincident_vertices(TriMesh(vertices.astype(np.float32), faces))
    return Thickened(body, np.concatenate([part for _, part in parts]))


def faces_when_thickened(mesh: TriMesh) -> int:
    """The number of faces that `thicken` gives a surface."""
    sheet = mesh.faces[~faces_of_bodies(mesh)]
    opposite, _ = pair_half_edges(sheet, len(mesh.vertices))
    return len(mesh.faces) + len(sheet) + 2 * int((opposite == NO_OPPOSITE).sum())


def simplify_for_thickening(mesh: TriMesh, *, target_faces: int) -> TriMesh:
    """Simplify an open surface so that the body made of it has `target_faces` faces, to 1 %, if its borders allow that.

    A face gives the body two faces and so does a border edge, of which there are the fewer, the fewer faces are left:
    the right number is found by bisection.
    """
    low, high = 1, max(target_faces // 2, 1)
    start = simplify(mesh, target_faces=high)  # has at least as many faces as the result: the rest starts from it
    small = start
    while high - low > 1 and abs(faces_when_thickened(small) - target_faces) > 0.005 * target_faces:
        middle = (low + high) // 2
        small = simplify(start, target_faces=middle)
        if faces_when_thickened(small) > target_faces:
            high = middle
        else:
            low = middle
    return small
