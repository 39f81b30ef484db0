"""The checks of whole models in half precision, as engines run on a GPU: how far they are from the float32 fixtures.

The kits ask for exact voxels of float32 runs, and name the smallest logit, which is far below what half precision
rounds to. A voxel whose logit is that near to 0 may therefore appear or vanish; the rest of such a check goes on with
the voxels of the fixture, since each voxel has noise of its own. The number of those voxels is reported.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from tests.parity.harness import Check, Deviation, Fixture
from tests.parity.rounding import ROUNDINGS, Rounding, round_products, rounded_attention

Module = TypeVar("Module", bound=nn.Module)

TOLERANCE = 2e-3
"""Relative L2 distance from float32 that is asked for."""
NEAR_ZERO = 5 * TOLERANCE
"""Of the root mean square of all logits: no rounding error of `TOLERANCE` in the mean is five times as large."""
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

PRECISIONS: dict[str, torch.dtype | Rounding] = {
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    **ROUNDINGS,
}
"""By name: a type of the heavy layers and of what is between them, or how their products alone are rounded."""

_chosen: list[torch.dtype | Rounding] = []
"""The precision of the check that runs; empty for that of the fixtures."""

_undecided: list[int] = []
"""Voxels of the check that runs whose logits have another sign than in the fixture, near 0."""


@contextmanager
def precision(chosen: torch.dtype | Rounding) -> Iterator[None]:
    """Inside, models that `lowered` returns compute in this precision."""
    _chosen.append(chosen)
    try:
        with ExitStack() as stack:
            if isinstance(chosen, Rounding):
                stack.enter_context(rounded_attention(chosen))
            yield
    finally:
        _chosen.pop()


def lowered(module: Module) -> Module:
    """A model with its heavy layers in the precision of the check; other modules stay as they are."""
    change: Any = getattr(module, "set_dtype", None)
    if not _chosen or change is None:
        return module
    if isinstance(_chosen[-1], Rounding):
        round_products(module, _chosen[-1])
    else:
        change(_chosen[-1])
    return module


def with_decided_signs(logits: Tensor, fixture: Fixture) -> Tensor:
    """Logits of a structure decoder, in half precision with the fixture's own where theirs are near 0."""
    if not _chosen or fixture.golden["logits"].shape != logits.shape:
        return logits
    golden = torch.from_numpy(fixture.golden["logits"])
    differs = (logits > 0) != (golden > 0)
    is_near = golden.abs() <= NEAR_ZERO * golden.square().mean().sqrt()
    _undecided.append(int((differs & is_near).sum()))
    return torch.where(differs & is_near, golden, logits)


def in_precision(targets: Mapping[str, Check], name_of_precision: str) -> dict[str, Check]:
    """The checks of models, in one of `PRECISIONS` and with `TOLERANCE` in place of the fixtures' own bounds."""
    chosen = PRECISIONS[name_of_precision]
    return {name: _lowered_check(targets[name], chosen) for name in TARGETS_WITH_HEAVY_LAYERS if name in targets}


def _lowered_check(check: Check, chosen: torch.dtype | Rounding) -> Check:
    def run(fixture: Fixture) -> list[Deviation]:
        # Statistics of a whole array are bounds of float32; the stored part is compared.
        spec = {key: value for key, value in fixture.spec.items() if key != "full_stats"}
        _undecided.clear()
        with precision(chosen):
            deviations = check(replace(fixture, spec=spec, tolerance=TOLERANCE, max_abs=math.inf))
        count = sum(_undecided)
        remark = f"{count} voxels differ where the logit is near 0" if count else ""
        return [*deviations, Deviation("near 0", 0.0, True, remark)]

    return run
