"""The checks whose targets have a GPU kernel, for a process in which Triton's interpreter runs the kernels."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from pipeline.ops.kernels.dispatch import KERNELS
from tests.parity.harness import Check, Deviation, Fixture

TARGETS_WITH_KERNEL = {
    "OctreeRenderer(trivec)": "radiance_field",
    "SparseConv3d": "sparse_conv",
    "SparseResBlock3d": "sparse_conv",
    "SparseSubdivideBlock3d": "sparse_conv",
    "SLatFlowModel": "sparse_conv",
    "SLatMeshDecoder": "sparse_conv",
    "SparseConvNeXtBlock3d": "sparse_conv",
    "SparseResBlockC2S3d": "sparse_conv",
    "SparseResBlockS2C3d": "sparse_conv",
    "SparseUnetVaeDecoder": "sparse_conv",
    "FlexiDualGridVaeDecoder": "sparse_conv",
    "TrellisImageTo3DPipeline": "sparse_conv",
    "TrellisTextTo3DPipeline": "sparse_conv",
    "Trellis2ImageTo3DPipeline": "sparse_conv",
}


def with_kernels(targets: Mapping[str, Check]) -> dict[str, Check]:
    """The checks of targets that have a kernel; each also says how often the kernel ran, and fails if it could not."""
    return {target: _counted(targets[target], kernel) for target, kernel in TARGETS_WITH_KERNEL.items()}


def _counted(check: Check, kernel: str) -> Check:
    def run(fixture: Fixture) -> list[Deviation]:
        before = KERNELS.runs[kernel]
        with np.errstate(all="ignore"):  # numpy warns where a GPU gives infinity
            deviations = check(fixture)
        if kernel in KERNELS.failures:
            raise RuntimeError(f"kernel {kernel}: {KERNELS.failures[kernel]}")
        ran = KERNELS.runs[kernel] - before
        remark = f"{kernel} ran {ran} times" if ran else f"{kernel} has no part in this fixture"
        return [*deviations, Deviation(kernel, 0.0, True, remark)]

    return run
