from __future__ import annotations

import torch
from torch import nn

from pipeline.nn.norms import LayerNorm32
from pipeline.nn.precision import set_precision
from pipeline.nn.sparse_conv import SparseConv3d


def test_only_linear_and_convolution_layers_inside_the_parts_change_their_type() -> None:
    heavy = nn.Sequential(nn.Linear(2, 2), LayerNorm32(2), nn.Conv3d(2, 2, 1), SparseConv3d(2, 2, 3))
    outside = nn.Linear(2, 2)
    model = nn.Sequential(heavy, outside)

    set_precision([heavy], torch.float16)

    changed = {name for name, parameter in model.named_parameters() if parameter.dtype == torch.float16}
    assert changed == {f"0.{i}.{name}" for i in (0, 2) for name in ("weight", "bias")} | {
        "0.3.conv.weight",
        "0.3.conv.bias",
    }
