from __future__ import annotations

import pytest
import torch

from pipeline.ops.voxels import OCTANTS, VoxelSet
from tests.reference.voxels import neighbour_rows, random_coords, rows_by_voxel

SETS = [(0, 1, 1), (1, 1, 1), (40, 5, 1), (30, 6, 2)]


@pytest.mark.parametrize(("count", "side", "batch"), SETS)
def test_neighbours_are_those_that_a_dictionary_finds(count: int, side: int, batch: int) -> None:
    coords = random_coords(count, side, seed=count, batch=batch)

    voxels = VoxelSet(coords)

    assert voxels.neighbours.tolist() == neighbour_rows(coords)


@pytest.mark.parametrize(("count", "side", "batch"), SETS)
def test_a_subdivided_set_knows_its_neighbours_without_looking(count: int, side: int, batch: int) -> None:
    finer = VoxelSet(random_coords(count, side, seed=count, batch=batch), batch_size=batch).subdivide()

    assert len(finer) == 8 * count * batch
    assert finer.neighbours.tolist() == neighbour_rows(finer.coords)


def test_subdivision_puts_the_eight_children_of_a_voxel_next_to_each_other() -> None:
    coords = random_coords(5, 4, seed=1)

    finer = VoxelSet(coords).subdivide().coords.tolist()

    expected = [[b, 2 * x + dx, 2 * y + dy, 2 * z + dz] for b, x, y, z in coords.tolist() for dx, dy, dz in OCTANTS]
    assert finer == expected


@pytest.mark.parametrize(("count", "side", "batch"), SETS)
def test_cells_are_sorted_and_every_voxel_lies_in_its_own(count: int, side: int, batch: int) -> None:
    coords = random_coords(count, side, seed=count, batch=batch)

    coarsening = VoxelSet(coords, batch_size=batch).coarsen(2)

    cells = [tuple(c) for c in coarsening.cells.coords.tolist()]
    assert cells == sorted({(b, x // 2, y // 2, z // 2) for b, x, y, z in coords.tolist()})
    for (b, x, y, z), cell in zip(coords.tolist(), coarsening.cell_of_row.tolist(), strict=True):
        assert cells[cell] == (b, x // 2, y // 2, z // 2)
    assert int(coarsening.groups.counts.sum()) == len(coords)


@pytest.mark.parametrize("shift", [0, 2])
def test_every_row_lies_in_exactly_one_window(shift: int) -> None:
    coords = random_coords(60, 9, seed=3, batch=2)
    voxels = VoxelSet(coords)

    seen: dict[int, tuple[int, ...]] = {}
    for group in voxels.windows(4, shift):
        valid = torch.ones_like(group.rows, dtype=torch.bool) if group.valid is None else group.valid
        for rows, kept in zip(group.rows, valid, strict=True):
            window = {tuple(coords[row].add(torch.tensor([0, *[shift] * 3])).tolist()) for row in rows[kept].tolist()}
            ids = {(b, x // 4, y // 4, z // 4) for b, x, y, z in window}
            assert len(ids) == 1
            for row in rows[kept].tolist():
                assert row not in seen
                seen[row] = next(iter(ids))

    assert len(seen) == len(coords)


def test_windows_of_very_different_length_are_not_padded_together() -> None:
    full = torch.cartesian_prod(*[torch.arange(4)] * 3)
    lonely = torch.tensor([[8, 8, 8]])
    coords = torch.cat([full, lonely])

    groups = VoxelSet(torch.cat([torch.zeros(len(coords), 1, dtype=torch.int64), coords], dim=1)).windows(4, 0)

    assert [tuple(group.rows.shape) for group in groups] == [(1, 64), (1, 1)]


def test_tables_are_made_once() -> None:
    voxels = VoxelSet(random_coords(20, 4, seed=0))

    assert voxels.neighbours is voxels.neighbours
    assert voxels.windows(2, 1) is voxels.windows(2, 1)
    assert voxels.coarsen(2) is voxels.coarsen(2)
    assert voxels.subdivide() is voxels.subdivide()


def test_rows_of_one_batch_element_must_lie_together() -> None:
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
