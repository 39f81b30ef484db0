"""The atlas: every face mapped, charts inside the unit square, no texel with two owners, bounded stretch."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.mesh.clean import clean
from pipeline.mesh.simplify import simplify
from pipeline.mesh.tri_mesh import TriMesh
from pipeline.mesh.unwrap import LEAST_COSINE, unwrap
from tests.mesh.shapes import cuboid, joined, organic, tetrahedron, torus
from tests.mesh.texels import times_owned

SIZE = 256
SHAPES = {
    "one face": TriMesh(np.float32([[0, 0, 0], [0.5, 0, 0], [0, 0.5, 0]]), np.array([[0, 1, 2]], np.int32)),
    "tetrahedron": tetrahedron(scale=0.5),
    "cuboid": cuboid(),
    "torus": clean(torus(24)),
    "two solids": joined(tetrahedron(), tetrahedron((0.25, 0, 0))),
}


@pytest.mark.parametrize("name", SHAPES)
def test_every_face_is_mapped_inside_the_unit_square_and_no_texel_has_two_owners(name: str) -> None:
    mesh = SHAPES[name]

    unwrapped = unwrap(mesh, texture_size=SIZE)

    assert np.array_equal(unwrapped.source_vertices[unwrapped.faces], mesh.faces)
    assert np.array_equal(unwrapped.vertices, mesh.vertices[unwrapped.source_vertices])
    assert unwrapped.uvs.dtype == np.float32 and len(unwrapped.uvs) == len(unwrapped.vertices)
    assert unwrapped.uvs.min() >= 0 and unwrapped.uvs.max() <= 1
    corners = unwrapped.uvs[unwrapped.faces].astype(np.float64)
    first, second = corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]
    assert (np.abs(first[:, 0] * second[:, 1] - first[:, 1] * second[:, 0]) > 0).all()
    assert times_owned(unwrapped, SIZE).max() <= 1


@pytest.mark.parametrize("name", ["cuboid", "torus"])
def test_stretch_is_bounded_and_all_charts_have_one_scale(name: str) -> None:
    mesh = SHAPES[name]

    unwrapped = unwrap(mesh, texture_size=SIZE)

    flat = unwrapped.uvs[unwrapped.faces].astype(np.float64)
    first, second = flat[:, 1] - flat[:, 0], flat[:, 2] - flat[:, 0]
    mapped = np.abs(first[:, 0] * second[:, 1] - first[:, 1] * second[:, 0])
    share = mapped / np.linalg.norm(mesh.face_cross_products(), axis=1)  # the cosine to the axis, times one scale
    assert share.min() >= LEAST_COSINE * share.max() * 0.999


def test_vertices_are_duplicated_at_seams_only() -> None:
    unwrapped = unwrap(SHAPES["cuboid"], texture_size=SIZE)

    assert len(unwrapped.vertices) == 24  # six charts of four vertices


def test_folded_surfaces_get_charts_without_overlap() -> None:
    mesh = clean(organic(24))
    mesh = simplify(mesh, target_faces=300)

    assert times_owned(unwrap(mesh, texture_size=SIZE), SIZE).max() <= 1


def test_a_mesh_without_faces_is_refused() -> None:
    with pytest.raises(ValueError, match="no atlas"):
        unwrap(TriMesh(np.zeros((0, 3), np.float32), np.zeros((0, 3), np.int32)), texture_size=SIZE)
