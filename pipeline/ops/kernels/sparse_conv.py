"""Submanifold convolution of kernel 3 as one matrix product without a gathered matrix (implicit GEMM).

Each program multiplies a block of voxels by a block of output channels. For each of the 27 taps it reads the rows of
the voxels' neighbours and the tap's weights, and adds their product to sums in registers. Reading 27 gathered copies of
the features from memory, as the reference does, would take 27 times the traffic.

Imports Triton: only `pipeline.ops.kernels.dispatch` may run it. The reference is `pipeline.ops.sparse.gather_conv3`.

Source: Tang et al. 2022 (TorchSparse), arXiv 2204.10319; Yan et al. 2024 (spconv), implicit GEMM.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from pipeline.ops.kernels.dispatch import is_interpreting


def implicit_conv3(feats: Tensor, neighbours: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Launch the kernel.

    Args:
        feats: (P, N, C) float16, bfloat16 or float32; the sums are float32.
        neighbours: (27, N) int32 row of each tap's voxel; N where there is none.
        weight: (D, 3, 3, 3, C).
        bias: (D,) or None.

    Returns:
        (P, N, D) in the type of `feats`.
    """
    passes, count, width = feats.shape
    out_width = weight.shape[0]
    out = feats.new_empty((passes, count, out_width))
    is_wide = out_width >= 128 and feats.dtype != torch.float32
    rows = 128 if is_wide else 64
    columns = min(128 if is_wide else 64, max(16, triton.next_power_of_2(out_width)))
    depth = min(32, max(16, triton.next_power_of_2(width)))  # channels at once; tensor cores need 16
    grid = (triton.cdiv(count, rows), triton.cdiv(out_width, columns), passes)
    _conv3_kernel[grid](
        feats.contiguous(),
        neighbours,
        weight.contiguous(),
        out if bias is None else bias,
        out,
        count,
        width,
        out_width,
        HAS_BIAS=bias is not None,
        ROWS=rows,
        COLUMNS=columns,
        DEPTH=depth,
        # The interpreter multiplies the bits of bfloat16 as integers, so it gets float32.
        WIDEN=is_interpreting(),
        num_warps=8 if is_wide else 4,
    )
    return out


@triton.jit(do_not_specialize=["count"])
def _conv3_kernel(
    feats,
    neighbours,
    weight,
    bias,
    out,
    count,
    width,
    out_width,
    HAS_BIAS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    WIDEN: tl.constexpr,
):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    channel = tl.arange(0, DEPTH)
    # 64 bits: a million voxels of 4,096 channels are more elements than 32 bits count.
    pass_number = tl.program_id(2).to(tl.int64)
    feats += pass_number * count * width
    out += pass_number * count * out_width
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    for tap in range(27):
        neighbour = tl.load(neighbours + tap * count.to(tl.int64) + row, mask=row < count, other=count)
        rows_of_tap = feats + neighbour.to(tl.int64)[:, None] * width
        weights_of_tap = weight + (column.to(tl.int64)[None, :] * 27 + tap) * width
        for first in range(0, width, DEPTH):
            some = first + channel
            # An absent neighbour reads as zeros, as do channels beyond the last.
            values = tl.load(
                rows_of_tap + some[None, :], mask=(neighbour < count)[:, None] & (some < width)[None, :], other=0.0
            )
            factors = tl.load(
                weights_of_tap + some[:, None], mask=(some < width)[:, None] & (column < out_width)[None, :], other=0.0
            )
            if WIDEN:
                values, factors = values.to(tl.float32), factors.to(tl.float32)
            # Full float32 products: TF32 keeps 10 bits of the mantissa, and the reference keeps 23.
            total = tl.dot(values, factors, total, input_precision="ieee")
    if HAS_BIAS:
        total += tl.load(bias + column, mask=column < out_width, other=0.0).to(tl.float32)[None, :]
    tl.store(
        out + row.to(tl.int64)[:, None] * out_width + column[None, :],
        total.to(out.dtype.element_ty),
        mask=(row < count)[:, None] & (column < out_width)[None, :],
    )
