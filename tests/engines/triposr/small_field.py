"""A field of the released decoder over small planes, for tests."""

from __future__ import annotations

import torch

from pipeline.engines.triposr.field import TriplaneField
from pipeline.engines.triposr.spec import RELEASED, RendererSpec
from pipeline.engines.triposr.triplane import NeRFMLP
from pipeline.nn.deterministic_weights import fill_deterministic


def small_field() -> TriplaneField:
    """Return a field with the released decoder's layers and random planes of 8 x 8 texels."""
    decoder = NeRFMLP(RELEASED.decoder).requires_grad_(False)
    fill_deterministic(decoder, seed=3, scale={"*.weight": 1.6})
    planes = torch.randn((3, 40, 8, 8), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return TriplaneField.of(decoder, planes, renderer=RendererSpec(radius=0.87, density_bias=2.0))
