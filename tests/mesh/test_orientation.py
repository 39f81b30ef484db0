"""Orientation of surfaces that are given in random winding: connected sheets end consistent, closed ones outward."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.spatial import KDTree

from pipeline.mesh.clean_open import clean_open, faces_of_bodies
from pipeline.mesh.measure import label_components, measure
from pipeline.mesh.tri_mesh import TriMesh
from tests.mesh.shapes import cuboid, hemisphere, joined, leaf, organic, sphere, stalks, torus

torch = pytest.importorskip("torch", reason="the dual grid needs torch")
Field = Callable[[NDArray[np.float64]], NDArray[np.float64]]


def strip(*, turns: float, cells: int = 240, is_cut: bool = False) -> TriMesh:
    """A band around a circle that twists by half turns; one with an odd number is orientable only if it is cut."""
    end = 2 * np.pi * (1 - 1 / cells if is_cut else 1)
    along, across = np.meshgrid(np.linspace(0, end, cells + 1), np.linspace(-0.1, 0.1, 9), indexing="ij")
    radius = 0.3 + across * np.cos(turns * along / 2)
    points = np.stack([radius * np.cos(along), across * np.sin(turns * along / 2), radius * np.sin(along)], axis=-1)
    number = np.arange(along.size).reshape(along.shape)
    if not is_cut:
        number[-1] = number[0] if turns % 2 == 0 else number[0, ::-1]
    return quads(points, number)


def quads(points: NDArray[np.float64], number: NDArray[np.int64]) -> TriMesh:
    """A grid of (A, B, 3) points, whose vertices have the numbers (A, B), cut to triangles."""
    a, b, c, d = (part.ravel() for part in (number[:-1, :-1], number[1:, :-1], number[1:, 1:], number[:-1, 1:]))
    faces = np.concatenate([np.stack([a, b, c], axis=1), np.stack([a, c, d], axis=1)])
    return TriMesh(points.reshape(-1, 3).astype(np.float32), faces.astype(np.int32))


def patch(height: Callable[..., NDArray[np.float64]], cells: int = 40) -> TriMesh:
    """A square sheet over x and z."""
    axis = np.linspace(-0.4, 0.4, cells + 1)
    x, z = np.meshgrid(axis, axis, indexing="ij")
    return quads(np.stack([x, height(x, z), z], axis=-1), np.arange(x.size).reshape(x.shape))


def upright(mesh: TriMesh) -> TriMesh:
    """Turned by 90 degrees around the z axis."""
    x, y, z = mesh.vertices.T
    return TriMesh(np.stack([-y, x, z], axis=1), mesh.faces)


def moved(mesh: TriMesh, *by: float, scale: float = 1.0) -> TriMesh:
    return TriMesh(mesh.vertices * np.float32(scale) + np.float32(by), mesh.faces)


def roll() -> TriMesh:
    """A sheet that is rolled up in two turns, its layers 0.05 apart."""
    angle, z = np.meshgrid(np.linspace(0, 4 * np.pi, 200), np.linspace(-0.4, 0.4, 30), indexing="ij")
    radius = 0.2 + 0.05 * angle / (2 * np.pi)
    points = np.stack([radius * np.cos(angle), radius * np.sin(angle), z], axis=-1)
    return quads(points, np.arange(angle.size).reshape(angle.shape))


def tube() -> TriMesh:
    """A cylinder that is open at both ends."""
    mesh = torus(60)
    angle = np.arctan2(mesh.corners.mean(axis=1)[:, 2], mesh.corners.mean(axis=1)[:, 0])
    return TriMesh(mesh.vertices, mesh.faces[np.abs(angle) > 0.8])


def upper(mesh: TriMesh) -> TriMesh:
    return TriMesh(mesh.vertices, mesh.faces[mesh.corners[:, :, 1].mean(axis=1) > 0])


def dual_grid(field: Field, *, resolution: int = 48, keep: Field = lambda points: np.ones(len(points))) -> TriMesh:
    """The surface that `dual_grid_mesh` extracts where a field changes its sign, quads oriented by the axes alone.

    Args:
        field: (P, 3) -> (P,), negative inside.
        keep: positive where the surface stays.
    """
    from pipeline.ops.dual_grid import QUAD_CORNERS, DualGrid, dual_grid_mesh

    # The four voxels of an edge's quad have the edge in common: it ends at the first one's upper corner.
    axis = np.arange(resolution)
    cells = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), axis=-1).reshape(-1, 3)
    end = (cells + 1) / resolution - 0.5
    is_inside, stays = field(end) < 0, keep(end) > 0
    marked = np.zeros((len(cells), 3), bool)
    for k, step in enumerate(np.eye(3) / resolution):
        marked[:, k] = ((field(end - step) < 0) != is_inside) & stays
    used = np.unique(
        np.concatenate([(cells[marked[:, k]][:, None] + np.array(QUAD_CORNERS[k])).reshape(-1, 3) for k in range(3)]),
        axis=0,
    )
    of_cell = {tuple(cell): row for row, cell in enumerate(cells.tolist())}
    rows = [of_cell.get(tuple(cell)) for cell in used.tolist()]
    flags = np.array([marked[row] if row is not None else (False,) * 3 for row in rows])
    grid = DualGrid(torch.full((len(used), 3), 0.5), torch.from_numpy(flags), None)
    vertices, faces = dual_grid_mesh(torch.from_numpy(used), grid, resolution=resolution)
    return TriMesh(vertices.numpy().astype(np.float32), faces.numpy().astype(np.int32))


def ball(radius: float) -> Field:
    return lambda points: np.linalg.norm(points, axis=1) - radius


def ring(points: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.hypot(np.hypot(points[:, 0], points[:, 2]) - 0.3, points[:, 1]) - 0.12


def shell(points: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.abs(np.linalg.norm(points, axis=1) - 0.35) - 0.05


def flat(x: NDArray[np.float64], z: NDArray[np.float64]) -> NDArray[np.float64]:
    return 0 * x


def waves(x: NDArray[np.float64], z: NDArray[np.float64]) -> NDArray[np.float64]:
    return 0.1 * np.sin(9 * x) * np.cos(7 * z)


SURFACES: dict[str, tuple[Callable[[], TriMesh], int, int]] = {
    # how it is made, and how many closed components and sheets it has
    "sphere": (sphere, 1, 0),
    "torus": (torus, 1, 0),
    "cuboid": (cuboid, 1, 0),
    "lumps": (organic, 1, 0),
    "table": (stalks, 1, 0),
    "bowl": (hemisphere, 0, 1),
    "leaf with holes": (leaf, 0, 1),
    "waves": (lambda: patch(waves), 0, 1),
    "roll": (roll, 0, 1),
    "tube": (tube, 0, 1),
    "band": (lambda: strip(turns=0), 0, 1),
    "band of a full turn": (lambda: strip(turns=2), 0, 1),
    "cut Möbius strip": (lambda: strip(turns=1, is_cut=True), 0, 1),
    "ball in a ball in a ball": (lambda: joined(*(sphere(30, radius) for radius in (0.45, 0.3, 0.15))), 3, 0),
    "torus in a bowl": (lambda: joined(hemisphere(), moved(torus(30), 0, -0.1, 0, scale=0.4)), 1, 1),
    "leaf, ball and tube": (
        lambda: joined(
            moved(leaf(), 0, 0.3, 0), moved(sphere(20), 0, -0.3, 0, scale=0.3), moved(tube(), 0, 0, 0, scale=0.5)
        ),
        1,
        2,
    ),
    "crossing sheets": (lambda: joined(patch(flat), upright(patch(flat))), 0, 2),
    "sheet that ends on another": (lambda: joined(patch(flat), upper(upright(patch(flat)))), 0, 2),
    "boxes that touch along an edge": (
        lambda: joined(cuboid((0.4, 0.4, 0.4)), moved(cuboid((0.4, 0.4, 0.4)), 0.4, 0.4, 0)),
        2,
        0,
    ),
    "fin on a box": (lambda: joined(cuboid((0.4, 0.4, 0.4)), fin()), 1, 1),
    "dual grid of a ball": (lambda: dual_grid(ball(0.4)), 1, 0),
    "dual grid of a torus": (lambda: dual_grid(ring), 1, 0),
    "dual grid of a hollow ball": (lambda: dual_grid(shell), 2, 0),
    "dual grid of a ball with a hole": (lambda: dual_grid(ball(0.4), keep=lambda points: 0.25 - points[:, 1]), 0, 1),
}


def fin() -> TriMesh:
    """A sheet that stands on an edge of the box of side 0.4, one triangle beside each face."""
    corners = np.array([[0.2, 0.2, -0.2], [0.2, 0.2, 0.2], [0.4, 0.4, 0.2], [0.4, 0.4, -0.2]], np.float32)
    return TriMesh(corners, np.array([[0, 1, 2], [0, 2, 3]], np.int32))


def scrambled(mesh: TriMesh, *, seed: int) -> TriMesh:
    """Half of the faces reversed, the order of faces and vertices shuffled."""
    rng = np.random.default_rng(seed)
    faces = mesh.faces.copy()
    reversed_ = rng.random(len(faces)) < 0.5
    faces[reversed_] = faces[reversed_][:, ::-1]
    order = rng.permutation(len(mesh.vertices))
    number = np.argsort(order)
    return TriMesh(mesh.vertices[order], rng.permutation(number[faces]).astype(np.int32))


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("name", SURFACES)
def test_every_connected_sheet_ends_consistent_and_every_closed_one_outward(name: str, seed: int) -> None:
    make, bodies, sheets = SURFACES[name]
    given = make()

    found = clean_open(scrambled(given, seed=seed))

    report = measure(found)
    assert report.is_winding_consistent and report.non_manifold_edges == 0
    assert 0.9 * len(given.faces) <= len(found.faces) <= len(given.faces)  # without those that have no area
    component = label_components(found)[found.faces[:, 0]]
    is_body = faces_of_bodies(found)
    assert (len(np.unique(component[is_body])), len(np.unique(component[~is_body]))) == (bodies, sheets)
    for number in np.unique(component[is_body]):
        assert TriMesh(found.vertices, found.faces[component == number]).volume() > 0


@pytest.mark.parametrize("name", [name for name in SURFACES if not name.startswith("dual grid")])
def test_every_sheet_is_wound_as_it_was_made_or_wholly_the_other_way(name: str) -> None:
    """Against the winding of the construction, face by face, not only at the edges that two faces share."""
    given = SURFACES[name][0]()

    found = clean_open(scrambled(given, seed=5))

    distance, nearest = KDTree(given.corners.mean(axis=1)).query(found.corners.mean(axis=1))
    assert distance.max() < 2e-5 and len(np.unique(nearest)) == len(found.faces)
    agrees = np.einsum("fi,fi->f", found.face_cross_products(), given.face_cross_products()[nearest]) > 0
    component = label_components(found)[found.faces[:, 0]]
    for number in np.unique(component):
        assert len(np.unique(agrees[component == number])) == 1
    assert agrees[faces_of_bodies(found)].all()
