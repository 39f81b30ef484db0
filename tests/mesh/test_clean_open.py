"""Cleaning of surfaces that enclose nothing: sheets stay open, connected ones are wound one way."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from pipeline.mesh.clean_open import clean_open, faces_of_bodies
from pipeline.mesh.measure import measure
from pipeline.mesh.tri_mesh import TriMesh
from tests.mesh.shapes import border_distance, hemisphere, joined, leaf, sphere, torus


def sheet(cells: int = 20) -> TriMesh:
    """A flat square, facing +Y."""
    axis = np.linspace(-0.4, 0.4, cells + 1)
    x, z = np.meshgrid(axis, axis, indexing="ij")
    number = np.arange(x.size).reshape(x.shape)
    a, b, c, d = (part.ravel() for part in (number[:-1, :-1], number[1:, :-1], number[1:, 1:], number[:-1, 1:]))
    faces = np.concatenate([np.stack([a, c, b], axis=1), np.stack([a, d, c], axis=1)])
    return TriMesh(np.stack([x, 0 * x, z], axis=-1).reshape(-1, 3).astype(np.float32), faces.astype(np.int32))


def turned(mesh: TriMesh) -> TriMesh:
    """The mesh turned by 90 degrees around the z axis."""
    x, y, z = mesh.vertices.T
    return TriMesh(np.stack([-y, x, z], axis=1), mesh.faces)


@pytest.mark.parametrize(("shape", "borders"), [(hemisphere, 1), (leaf, 4), (sheet, 1)])
def test_an_open_surface_keeps_its_faces_and_borders(shape: Callable[[], TriMesh], borders: int) -> None:
    mesh = shape()
    cleaned = clean_open(mesh)
    report = measure(cleaned)
    assert len(cleaned.faces) == len(mesh.faces) and report.components == 1
    assert report.is_winding_consistent and report.non_manifold_edges == 0
    assert 2 - (report.vertices - (3 * report.faces + report.boundary_edges) // 2 + report.faces) == borders
    assert border_distance(mesh, cleaned) < 1e-5


@pytest.mark.parametrize("seed", range(3))
def test_reversed_faces_take_the_side_of_most(seed: int) -> None:
    mesh = sheet()
    flipped = np.random.default_rng(seed).random(len(mesh.faces)) < 0.3
    faces = np.where(flipped[:, None], mesh.faces[:, ::-1], mesh.faces)
    cleaned = clean_open(TriMesh(mesh.vertices, faces))
    assert (cleaned.face_cross_products()[:, 1] > 0).all()


def test_loose_triangles_are_merged_into_one_sheet() -> None:
    mesh = leaf()
    loose = TriMesh(mesh.corners.reshape(-1, 3), np.arange(3 * len(mesh.faces), dtype=np.int32).reshape(-1, 3))
    report = measure(clean_open(loose))
    assert report.components == 1 and report.boundary_edges == measure(mesh).boundary_edges


def test_a_pinhole_is_filled_and_a_hole_stays() -> None:
    mesh = sheet(160)
    middles = mesh.corners.mean(axis=1).reshape(2, -1, 3).mean(axis=0)  # of the cells
    x, _, z = middles.T
    pinhole = np.hypot(x - 0.2025, z - 0.2025) < 0.002
    hole = np.hypot(x + 0.2, z + 0.2) < 0.06
    removed = np.tile(pinhole | hole, 2)
    assert pinhole.sum() == 1
    cleaned = clean_open(TriMesh(mesh.vertices, mesh.faces[~removed]))
    report = measure(cleaned)
    assert 2 - (report.vertices - (3 * report.faces + report.boundary_edges) // 2 + report.faces) == 2
    assert measure(clean_open(TriMesh(mesh.vertices, mesh.faces[~removed]), max_hole_share=0.5)).boundary_edges == 640


def test_two_coincident_sheets_become_one() -> None:
    mesh = sheet()
    both = joined(mesh, TriMesh(mesh.vertices, mesh.faces[:, ::-1]))
    assert len(clean_open(both).faces) == len(mesh.faces)


def test_sheets_that_meet_at_an_edge_become_separate_manifolds() -> None:
    flat = sheet()
    upright = turned(flat)
    half = TriMesh(upright.vertices, upright.faces[upright.corners[:, :, 1].mean(axis=1) > 0])
    crossing, ending = (clean_open(joined(flat, other)) for other in (upright, half))
    for cleaned, faces in ((crossing, 2 * len(flat.faces)), (ending, 3 * len(flat.faces) // 2)):
        report = measure(cleaned)
        assert report.non_manifold_edges == 0 and report.is_winding_consistent
        assert report.components == 2 and report.faces == faces


def test_bodies_among_sheets_are_wound_outward() -> None:
    ball = sphere(24, radius=0.2)
    inward = TriMesh(ball.vertices + np.float32([0, 0.25, 0]), ball.faces[:, ::-1])
    cleaned = clean_open(joined(inward, TriMesh(sheet().vertices - np.float32([0, 0.3, 0]), sheet().faces)))
    is_body = faces_of_bodies(cleaned)
    assert is_body.sum() == len(ball.faces)
    assert TriMesh(cleaned.vertices, cleaned.faces[is_body]).volume() > 0


def test_a_body_alone_stays_closed() -> None:
    report = measure(clean_open(torus()))
    assert report.is_watertight and report.volume > 0


def test_a_moebius_strip_is_cut_where_its_sides_meet() -> None:
    turn, across = np.meshgrid(np.linspace(0, 2 * np.pi, 60, endpoint=False), np.linspace(-0.1, 0.1, 6), indexing="ij")
    radius = 0.3 + across * np.cos(turn / 2)
    points = np.stack([radius * np.cos(turn), across * np.sin(turn / 2), radius * np.sin(turn)], axis=-1).reshape(-1, 3)
    number = np.arange(360).reshape(60, 6)
    number = np.concatenate([number, number[:1, ::-1]])
    a, b, c, d = (part.ravel() for part in (number[:-1, :-1], number[1:, :-1], number[1:, 1:], number[:-1, 1:]))
    faces = np.concatenate([np.stack([a, b, c], axis=1), np.stack([a, c, d], axis=1)]).astype(np.int32)
    report = measure(clean_open(TriMesh(points.astype(np.float32), faces)))
    assert report.is_winding_consistent and report.faces == len(faces) and report.non_manifold_edges == 0


def test_nothing_gives_an_empty_mesh() -> None:
    assert len(clean_open(TriMesh(np.zeros((3, 3), np.float32), np.array([[0, 1, 2]], np.int32))).faces) == 0
