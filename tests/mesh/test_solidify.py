"""Solids of open surfaces: closed, without cavities, near the exact offset surface, within bounds of work."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.spatial import KDTree
from scipy.spatial.transform import Rotation

from pipeline.mesh import solidify as module
from pipeline.mesh.clean_open import clean_open, faces_of_bodies
from pipeline.mesh.measure import measure
from pipeline.mesh.print_check import component_volumes
from pipeline.mesh.solidify import Solids, solidify
from pipeline.mesh.tri_mesh import TriMesh
from tests.mesh.shapes import cuboid, hemisphere, joined, leaf, sphere, turned_over

ALL_FACES = 10_000_000  # nothing is simplified
THICKNESS = 0.06


def disc(radius: float = 0.4, corners: int = 200, turn: int = 0) -> TriMesh:
    """A flat disc, turned in a random way."""
    angles = np.linspace(0, 2 * np.pi, corners, endpoint=False)
    rim = np.stack([radius * np.cos(angles), radius * np.sin(angles), 0 * angles], axis=1)
    faces = [(0, 1 + k, 1 + (k + 1) % corners) for k in range(corners)]
    vertices = np.concatenate([np.zeros((1, 3)), rim]) @ Rotation.random(rng=turn).as_matrix().T
    return TriMesh(vertices.astype(np.float32), np.array(faces, np.int32))


def ribbon(seed: int) -> TriMesh:
    """A wavy sheet of 24 by 24 squares, in any place and turned in any way, each face wound at random."""
    rng = np.random.default_rng(seed)
    count = 25
    u, v = np.meshgrid(*[np.linspace(-0.4, 0.4, count)] * 2, indexing="ij")
    height = 0.1 * np.sin(rng.uniform(3, 9) * u + rng.uniform(0, 6)) * np.cos(rng.uniform(3, 9) * v)
    vertices = np.stack([u, v * rng.uniform(0.2, 1), height], axis=-1).reshape(-1, 3)
    vertices = vertices @ Rotation.random(rng=rng).as_matrix().T + rng.uniform(-0.2, 0.2, 3)
    at = np.arange(count**2).reshape(count, count)
    a, b, c, d = at[:-1, :-1].ravel(), at[1:, :-1].ravel(), at[1:, 1:].ravel(), at[:-1, 1:].ravel()
    faces = np.concatenate([np.stack([a, b, c], axis=1), np.stack([a, c, d], axis=1)]).astype(np.int32)
    turned = rng.random(len(faces)) < 0.5
    return TriMesh(vertices.astype(np.float32), np.where(turned[:, None], faces[:, ::-1], faces))


def checked(mesh: TriMesh, *, thickness: float = THICKNESS, cells: int = 64, most_faces: int = ALL_FACES) -> Solids:
    """The solids of a surface; what holds of every result is checked here."""
    made = solidify(mesh, thickness_m=thickness, most_faces=most_faces, cells_along=cells)
    report = measure(made.mesh)
    assert report.is_watertight and report.is_winding_consistent and report.non_manifold_edges == 0
    welded = np.unique(np.round(made.mesh.vertices * 1e6), axis=0)  # as readers do
    assert len(welded) == len(made.mesh.vertices)
    assert (component_volumes(made.mesh)[0] > 0).all()  # a cavity has a negative volume
    return made


def distance_to_disc(points: NDArray[np.float64], turn: int, radius: float = 0.4) -> NDArray[np.float64]:
    flat = points @ Rotation.random(rng=turn).as_matrix()
    return np.hypot(np.maximum(np.hypot(flat[:, 0], flat[:, 1]) - radius, 0), flat[:, 2])


@pytest.mark.parametrize("turn", range(4))
def test_a_disc_becomes_the_points_within_half_the_thickness_to_a_cell(turn: int) -> None:
    made = checked(disc(turn=turn))

    off = distance_to_disc(made.mesh.vertices.astype(np.float64), turn) - THICKNESS / 2
    assert np.abs(off).max() < 0.25 * made.cell_m
    around = np.linspace(0, 2 * np.pi, 300)
    across = np.linspace(-np.pi / 2, np.pi / 2, 9)
    rim = np.stack(
        [
            np.outer(0.4 + THICKNESS / 2 * np.cos(across), np.cos(around)).ravel(),
            np.outer(0.4 + THICKNESS / 2 * np.cos(across), np.sin(around)).ravel(),
            np.repeat(THICKNESS / 2 * np.sin(across), len(around)),
        ],
        axis=1,
    )
    exact = rim @ Rotation.random(rng=turn).as_matrix().T
    assert KDTree(made.mesh.vertices).query(exact)[0].max() < made.cell_m


def test_simplification_keeps_the_error_below_a_cell() -> None:
    made = checked(disc(), most_faces=2000)

    assert len(made.mesh.faces) <= 2000
    off = distance_to_disc(made.mesh.corners.mean(axis=1).astype(np.float64), 0) - THICKNESS / 2
    assert np.abs(off).max() < made.cell_m


def test_a_body_among_sheets_keeps_its_surface_and_loses_its_cavity() -> None:
    body, hollow = sphere(40, 0.3), turned_over(sphere(30, 0.15))
    mesh = clean_open(joined(body, hollow, TriMesh(leaf().vertices + np.float32([0, 0.5, 0]), leaf().faces)))
    made = checked(mesh, thickness=0.05, cells=96)

    low = made.mesh.vertices[made.mesh.vertices[:, 1] < 0.1]
    assert np.abs(np.linalg.norm(low, axis=1) - 0.3).max() < 0.5 * made.cell_m
    assert np.linalg.norm(made.mesh.vertices, axis=1).min() > 0.25


def test_a_shell_with_a_hole_narrower_than_the_thickness_becomes_solid_and_a_cup_stays_hollow() -> None:
    ball = sphere(64, 0.4)
    pricked = TriMesh(ball.vertices, ball.faces[ball.corners[:, :, 1].max(axis=1) < 0.3995])
    cup = hemisphere(64)

    assert not faces_of_bodies(pricked).any()
    solid = checked(pricked).mesh
    assert solid.volume() == pytest.approx(4 / 3 * np.pi * 0.43**3, rel=0.02)
    area = 2 * np.pi * 0.4**2
    assert checked(cup).mesh.volume() == pytest.approx(area * THICKNESS, rel=0.1)


@pytest.mark.parametrize("seed", range(20))
def test_sheets_and_bodies_that_cross_become_closed_solids(seed: int) -> None:
    rng = np.random.default_rng(100 + seed)
    parts = [ribbon(100 * seed + k) for k in range(rng.integers(1, 5))]
    if seed % 2:
        parts.append(sphere(16, 0.2))
    made = checked(clean_open(joined(*parts)), thickness=0.04, most_faces=20_000)

    assert measure(made.mesh).components == len(component_volumes(made.mesh)[0])
    assert len(made.mesh.faces) <= 20_000


def test_bodies_whose_corners_lie_on_lines_of_the_grid_have_their_volume() -> None:
    """Cuboids of whole cells, and a sheet far from them that sets where the grid begins."""
    cell = 1 / 64
    sheet = TriMesh(np.float32([[0, 0, 0], [0, 0, 0.25], [0.25, 0, 0]]), np.int32([[0, 1, 2]]))
    sizes = [(8, 8, 8), (16, 4, 8), (4, 24, 4)]
    boxes = []
    for k, size in enumerate(sizes):
        box = cuboid(tuple(cell * each for each in size))
        boxes.append(TriMesh((box.vertices + np.float32([0.3, 0.25, 0.25 * k])).astype(np.float32), box.faces))
    made = checked(joined(sheet, *boxes), thickness=4 * cell)

    # The largest is the sheet. Edges and corners are cut by part of a cell.
    exact = sorted(np.prod(size) * cell**3 for size in sizes)
    assert sorted(component_volumes(made.mesh)[0])[:-1] == pytest.approx(exact, rel=0.08)


def test_a_long_face_is_visited_near_its_surface_alone() -> None:
    """One needle across the grid: the boxes around its pieces hold few points of its own box."""
    needle = np.array([[[0.0, 0.0, 0.0], [200.0, 200.0, 200.0], [200.0, 201.0, 200.0]]])
    assert module._visits(needle, 4.0, module.MOST_VISITS) < 208**3 / 8


def test_more_work_than_allowed_makes_the_grid_coarser_and_keeps_sheets_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    mesh = clean_open(leaf())
    fine = checked(mesh, thickness=0.015, cells=128)
    monkeypatch.setattr(module, "MOST_VISITS", 2_000_000)
    coarse = checked(mesh, thickness=0.015, cells=128)
    monkeypatch.setattr(module, "MOST_CELLS", 30_000)
    coarsest = checked(mesh, thickness=0.015, cells=128)

    assert fine.cell_m == pytest.approx(0.015 / 2.5)  # the thickness asks for more cells than 128
    assert fine.cell_m < coarse.cell_m < coarsest.cell_m
    for made in (coarse, coarsest):
        assert made.thickness_m == pytest.approx(max(0.015, 2.5 * made.cell_m))
        assert measure(made.mesh).components == 1


def test_equal_surfaces_give_equal_bytes() -> None:
    first, second = (checked(leaf(), most_faces=3000).mesh for _ in range(2))

    assert np.array_equal(first.vertices, second.vertices) and np.array_equal(first.faces, second.faces)
