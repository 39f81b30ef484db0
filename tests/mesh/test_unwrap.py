"""The atlas: every face mapped, charts inside the unit square, no texel with two owners, bounded stretch."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from pipeline.mesh import unwrap as module
from pipeline.mesh.clean import clean
from pipeline.mesh.simplify import simplify
from pipeline.mesh.tri_mesh import TriMesh
from pipeline.mesh.unwrap import LEAST_COSINE, UnwrappedMesh, unwrap
from tests.mesh.shapes import cuboid, joined, of_field, organic, tetrahedron, torus
from tests.mesh.texels import times_owned

SIZE = 256
SHAPES = {
    "one face": TriMesh(np.float32([[0, 0, 0], [0.5, 0, 0], [0, 0.5, 0]]), np.array([[0, 1, 2]], np.int32)),
    "tetrahedron": tetrahedron(scale=0.5),
    "cuboid": cuboid(),
    "torus": clean(torus(24)),
    "two solids": joined(tetrahedron(), tetrahedron((0.25, 0, 0))),
}


def texels_along_a_metre(unwrapped: UnwrappedMesh) -> float:
    """Root of the share of the texture that a square metre of the surface has."""
    sides = unwrapped.uvs[unwrapped.faces].astype(np.float64)
    first, second = sides[:, 1] - sides[:, 0], sides[:, 2] - sides[:, 0]
    mapped = np.abs(first[:, 0] * second[:, 1] - first[:, 1] * second[:, 0]).sum()
    faces = TriMesh(unwrapped.vertices, unwrapped.faces)
    return float(np.sqrt(mapped / np.linalg.norm(faces.face_cross_products(), axis=1).sum()))


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


@pytest.mark.parametrize("name", ["cuboid", "torus", "organic", "noise"])
def test_the_gaps_that_mipmaps_need_cost_few_texels(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    noise = of_field(np.random.default_rng(2).normal(size=(12, 12, 12)))
    mesh = clean({"organic": organic(24), "noise": noise}.get(name, SHAPES.get(name, noise)))
    chosen = texels_along_a_metre(unwrap(mesh, texture_size=SIZE))
    monkeypatch.setattr(module, "CELLS", module.FINER_CELLS)
    finer = texels_along_a_metre(unwrap(mesh, texture_size=SIZE))

    assert chosen >= 0.97 * finer * 0.99  # charts of a texel's width may overlap, and be cut, in one and not the other


def test_vertices_are_duplicated_at_seams_only() -> None:
    unwrapped = unwrap(SHAPES["cuboid"], texture_size=SIZE)

    assert len(unwrapped.vertices) == 24  # six charts of four vertices


@pytest.mark.parametrize(("name", "cells"), [("torus", module.CELLS), ("cuboid", module.FINER_CELLS)])
def test_charts_are_a_cell_apart_and_half_a_cell_from_the_border(name: str, cells: int) -> None:
    unwrapped = unwrap(SHAPES[name], texture_size=SIZE)

    ends = unwrapped.faces[:, [0, 1]].T, unwrapped.faces[:, [1, 2]].T
    links = coo_matrix((np.ones(2 * len(unwrapped.faces)), np.concatenate(ends, axis=1)), (len(unwrapped.uvs),) * 2)
    chart = connected_components(links, directed=False)[1]
    low = np.array([unwrapped.uvs[chart == k].min(axis=0) for k in range(chart.max() + 1)])
    high = np.array([unwrapped.uvs[chart == k].max(axis=0) for k in range(chart.max() + 1)])
    for k in range(len(low)):
        gaps = np.maximum(low - high[k], low[k] - high).max(axis=1)  # of the axis along which they are farther apart
        assert np.delete(gaps, k).min() > 1 / cells - 1e-5
    assert len(low) >= 6 and min(low.min(), 1 - high.max()) > 0.5 / cells - 1e-5


def test_folded_surfaces_get_charts_without_overlap() -> None:
    mesh = clean(organic(24))
    mesh = simplify(mesh, target_faces=300)

    assert times_owned(unwrap(mesh, texture_size=SIZE), SIZE).max() <= 1


def test_a_mesh_without_faces_is_refused() -> None:
    with pytest.raises(ValueError, match="no atlas"):
        unwrap(TriMesh(np.zeros((0, 3), np.float32), np.zeros((0, 3), np.int32)), texture_size=SIZE)
