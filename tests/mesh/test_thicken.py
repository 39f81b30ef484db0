"""Thickening: an open surface becomes a closed body of the stated thickness."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from pipeline.mesh.asset import Asset, thickened
from pipeline.mesh.clean_open import clean_open
from pipeline.mesh.material import Material
from pipeline.mesh.measure import measure
from pipeline.mesh.simplify import simplify
from pipeline.mesh.thicken import faces_when_thickened, simplify_for_thickening, thicken
from pipeline.mesh.tri_mesh import TriMesh
from pipeline.mesh.unwrap import unwrap
from tests.mesh.shapes import hemisphere, joined, leaf, sphere, welded_report


@pytest.mark.parametrize("shape", [hemisphere, leaf])
def test_a_sheet_becomes_a_closed_body_of_its_area_times_the_thickness(shape: Callable[[], TriMesh]) -> None:
    mesh = simplify(clean_open(shape()), target_faces=2000)
    area = np.linalg.norm(mesh.face_cross_products(), axis=1).sum() / 2
    body = thicken(mesh, thickness_m=0.01)
    closed, consistent, non_manifold, volume = welded_report(body.mesh)
    assert closed and consistent and non_manifold == 0
    assert volume == pytest.approx(0.01 * area, rel=0.02)
    assert len(body.mesh.faces) == faces_when_thickened(mesh)
    middles = (body.mesh.corners - mesh.vertices[mesh.faces.ravel()[body.source_corners]]).astype(np.float64)
    assert np.linalg.norm(middles, axis=2) == pytest.approx(0.005, abs=1e-4)


def test_bodies_among_sheets_stay_as_they_are() -> None:
    ball = sphere(24, radius=0.1)
    mesh = clean_open(joined(ball, TriMesh(hemisphere().vertices - np.float32([0, 0.1, 0]), hemisphere().faces)))
    body = thicken(mesh, thickness_m=0.01).mesh
    assert measure(body).is_watertight and measure(body).components == 2
    same = thicken(ball, thickness_m=0.01)
    assert same.mesh is ball


@pytest.mark.parametrize("target", [300, 1000, 4000])
def test_the_count_of_the_body_is_the_one_that_was_asked_for(target: int) -> None:
    small = simplify_for_thickening(clean_open(leaf()), target_faces=target)
    assert abs(len(thicken(small, thickness_m=0.01).mesh.faces) - target) <= max(0.01 * target, 2)


def test_both_layers_show_the_same_part_of_the_texture() -> None:
    mesh = simplify(clean_open(leaf()), target_faces=1000)
    split = unwrap(mesh, texture_size=512)
    colours = np.arange(3 * len(mesh.vertices)).reshape(-1, 3).astype(np.uint8)
    asset = Asset(
        mesh, mesh.vertex_normals(), split, Material(np.zeros((512, 512, 3), np.uint8)), True, colours, is_open=True
    )
    solid = thickened(asset, thickness_share=0.01)
    assert not solid.is_open and len(solid.unwrapped.faces) == len(solid.mesh.faces)
    assert (solid.unwrapped.vertices == solid.mesh.vertices[solid.unwrapped.source_vertices]).all()
    assert (solid.unwrapped.source_vertices[solid.unwrapped.faces] == solid.mesh.faces).all()
    count = len(mesh.faces)
    front, back = solid.unwrapped.faces[:count], solid.unwrapped.faces[count : 2 * count]
    assert (solid.unwrapped.uvs[front] == split.uvs[split.faces]).all()
    assert (solid.unwrapped.uvs[back] == split.uvs[split.faces[:, ::-1]]).all()
    assert solid.vertex_colours is not None
    assert (solid.vertex_colours[solid.mesh.faces[:count]] == colours[mesh.faces]).all()
