"""Tables of a voxel set, against dictionaries."""

from __future__ import annotations

import pytest
import torch

from pipeline.ops import voxels as module
from pipeline.ops.voxels import OCTANTS, VoxelSet
from tests.reference.voxels import cells_of, neighbour_rows, random_coords, rows_by_voxel, windows_of

SETS = [(0, 1, 1), (1, 1, 1), (40, 5, 1), (30, 6, 2)]


@pytest.mark.parametrize(("count", "side", "batch"), SETS)
def test_neighbours_equal_those_that_a_dictionary_finds(count: int, side: int, batch: int) -> None:
    coords = random_coords(count, side, seed=count, batch=batch)

    voxels = VoxelSet(coords)

    assert voxels.neighbours.tolist() == neighbour_rows(coords)


def test_neighbours_that_are_searched_in_blocks_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    coords = random_coords(40, 5, seed=40)
    monkeypatch.setattr(module, "CACHED_ROWS", 7)

    assert VoxelSet(coords).neighbours.tolist() == neighbour_rows(coords)


@pytest.mark.parametrize(("count", "side", "batch"), SETS)
def test_the_neighbours_of_a_subdivided_set_equal_those_that_a_dictionary_finds(
    count: int, side: int, batch: int
) -> None:
    finer = VoxelSet(random_coords(count, side, seed=count, batch=batch), batch_size=batch).subdivide()

    assert len(finer) == 8 * count * batch
    assert finer.neighbours.tolist() == neighbour_rows(finer.coords)


def test_subdivision_puts_the_eight_children_of_a_voxel_next_to_each_other() -> None:
    coords = random_coords(5, 4, seed=1)

    finer = VoxelSet(coords).subdivide().coords.tolist()

    expected = [[b, 2 * x + dx, 2 * y + dy, 2 * z + dz] for b, x, y, z in coords.tolist() for dx, dy, dz in OCTANTS]
    assert finer == expected


@pytest.mark.parametrize(("count", "side", "batch"), SETS)
def test_cells_are_sorted_and_every_voxel_lies_in_its_cell(count: int, side: int, batch: int) -> None:
    coords = random_coords(count, side, seed=count, batch=batch)

    coarsening = VoxelSet(coords, batch_size=batch).coarsen(2)

    cells, expected = [tuple(c) for c in coarsening.cells.coords.tolist()], cells_of(coords, 2)
    assert cells == sorted(set(expected))
    assert [cells[cell] for cell in coarsening.cell_of_row.tolist()] == expected
    assert int(coarsening.groups.counts.sum()) == len(coords)


@pytest.mark.parametrize(("count", "side", "batch"), SETS)
@pytest.mark.parametrize("shift", [0, 2])
def test_every_row_lies_in_exactly_one_window_and_it_is_its_own(count: int, side: int, batch: int, shift: int) -> None:
    coords = random_coords(count, side, seed=3, batch=batch)

    groups = VoxelSet(coords, batch_size=batch).windows(4, shift)

    window_of = windows_of(coords, 4, shift)
    windows: list[list[int]] = []
    for group in groups:
        valid = torch.ones_like(group.rows, dtype=torch.bool) if group.valid is None else group.valid
        windows += [rows[kept].tolist() for rows, kept in zip(group.rows, valid, strict=True)]
    assert sorted(row for rows in windows for row in rows) == list(range(len(coords)))
    assert all(len({window_of[row] for row in rows}) == 1 for rows in windows)
    assert len(windows) == len(set(window_of))


def test_permuting_voxels_permutes_their_neighbours_and_keeps_the_cells() -> None:
    coords = random_coords(40, 5, seed=6)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(0))
    new_row = torch.empty(41, dtype=torch.int64)
    new_row[order], new_row[40] = torch.arange(40), 40

    voxels, permuted = VoxelSet(coords), VoxelSet(coords[order])

    assert torch.equal(permuted.neighbours.long(), new_row[voxels.neighbours.long()][:, order])
    assert torch.equal(permuted.coarsen(2).cells.coords, voxels.coarsen(2).cells.coords)


def test_windows_of_very_different_length_are_not_padded_together() -> None:
    full = torch.cartesian_prod(*[torch.arange(4)] * 3)
    lonely = torch.tensor([[8, 8, 8]])
    coords = torch.cat([full, lonely])

    groups = VoxelSet(torch.cat([torch.zeros(len(coords), 1, dtype=torch.int64), coords], dim=1)).windows(4, 0)

    assert [tuple(group.rows.shape) for group in groups] == [(1, 64), (1, 1)]


def test_tables_are_computed_once() -> None:
    voxels = VoxelSet(random_coords(20, 4, seed=0))

    assert voxels.neighbours is voxels.neighbours
    assert voxels.windows(2, 1) is voxels.windows(2, 1)
    assert voxels.coarsen(2) is voxels.coarsen(2)
    assert voxels.subdivide() is voxels.subdivide()


def test_rows_must_be_sorted_by_batch_element() -> None:
    coords = torch.tensor([[0, 0, 0, 0], [1, 0, 0, 0], [0, 1, 0, 0]])

    with pytest.raises(ValueError, match="sorted by batch element"):
        VoxelSet(coords)


def test_coords_have_four_columns() -> None:
    with pytest.raises(ValueError, match=r"got \(2, 3\)"):
        VoxelSet(torch.zeros((2, 3), dtype=torch.int32))


def test_an_element_without_voxels_has_an_empty_segment() -> None:
    voxels = VoxelSet(torch.tensor([[0, 0, 0, 0], [2, 0, 0, 0]]))

    assert [(s.start, s.stop) for s in voxels.segments] == [(0, 1), (1, 1), (1, 2)]
    assert rows_by_voxel(voxels.coords)[(2, 0, 0, 0)] == 1
