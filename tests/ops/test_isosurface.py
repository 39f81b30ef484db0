"""Marching cubes with a coarse first pass, against the whole grid and against one cell at a time."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from itertools import product

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline.mesh.tri_mesh import TriMesh
from pipeline.ops.isosurface import IsoSurface, extract_isosurface
from tests.reference.isosurface import isosurface

LEVEL = 25.0
Distance = Callable[[Tensor, Tensor, Tensor], Tensor]


def norm(*components: Tensor) -> Tensor:
    """Euclidean norm; torch.hypot is not vectorised and ten times slower."""
    return sum(component * component for component in components[1:]).add(components[0] * components[0]).sqrt_()


def ball(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
    return 0.8 - norm(x - 0.03, y + 0.05, z - 0.02)


def torus_with_satellites(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
    """A torus, next to it a ball thinner than a coarse cell, and a thin wire."""
    torus = 0.18 - norm(norm(x, y) - 0.6, z - 0.1)
    wire = 0.02 - norm(x - 0.1 * z, y + 0.05)
    bead = 0.03 - norm(x - 0.313, y - 0.207, z + 0.711)
    return torch.maximum(torch.maximum(torus, bead), torch.minimum(wire, 0.9 - z.abs()))


def plate_with_holes(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
    """A thin wavy plate with holes, open at the border of the grid."""
    plate = 0.05 - (z - 0.15 * torch.sin(3 * x) * torch.cos(2 * y)).abs()
    holes = norm(torch.remainder(x + 0.31, 0.5) - 0.25, torch.remainder(y + 0.13, 0.5) - 0.25) - 0.1
    return torch.minimum(plate, holes)


def density(distance: Distance, resolution: int, *, steepness: float = 12.0) -> Callable[[Tensor], Tensor]:
    """The density of a solid whose surface lies at `LEVEL`, at grid points of the box from -1 to 1."""

    def evaluate(indices: Tensor) -> Tensor:
        at = indices.float() / (resolution - 1) * 2 - 1
        x, y, z = at[:, 0, :, None, None], at[:, 1, None, :, None], at[:, 2, None, None, :]
        return distance(x, y, z).mul(steepness).exp_().mul_(LEVEL)

    return evaluate


def grid_values(grid: Tensor) -> Callable[[Tensor], Tensor]:
    """Look values up in a grid (R, R, R)."""
    return lambda i: grid[i[:, 0, :, None, None], i[:, 1, None, :, None], i[:, 2, None, None, :]]


def dense_crossings(distance: Distance, resolution: int) -> tuple[Tensor, Tensor]:
    """Every crossed edge of the whole grid, found slab by slab: (V, 4) ascending, and (V,) positions along them."""
    line = torch.arange(resolution).float() / (resolution - 1) * 2 - 1
    edges, shares = [], []
    for start in range(0, resolution, 16):
        x, y, z = line[start : start + 17, None, None], line[:, None], line
        away = distance(x, y, z)  # (17, R, R)

        def value(at: Tensor) -> Tensor:
            return at.mul(12.0).exp_().mul_(LEVEL)

        # Away from the surface the sign decides; next to it, where the exponential rounds, the value itself does.
        inside = away > 0
        close = (away.abs() < 1e-3).nonzero(as_tuple=True)
        inside[close] = value(away[close]) > LEVEL
        for axis in range(3):
            low, high = (inside.narrow(axis, first, inside.shape[axis] - 1)[:16] for first in (0, 1))
            crossed = (low ^ high).nonzero()
            upper = crossed.clone()
            upper[:, axis] += 1
            a, b = (value(away[tuple(end.unbind(1))]) for end in (crossed, upper))
            small, large = torch.minimum(a, b), torch.maximum(a, b)
            share = (LEVEL - small) / (large - small)
            shares.append(torch.where(a <= b, share, 1 - share))
            crossed[:, 0] += start
            edges.append(torch.cat([crossed, torch.full((len(crossed), 1), axis)], dim=1))
    found, share = torch.cat(edges), torch.cat(shares)
    key = ((found[:, 0] * resolution + found[:, 1]) * resolution + found[:, 2]) * 3 + found[:, 3]
    order = torch.argsort(key)
    return found[order], share[order]


def positions_along_edges(surface: IsoSurface) -> Tensor:
    """(V,) positions of vertices along their edges, 0 to 1."""
    rows = torch.arange(len(surface.edges))
    axis = surface.edges[:, 3]
    return surface.vertices[rows, axis] - surface.edges[rows, axis]


def sorted_faces(surface: IsoSurface) -> Tensor:
    """The faces (F, 3) in ascending order, each with its smallest vertex first."""
    first = surface.faces.argmin(dim=1, keepdim=True)
    turned = surface.faces.gather(1, (first + torch.arange(3)) % 3)
    count = max(1, len(surface.vertices))
    return turned[torch.argsort((turned[:, 0] * count + turned[:, 1]) * count + turned[:, 2])]


@pytest.mark.parametrize("distance", [ball, torus_with_satellites, plate_with_holes])
def test_at_512_the_surface_equals_that_of_the_whole_grid_with_a_quarter_of_its_points(distance: Distance) -> None:
    surface = extract_isosurface(density(distance, 512), resolution=512, level=LEVEL)

    edges, share = dense_crossings(distance, 512)
    assert surface.evaluations <= 512**3 / 4
    assert torch.equal(surface.edges, edges)
    assert float((positions_along_edges(surface) - share).abs().max()) < 1e-3  # of a cell; the requirement is a half


@cache
def whole_grid_surface(resolution: int) -> IsoSurface:
    return extract_isosurface(density(torus_with_satellites, resolution), resolution=resolution, level=LEVEL, step=1)


@pytest.mark.parametrize(("resolution", "step"), list(product([100, 131, 200], [2, 4])))
def test_any_resolution_and_step_give_the_faces_of_the_whole_grid(resolution: int, step: int) -> None:
    evaluate = density(torus_with_satellites, resolution)

    sparse = extract_isosurface(evaluate, resolution=resolution, level=LEVEL, step=step)

    dense = whole_grid_surface(resolution)
    assert torch.equal(sparse.vertices, dense.vertices)
    assert torch.equal(sorted_faces(sparse), sorted_faces(dense))


def test_a_surface_that_the_coarse_pass_misses_is_tracked_from_where_it_was_found() -> None:
    def knob_on_a_needle(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
        needle = torch.minimum(0.012 - norm(x - 0.4, y - 0.4), 0.9 - z.abs())
        knob = 0.2 - norm(x - 0.4, y - 0.4, z + 0.6)
        return torch.maximum(needle, knob)

    evaluate = density(knob_on_a_needle, 256, steepness=400.0)  # so steep that distant values show no sign of it

    sparse = extract_isosurface(evaluate, resolution=256, level=LEVEL)
    dense = extract_isosurface(evaluate, resolution=256, level=LEVEL, step=1)

    assert torch.equal(sparse.edges, dense.edges)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("side", [2, 3, 9])
def test_noise_gives_the_surface_of_the_reference(seed: int, side: int) -> None:
    grid = torch.rand((side, side, side), generator=torch.Generator().manual_seed(seed)) * 2 * LEVEL

    surface = extract_isosurface(grid_values(grid), resolution=side, level=LEVEL)

    crossings, triangles = isosurface(grid.double().numpy(), LEVEL)
    edges = [tuple(edge) for edge in surface.edges.tolist()]
    assert edges == sorted(crossings)
    expected = torch.tensor([crossings[edge] for edge in edges], dtype=torch.float64)
    torch.testing.assert_close(positions_along_edges(surface).double(), expected, rtol=0, atol=2e-6)  # float32
    rows = {edge: row for row, edge in enumerate(edges)}
    reference = torch.tensor([[rows[edge] for edge in triangle] for triangle in triangles])
    wanted = IsoSurface(surface.vertices, reference.view(-1, 3), surface.edges, 0)
    assert torch.equal(sorted_faces(surface), sorted_faces(wanted))


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_noise_gives_a_surface_without_holes_whose_faces_are_wound_outward(seed: int) -> None:
    grid = torch.full((14, 14, 14), 1.0)
    grid[1:-1, 1:-1, 1:-1] = torch.rand((12, 12, 12), generator=torch.Generator().manual_seed(seed)) * 2 * LEVEL

    surface = extract_isosurface(grid_values(grid), resolution=14, level=LEVEL)

    faces = surface.faces
    ways = torch.cat([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])
    there, back = (torch.sort(ways[:, a] * len(surface.vertices) + ways[:, b])[0] for a, b in ((0, 1), (1, 0)))
    assert torch.equal(there, back)  # faces run along every edge as often in one direction as in the other
    assert TriMesh(surface.vertices.numpy(), faces.int().numpy()).volume() > 0


def test_exchanging_two_axes_exchanges_them_in_the_surface() -> None:
    grid = torch.rand((7, 7, 7), generator=torch.Generator().manual_seed(3)) * 2 * LEVEL

    surface = extract_isosurface(grid_values(grid), resolution=7, level=LEVEL)
    exchanged = extract_isosurface(grid_values(grid.transpose(0, 1).contiguous()), resolution=7, level=LEVEL)

    points, others = ({tuple(p) for p in s.vertices.tolist()} for s in (surface, exchanged))
    assert {(y, x, z) for x, y, z in points} == others


def test_an_infinite_value_gives_finite_vertices() -> None:
    grid = torch.ones((8, 8, 8))
    grid[3, 3, 3] = torch.inf

    spike = extract_isosurface(grid_values(grid), resolution=8, level=LEVEL)

    assert torch.isfinite(spike.vertices).all() and len(spike.faces) == 8


@pytest.mark.parametrize("resolution", [1, 2, 3])
def test_a_field_below_the_level_gives_an_empty_surface(resolution: int) -> None:
    nothing = extract_isosurface(grid_values(torch.ones([resolution] * 3)), resolution=resolution, level=LEVEL)

    assert nothing.vertices.shape == (0, 3) and nothing.faces.shape == (0, 3)


def test_positions_do_not_depend_on_a_cells_neighbours() -> None:
    """The vertices of a grid's part are those of the whole grid that lie in it."""
    grid = torch.rand((6, 6, 6), generator=torch.Generator().manual_seed(5)) * 2 * LEVEL

    whole = extract_isosurface(grid_values(grid), resolution=6, level=LEVEL)
    part = extract_isosurface(grid_values(grid[:4, :4, :4].contiguous()), resolution=4, level=LEVEL)

    inside = (whole.vertices <= 3).all(dim=1)
    assert np.array_equal(whole.vertices[inside].numpy(), part.vertices.numpy())
