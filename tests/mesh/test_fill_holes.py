"""Small holes are closed by a fan each, larger ones and borders of sheets stay."""

from __future__ import annotations

import numpy as np

from pipeline.mesh.clean import clean
from pipeline.mesh.fill_holes import fill_small_holes
from pipeline.mesh.measure import measure
from pipeline.mesh.tri_mesh import TriMesh
from tests.mesh.shapes import hemisphere, sphere


def without(mesh: TriMesh, *faces: int) -> TriMesh:
    return TriMesh(mesh.vertices, np.delete(mesh.faces, faces, axis=0))


def test_a_hole_of_one_face_is_closed() -> None:
    mesh = clean(sphere(24))
    filled = fill_small_holes(without(mesh, 10), max_perimeter_m=0.5)
    assert len(filled.vertices) == len(mesh.vertices) + 1 and len(filled.faces) == len(mesh.faces) + 2
    pairs = np.sort(filled.faces[:, [0, 1, 1, 2, 2, 0]].reshape(-1, 2), axis=1)
    assert (np.unique(pairs, axis=0, return_counts=True)[1] == 2).all()


def test_a_longer_border_stays() -> None:
    bowl = hemisphere(24)
    assert fill_small_holes(bowl, max_perimeter_m=0.5) is bowl or len(
        fill_small_holes(bowl, max_perimeter_m=0.5).faces
    ) == len(bowl.faces)
    assert len(fill_small_holes(bowl, max_perimeter_m=10.0).faces) > len(bowl.faces)


def test_a_closed_surface_and_one_without_faces_stay_as_they_are() -> None:
    mesh = clean(sphere(16))
    assert fill_small_holes(mesh, max_perimeter_m=1.0) is mesh
    assert measure(mesh).is_watertight
    nothing = TriMesh(np.zeros((0, 3), np.float32), np.zeros((0, 3), np.int32))
    assert len(fill_small_holes(nothing, max_perimeter_m=1.0).faces) == 0
