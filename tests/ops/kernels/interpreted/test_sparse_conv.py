"""The convolution kernel against its reference, in Triton's interpreter."""

from __future__ import annotations

import pytest
import torch

from pipeline.ops.kernels.dispatch import KERNELS
from pipeline.ops.sparse import gather_conv3, sparse_conv3
from pipeline.ops.voxels import VoxelSet
from tests.reference.voxels import random_coords

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")
"""numpy, which computes in the interpreter, warns where a GPU gives infinity."""

ROUNDING = {torch.float32: 4e-7, torch.float16: 2**-10, torch.bfloat16: 2**-7}
"""Of the largest result: a sum's order in float32; one unit in the last place of the half types, to which the
interpreter rounds by truncation."""


def normal(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("dtype", ROUNDING, ids=str)
@pytest.mark.parametrize(
    ("count", "width", "out_width", "passes", "has_bias"),
    [(1, 3, 4, 1, True), (70, 20, 17, 1, True), (64, 16, 16, 1, False)],
)
def test_the_kernel_computes_what_the_reference_computes(
    count: int, width: int, out_width: int, passes: int, has_bias: bool, dtype: torch.dtype
) -> None:
    voxels = VoxelSet(random_coords(count, 7, seed=count, batch=2))
    feats = normal(passes, len(voxels), width, seed=1).to(dtype)
    weight = (normal(out_width, 3, 3, 3, width, seed=2) / (27 * width) ** 0.5).to(dtype)
    bias = normal(out_width, seed=3).to(dtype) if has_bias else None
    before = KERNELS.runs["sparse_conv"]

    out = sparse_conv3(feats, voxels, weight, bias)

    assert KERNELS.runs["sparse_conv"] == before + 1, KERNELS.failures
    assert out.dtype == dtype
    exact = gather_conv3(feats.double(), voxels, weight.double(), None if bias is None else bias.double())
    largest = float(exact.abs().max())
    torch.testing.assert_close(out.double(), exact, rtol=0, atol=ROUNDING[dtype] * largest)


def test_leading_axes_are_passes_that_share_the_voxels() -> None:
    voxels = VoxelSet(random_coords(20, 4, seed=0))
    feats, weight = normal(2, 2, 20, 5, seed=1), normal(6, 3, 3, 3, 5, seed=2)

    out = sparse_conv3(feats, voxels, weight, None)

    torch.testing.assert_close(out, gather_conv3(feats, voxels, weight, None), rtol=1e-5, atol=1e-5)


def test_infinite_and_undefined_features_reach_the_same_voxels() -> None:
    voxels = VoxelSet(random_coords(30, 5, seed=3))
    feats, weight = normal(1, 30, 4, seed=1), normal(3, 3, 3, 3, 4, seed=2)
    feats[0, 4, 1], feats[0, 9, 2], feats[0, 20, 0] = torch.inf, -torch.inf, torch.nan

    out = sparse_conv3(feats, voxels, weight, None)

    expected = gather_conv3(feats, voxels, weight, None)
    assert 0 < int(expected.isfinite().all(-1).sum()) < 30
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5, equal_nan=True)


def test_no_voxel_and_float64_are_left_to_the_reference() -> None:
    empty, some = VoxelSet(torch.zeros((0, 4), dtype=torch.int32)), VoxelSet(random_coords(5, 3, seed=0))
    weight = normal(4, 3, 3, 3, 3, seed=1)
    before = KERNELS.runs["sparse_conv"]

    assert sparse_conv3(torch.zeros(1, 0, 3), empty, weight, None).shape == (1, 0, 4)
    assert sparse_conv3(normal(1, 5, 3, seed=2).double(), some, weight.double(), None).dtype == torch.float64
    assert KERNELS.runs["sparse_conv"] == before


def test_gradients_are_left_to_the_reference() -> None:
    voxels = VoxelSet(random_coords(5, 3, seed=0))
    weight = normal(4, 3, 3, 3, 3, seed=1).requires_grad_()

    sparse_conv3(normal(1, 5, 3, seed=2), voxels, weight, None).sum().backward()

    assert weight.grad is not None
