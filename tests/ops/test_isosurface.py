from __future__ import annotations

from collections.abc import Callable
from itertools import product

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline.mesh.tri_mesh import TriMesh
from pipeline.ops.cell_table import EDGES, triangle_table
from pipeline.ops.isosurface import IsoSurface, extract_isosurface

LEVEL = 25.0
Distance = Callable[[Tensor, Tensor, Tensor], Tensor]


def ball(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
    return 0.8 - torch.sqrt((x - 0.03) ** 2 + (y + 0.05) ** 2 + (z - 0.02) ** 2)


def ring_with_satellites(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
    """A torus, a ball thinner than a coarse cell beside it, and a thin wire."""
    torus = 0.18 - torch.hypot(torch.hypot(x, y) - 0.6, z - 0.1)
    wire = 0.02 - torch.hypot(x - 0.1 * z, y + 0.05)
    bead = 0.03 - torch.sqrt((x - 0.313) ** 2 + (y - 0.207) ** 2 + (z + 0.711) ** 2)
    return torch.maximum(torch.maximum(torus, bead), torch.minimum(wire, 0.9 - z.abs()))


def holed_plate(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
    """A thin wavy plate with holes, open where it leaves the box."""
    plate = 0.05 - (z - 0.15 * torch.sin(3 * x) * torch.cos(2 * y)).abs()
    holes = torch.hypot(torch.remainder(x + 0.31, 0.5) - 0.25, torch.remainder(y + 0.13, 0.5) - 0.25) - 0.1
    return torch.minimum(plate, holes)


def density(distance: Distance, resolution: int, *, steepness: float = 12.0) -> Callable[[Tensor], Tensor]:
    """The density of a body whose surface lies at `LEVEL`, at grid points of the box from -1 to 1."""

    def evaluate(indices: Tensor) -> Tensor:
        at = indices.float() / (resolution - 1) * 2 - 1
        x, y, z = at[:, 0, :, None, None], at[:, 1, None, :, None], at[:, 2, None, None, :]
        return LEVEL * torch.exp(steepness * distance(x, y, z)) + 0 * (x + y + z)

    return evaluate


def dense_crossings(distance: Distance, resolution: int) -> tuple[Tensor, Tensor]:
    """Every crossed edge of the whole grid, looked at layer by layer: (V, 4) ascending, and (V,) places along them."""
    line = torch.arange(resolution)
    edges, shares = [], []
    for start in range(0, resolution, 16):
        layers = line[start : start + 17]
        at = layers.float() / (resolution - 1) * 2 - 1, line.float() / (resolution - 1) * 2 - 1
        values = LEVEL * torch.exp(12.0 * distance(at[0][:, None, None], at[1][:, None], at[1])) + 0 * at[1]
        for axis in range(3):
            low = values.narrow(axis, 0, values.shape[axis] - 1)
            high = values.narrow(axis, 1, values.shape[axis] - 1)
            keep = slice(0, 16)
            crossed = ((low > LEVEL) != (high > LEVEL))[keep].nonzero()
            a, b = low[keep][tuple(crossed.unbind(1))], high[keep][tuple(crossed.unbind(1))]
            small, large = torch.minimum(a, b), torch.maximum(a, b)
            share = (LEVEL - small) / (large - small)
            shares.append(torch.where(a <= b, share, 1 - share))
            crossed[:, 0] += start
            edges.append(torch.cat([crossed, torch.full((len(crossed), 1), axis)], dim=1))
    found, share = torch.cat(edges), torch.cat(shares)
    key = ((found[:, 0] * resolution + found[:, 1]) * resolution + found[:, 2]) * 3 + found[:, 3]
    order = torch.argsort(key)
    return found[order], share[order]


def along(surface: IsoSurface) -> Tensor:
    """(V,) places of vertices along their edges."""
    rows = torch.arange(len(surface.edges))
    axis = surface.edges[:, 3]
    return surface.vertices[rows, axis] - surface.edges[rows, axis]


@pytest.mark.parametrize("distance", [ball, ring_with_satellites, holed_plate])
def test_at_512_following_the_surface_finds_that_of_the_whole_grid_with_a_quarter_of_its_points(
    distance: Distance,
) -> None:
    surface = extract_isosurface(density(distance, 512), resolution=512, level=LEVEL)

    edges, share = dense_crossings(distance, 512)
    assert surface.evaluations <= 512**3 / 4
    assert torch.equal(surface.edges, edges)
    assert float((along(surface) - share).abs().max()) < 1e-3  # of a cell; half a cell is asked for


@pytest.mark.parametrize(("resolution", "step"), list(product([100, 131, 200], [2, 4])))
def test_any_resolution_and_step_give_the_faces_of_the_whole_grid(resolution: int, step: int) -> None:
    evaluate = density(ring_with_satellites, resolution)

    sparse = extract_isosurface(evaluate, resolution=resolution, level=LEVEL, step=step)
    dense = extract_isosurface(evaluate, resolution=resolution, level=LEVEL, step=1)

    assert torch.equal(sparse.vertices, dense.vertices)
    assert {tuple(face) for face in sparse.faces.tolist()} == {tuple(face) for face in dense.faces.tolist()}


def test_a_surface_that_the_first_look_misses_is_followed_from_where_it_was_seen() -> None:
    def knob_on_a_needle(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
        needle = torch.minimum(0.012 - torch.hypot(x - 0.4, y - 0.4), 0.9 - z.abs())
        knob = 0.2 - torch.sqrt((x - 0.4) ** 2 + (y - 0.4) ** 2 + (z + 0.6) ** 2)
        return torch.maximum(needle, knob)

    evaluate = density(knob_on_a_needle, 256, steepness=400.0)  # so steep that nothing shows from afar

    sparse = extract_isosurface(evaluate, resolution=256, level=LEVEL)
    dense = extract_isosurface(evaluate, resolution=256, level=LEVEL, step=1)

    assert torch.equal(sparse.edges, dense.edges)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_noise_gives_a_surface_without_holes_whose_faces_look_outward(seed: int) -> None:
    grid = torch.full((14, 14, 14), 1.0)
    grid[1:-1, 1:-1, 1:-1] = torch.rand((12, 12, 12), generator=torch.Generator().manual_seed(seed)) * 2 * LEVEL

    surface = extract_isosurface(
        lambda i: grid[i[:, 0, :, None, None], i[:, 1, None, :, None], i[:, 2, None, None, :]],
        resolution=14,
        level=LEVEL,
    )

    faces = surface.faces
    ways = torch.cat([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])
    there, back = (torch.sort(ways[:, a] * len(surface.vertices) + ways[:, b])[0] for a, b in ((0, 1), (1, 0)))
    assert torch.equal(there, back)  # every edge is walked as often one way as the other
    assert TriMesh(surface.vertices.numpy(), faces.int().numpy()).volume() > 0


def test_an_infinite_value_and_an_empty_field_are_no_trouble() -> None:
    grid = torch.ones((8, 8, 8))
    grid[3, 3, 3] = torch.inf

    def evaluate(i: Tensor) -> Tensor:
        return grid[i[:, 0, :, None, None], i[:, 1, None, :, None], i[:, 2, None, None, :]]

    spike = extract_isosurface(evaluate, resolution=8, level=LEVEL)
    nothing = extract_isosurface(evaluate, resolution=3, level=LEVEL)

    assert torch.isfinite(spike.vertices).all() and len(spike.faces) == 8
    assert nothing.vertices.shape == (0, 3) and nothing.faces.shape == (0, 3)


def test_the_table_uses_each_crossed_edge_and_no_other() -> None:
    for (case, _), triangles in triangle_table().items():
        inside = [bool(case >> corner & 1) for corner in range(8)]
        crossed = {n for n, (corner, axis) in enumerate(EDGES) if inside[corner] != inside[corner + (4, 2, 1)[axis]]}
        assert set(np.ravel(triangles).tolist() if triangles else []) == crossed
