from __future__ import annotations

import pytest
import torch

from pipeline.nn.deterministic_weights import fill_deterministic
from pipeline.nn.sparse_conv import SparseConv3d
from pipeline.ops.voxels import VoxelSet
from tests.reference.voxels import dense_convolution, random_coords


def filled(kernel_size: int, *, bias: bool = True) -> SparseConv3d:
    module = SparseConv3d(4, 6, kernel_size, bias=bias).double()
    fill_deterministic(module, seed=1)
    return module


@pytest.mark.parametrize("count", [1, 20])
def test_kernel_3_equals_a_dense_convolution_read_at_the_voxels(count: int) -> None:
    module, coords = filled(3), random_coords(count, 4, seed=0)
    feats = torch.randn((count, 4), dtype=torch.float64, generator=torch.Generator().manual_seed(2))

    found = module(feats[None], VoxelSet(coords))[0]

    torch.testing.assert_close(found, dense_convolution(coords, feats, module.conv.weight, module.conv.bias))


@pytest.mark.parametrize("bias", [False, True])
def test_kernel_1_reads_the_weights_in_memory_order_and_not_transposed(bias: bool) -> None:
    module, coords = filled(1, bias=bias), random_coords(3, 4, seed=0)
    feats = torch.eye(4, dtype=torch.float64)[:3]

    found = module(feats, VoxelSet(coords))

    in_memory = module.conv.weight.detach().flatten()  # (D, 1, 1, 1, C), row-major
    for row in range(3):
        shift = 0 if module.conv.bias is None else module.conv.bias
        torch.testing.assert_close(found[row], in_memory[6 * row : 6 * row + 6] + shift)


def test_another_kernel_size_is_refused() -> None:
    with pytest.raises(ValueError, match="kernel_size must be 1 or 3, got 2"):
        SparseConv3d(4, 6, 2)


def test_no_voxels_give_no_rows() -> None:
    voxels = VoxelSet(torch.zeros((0, 4), dtype=torch.int32))

    assert filled(3)(torch.zeros((1, 0, 4), dtype=torch.float64), voxels).shape == (1, 0, 6)
