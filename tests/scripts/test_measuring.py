"""What the measurements count as arithmetic is what a network's layers do."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention
from torch.utils.flop_counter import FlopCounterMode

from pipeline.engines.trellis.sparse_blocks import SparseTransformerBlock
from pipeline.nn.dense_blocks import UpsampleBlock3d
from pipeline.ops.voxels import VoxelSet
from scripts.benchmarks.measuring import Rates, Step, Work, count_work


def counted_by_torch(step: Step) -> int:
    """Attention as plain products: torch's counter does not know the fused one of a CPU."""
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        step()
    return counter.get_total_flops()


def attend() -> torch.Tensor:
    q, k = torch.randn(2, 3, 5, 8), torch.randn(2, 3, 7, 8)
    return scaled_dot_product_attention(q, k, k)


@pytest.mark.parametrize(
    ("step", "flops"),
    [
        (lambda: nn.Linear(6, 10)(torch.randn(4, 6)), 2 * 4 * 6 * 10),
        (lambda: torch.randn(3, 4, 6) @ torch.randn(3, 6, 5), 2 * 3 * 4 * 6 * 5),
        (lambda: UpsampleBlock3d(4, 2)(torch.randn(1, 4, 3, 3, 3)), 2 * 27 * (2 * 8) * 4 * 27),
        (attend, 2 * 2 * (2 * 3) * 5 * 7 * 8),
    ],
    ids=["linear", "batched product", "convolution", "cross-attention"],
)
def test_a_layers_arithmetic_is_the_formulas_and_torchs(step: Step, flops: int) -> None:
    assert count_work(step).flops == flops == counted_by_torch(step)


def test_a_blocks_arithmetic_is_torchs() -> None:
    block = SparseTransformerBlock(32, 2)
    coords = torch.cartesian_prod(torch.zeros(1), *[torch.arange(4.0)] * 3).int()
    feats, voxels = torch.randn(1, 64, 32), VoxelSet(coords, batch_size=1)
    tokens, width = 64, 32

    counted = count_work(lambda: block(feats, voxels)).flops

    assert (
        counted == 2 * tokens * 12 * width**2 + 4 * tokens**2 * width == counted_by_torch(lambda: block(feats, voxels))
    )


def test_a_products_traffic_is_its_inputs_and_output_once() -> None:
    a, b = torch.randn(4, 6), torch.randn(6, 10)

    assert count_work(lambda: a @ b).moved_bytes == 4 * (4 * 6 + 6 * 10 + 4 * 10)


def test_what_is_no_product_counts_nothing() -> None:
    x = torch.randn(8)

    assert count_work(lambda: x.exp() + x) == Work(0, 0)


@pytest.mark.parametrize(("work", "seconds"), [(Work(1000, 1), 10.0), (Work(1, 1000), 100.0)])
def test_the_floor_is_arithmetic_or_traffic_whichever_takes_longer(work: Work, seconds: float) -> None:
    assert Rates(flops_per_s=100, bytes_per_s=10).floor_s(work) == seconds
