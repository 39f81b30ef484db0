from __future__ import annotations

import pytest
import torch

from pipeline.nn.norms import ChannelLayerNorm32, GroupNorm32, LayerNorm32, MultiHeadRMSNorm, SparseGroupNorm32
from pipeline.ops.voxels import VoxelSet
from tests.reference.voxels import random_coords


def normal(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def standardised(values: torch.Tensor, eps: float) -> torch.Tensor:
    """(values - mean) / std in float64."""
    values = values.double()
    return (values - values.mean()) / (values.var(correction=0) + eps).sqrt()


def test_layer_norm_standardises_each_row() -> None:
    x, norm = normal(3, 8), LayerNorm32(8, eps=1e-6, elementwise_affine=False)

    expected = torch.stack([standardised(row, 1e-6) for row in x])

    torch.testing.assert_close(norm(x).double(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("norm", "x"),
    [
        (LayerNorm32(8, elementwise_affine=False), 100 + normal(2, 8)),
        (GroupNorm32(2, 8, affine=False), 100 + normal(2, 8, 3)),
        (ChannelLayerNorm32(8, elementwise_affine=False), 100 + normal(2, 8, 1, 1, 2)),
    ],
    ids=lambda value: type(value).__name__,
)
def test_half_precision_is_normalised_in_float32_and_returned_in_half(norm: torch.nn.Module, x: torch.Tensor) -> None:
    half = x.half()

    out = norm(half)

    assert out.dtype == torch.float16
    assert torch.equal(out, norm(half.float()).half())


def test_channel_layer_norm_standardises_the_channels_of_each_cell() -> None:
    x, norm = normal(1, 8, 2, 1, 1), ChannelLayerNorm32(8, eps=1e-5, elementwise_affine=False)

    out = norm(x)

    for cell in range(2):
        expected = standardised(x[0, :, cell, 0, 0], 1e-5)
        torch.testing.assert_close(out[0, :, cell, 0, 0].double(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("counts", [(4, 4), (1, 1)])
def test_sparse_group_norm_standardises_each_group_over_the_voxels_of_one_batch_element(
    counts: tuple[int, int],
) -> None:
    voxels = VoxelSet(random_coords(counts[0], 4, seed=0, batch=2))
    x, norm = normal(1, len(voxels), 6), SparseGroupNorm32(3, 6)

    out = norm(x, voxels)[0]

    for rows in voxels.segments:
        for group in range(3):
            channels = slice(2 * group, 2 * group + 2)
            expected = standardised(x[0, rows, channels], 1e-5)
            torch.testing.assert_close(out[rows, channels].double(), expected, rtol=1e-5, atol=1e-5)


def test_rms_norm_gives_every_head_the_root_mean_square_of_its_gain() -> None:
    norm = MultiHeadRMSNorm(4, 2)
    norm.gamma.data = torch.tensor([[1.0] * 4, [3.0] * 4])

    out = norm(normal(5, 2, 4))

    torch.testing.assert_close(out.pow(2).mean(dim=-1).sqrt(), torch.tensor([[1.0, 3.0]]).expand(5, 2))
    assert norm(torch.zeros(1, 2, 4)).tolist() == torch.zeros(1, 2, 4).tolist()
