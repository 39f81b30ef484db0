from __future__ import annotations

import pytest
import torch

from pipeline.nn.sparse_conv import SparseConv3d
from pipeline.ops import sparse
from pipeline.ops.attention import attend_in_windows, attend_per_element
from pipeline.ops.groups import Groups
from pipeline.ops.sparse import pool_cells, repeat_octants, sparse_conv3, spread_cells
from pipeline.ops.voxels import VoxelSet
from tests.reference.voxels import dense_convolution, masked_attention, random_coords

EXACT = 1e-12  # float64: both ways sum the same products in another order


def normal(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize(("count", "side", "batch"), [(1, 1, 1), (40, 5, 1), (25, 6, 2)])
def test_submanifold_conv_equals_dense_conv_on_active_voxels(count: int, side: int, batch: int) -> None:
    coords = random_coords(count, side, seed=count, batch=batch)
    feats, weight, bias = normal(len(coords), 3, seed=1), normal(4, 3, 3, 3, 3, seed=2), normal(4, seed=3)

    out = sparse_conv3(feats[None], VoxelSet(coords), weight, bias)[0]

    torch.testing.assert_close(out, dense_convolution(coords, feats, weight, bias), rtol=0, atol=EXACT)


def test_submanifold_conv_of_nothing_is_nothing() -> None:
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


def test_pooling_divides_by_one_more_than_a_cell_holds() -> None:
    coords = torch.tensor([[0, 0, 0, 0], [0, 1, 1, 1], [0, 2, 0, 0]])
    feats = torch.tensor([[[3.0], [6.0], [8.0]]])

    pooled = pool_cells(feats, VoxelSet(coords), 2)

    assert pooled.flatten().tolist() == [3.0, 4.0]
    assert spread_cells(pooled, VoxelSet(coords), 2).flatten().tolist() == [3.0, 3.0, 4.0]
    assert repeat_octants(feats).shape == (1, 24, 1)


def test_sums_of_groups_equal_a_loop() -> None:
    group = torch.tensor([2, 0, 2, 2, 1, 0])
    values = normal(2, 6, 3, seed=0)
    counts = torch.tensor([2, 1, 3])

    total = Groups.of(group, counts).sum(values)

    for g in range(3):
        torch.testing.assert_close(total[:, g], values[:, group == g].sum(dim=1), rtol=0, atol=EXACT)


@pytest.mark.parametrize("shift", [0, 1])
def test_windowed_attention_equals_attention_under_a_mask(shift: int) -> None:
    coords = random_coords(50, 6, seed=2, batch=2)
    q, k, v = (normal(1, 100, 2, 4, seed=seed) for seed in range(3))

    out = attend_in_windows(q, k, v, VoxelSet(coords), size=2, shift=shift)

    windows = [(b, *((c + shift) // 2 for c in xyz)) for b, *xyz in coords.tolist()]
    torch.testing.assert_close(out[0], masked_attention(q[0], k[0], v[0], windows), rtol=0, atol=EXACT)


def test_passes_that_share_voxels_do_not_see_each_other() -> None:
    voxels = VoxelSet(random_coords(30, 4, seed=2))
    q, k, v = (normal(3, 30, 2, 4, seed=seed) for seed in range(3))

    together = attend_in_windows(q, k, v, voxels, size=4, shift=2)

    for one in range(3):
        alone = attend_in_windows(q[one, None], k[one, None], v[one, None], voxels, size=4, shift=2)
        torch.testing.assert_close(together[one], alone[0], rtol=0, atol=EXACT)


def test_batch_elements_do_not_see_each_other() -> None:
    coords = random_coords(20, 4, seed=5, batch=2)
    q, k, v = (normal(1, 40, 2, 4, seed=seed) for seed in range(3))

    out = attend_per_element(q, k, v, VoxelSet(coords))

    elements = [(b,) for b in coords[:, 0].tolist()]
    torch.testing.assert_close(out[0], masked_attention(q[0], k[0], v[0], elements), rtol=0, atol=EXACT)
