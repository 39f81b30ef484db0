"""Convolution and resampling on voxels, against dense grids, dictionaries and loops."""

from __future__ import annotations

import pytest
import torch

from pipeline.nn.sparse_conv import SparseConv3d
from pipeline.ops import sparse
from pipeline.ops.sparse import pool_cells, repeat_octants, sparse_conv3, spread_cells
from pipeline.ops.voxels import VoxelSet
from tests.reference.voxels import dense_convolution, pooled_cells, random_coords, spread_to_voxels

EXACT = 1e-12  # float64: both sum the same products in another order
SETS = [(0, 1, 1), (1, 1, 1), (40, 5, 1), (25, 6, 2)]


def normal(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize(("count", "side", "batch"), SETS[1:])
def test_submanifold_conv_equals_dense_conv_on_active_voxels(count: int, side: int, batch: int) -> None:
    coords = random_coords(count, side, seed=count, batch=batch)
    feats, weight, bias = normal(len(coords), 3, seed=1), normal(4, 3, 3, 3, 3, seed=2), normal(4, seed=3)

    out = sparse_conv3(feats[None], VoxelSet(coords), weight, bias)[0]

    torch.testing.assert_close(out, dense_convolution(coords, feats, weight, bias), rtol=0, atol=EXACT)


def test_submanifold_conv_of_no_voxels_is_empty() -> None:
    voxels = VoxelSet(torch.zeros((0, 4), dtype=torch.int32))

    assert sparse_conv3(torch.zeros(1, 0, 3), voxels, torch.zeros(4, 3, 3, 3, 3), None).shape == (1, 0, 4)


def test_submanifold_conv_does_not_depend_on_its_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    coords = random_coords(50, 5, seed=0)
    feats, weight, bias = normal(2, 50, 3, seed=1), normal(4, 3, 3, 3, 3, seed=2), normal(4, seed=3)
    whole = sparse_conv3(feats, VoxelSet(coords), weight, bias)

    monkeypatch.setattr(sparse, "GATHER_LIMIT", 27 * 3 * 2 * 7)
    in_blocks = sparse_conv3(feats, VoxelSet(coords), weight, bias)

    torch.testing.assert_close(in_blocks, whole, rtol=0, atol=EXACT)


def test_permuting_voxels_permutes_the_convolution() -> None:
    coords = random_coords(40, 5, seed=4)
    feats, weight = normal(1, 40, 3, seed=1), normal(4, 3, 3, 3, 3, seed=2)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(0))

    out = sparse_conv3(feats, VoxelSet(coords), weight, None)
    permuted = sparse_conv3(feats[:, order], VoxelSet(coords[order]), weight, None)

    torch.testing.assert_close(permuted, out[:, order], rtol=0, atol=EXACT)


def test_a_kernel_of_one_reads_its_weights_row_major_as_inputs_by_outputs() -> None:
    conv = SparseConv3d(2, 3, 1).double()
    torch.nn.init.normal_(conv.conv.weight, generator=torch.Generator().manual_seed(0))
    torch.nn.init.zeros_(conv.conv.bias)
    feats = normal(1, 5, 2, seed=1)

    out = conv(feats, VoxelSet(random_coords(5, 3, seed=0)))

    flat = conv.conv.weight.detach().flatten().tolist()
    expected = [[sum(float(x[i]) * flat[i * 3 + o] for i in range(2)) for o in range(3)] for x in feats[0]]
    torch.testing.assert_close(out[0].detach(), torch.tensor(expected, dtype=torch.float64))


def test_other_kernels_are_refused() -> None:
    with pytest.raises(ValueError, match="1 or 3, got 5"):
        SparseConv3d(2, 3, 5)


@pytest.mark.parametrize(("count", "side", "batch"), SETS)
@pytest.mark.parametrize("factor", [2, 3])
def test_pooling_and_spreading_equal_the_reference(count: int, side: int, batch: int, factor: int) -> None:
    coords = random_coords(count, side, seed=count, batch=batch)
    feats = normal(len(coords), 3, seed=1)
    voxels = VoxelSet(coords, batch_size=batch)

    pooled = pool_cells(feats[None], voxels, factor)
    spread = spread_cells(pooled, voxels, factor)

    torch.testing.assert_close(pooled[0], pooled_cells(coords, feats, factor), rtol=0, atol=EXACT)
    assert torch.equal(spread[0], spread_to_voxels(coords, pooled[0], factor))


def test_permuting_voxels_permutes_what_is_spread_and_not_what_is_pooled() -> None:
    coords, feats = random_coords(40, 5, seed=4), normal(1, 40, 3, seed=1)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(0))
    voxels, permuted = VoxelSet(coords), VoxelSet(coords[order])

    pooled, pooled_permuted = pool_cells(feats, voxels, 2), pool_cells(feats[:, order], permuted, 2)

    torch.testing.assert_close(pooled_permuted, pooled, rtol=0, atol=EXACT)
    assert torch.equal(spread_cells(pooled, permuted, 2), spread_cells(pooled, voxels, 2)[:, order])


def test_pooling_divides_by_one_more_than_a_cell_contains() -> None:
    coords = torch.tensor([[0, 0, 0, 0], [0, 1, 1, 1], [0, 2, 0, 0]])
    feats = torch.tensor([[[3.0], [6.0], [8.0]]])

    pooled = pool_cells(feats, VoxelSet(coords), 2)

    assert pooled.flatten().tolist() == [3.0, 4.0]
    assert spread_cells(pooled, VoxelSet(coords), 2).flatten().tolist() == [3.0, 3.0, 4.0]


@pytest.mark.parametrize("count", [0, 1, 5])
def test_every_child_gets_its_parents_features(count: int) -> None:
    feats = normal(2, count, 3, seed=0)

    repeated = repeat_octants(feats)

    expected = [[row for row in leading for _ in range(8)] for leading in feats.tolist()]
    assert repeated.tolist() == expected
