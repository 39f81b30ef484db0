"""The checks of whole models in half precision, as engines run on a GPU: how far they are from the float32 fixtures."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import nn

from tests.parity.harness import Check, Deviation, Fixture

Module = TypeVar("Module", bound=nn.Module)

TOLERANCE = 2e-3
"""Relative L2 distance from float32 that is asked for."""
TARGETS_WITH_HEAVY_LAYERS = (
    "SparseStructureFlowModel",
    "SparseStructureDecoder",
    "SLatFlowModel",
    "SLatGaussianDecoder",
    "SLatRadianceFieldDecoder",
    "SLatMeshDecoder",
    "SparseUnetVaeDecoder",
    "FlexiDualGridVaeDecoder",
    "TrellisImageTo3DPipeline",
    "TrellisTextTo3DPipeline",
    "Trellis2ImageTo3DPipeline",
)
"""Of models that choose which of their layers are heavy, and of pipelines of them."""

_chosen: list[torch.dtype] = []
"""The precision of the check that runs; empty for that of the fixtures."""


@contextmanager
def precision(dtype: torch.dtype) -> Iterator[None]:
    """Inside, models that `lowered` returns compute in this type."""
    _chosen.append(dtype)
    try:
        yield
    finally:
        _chosen.pop()


def lowered(module: Module) -> Module:
    """A model with its heavy layers in the precision of the check; other modules stay as they are."""
    change: Any = getattr(module, "set_dtype", None)
    if _chosen and change is not None:
        change(_chosen[-1])
    return module


def in_precision(targets: Mapping[str, Check], dtype: torch.dtype) -> dict[str, Check]:
    """The checks of models, in half precision and with `TOLERANCE` in place of the fixtures' own bounds."""
    return {name: _lowered_check(targets[name], dtype) for name in TARGETS_WITH_HEAVY_LAYERS if name in targets}


def _lowered_check(check: Check, dtype: torch.dtype) -> Check:
    def run(fixture: Fixture) -> list[Deviation]:
        # Statistics of a whole array are bounds of float32; the stored part is compared.
        spec = {key: value for key, value in fixture.spec.items() if key != "full_stats"}
        with precision(dtype):
            return check(replace(fixture, spec=spec, tolerance=TOLERANCE, max_abs=math.inf))

    return run
