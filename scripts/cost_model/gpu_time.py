"""Seconds of a GPU from what is asked of it: a stage takes as long as the slowest of four things that overlap.

They are arithmetic, memory, the launch of kernels and the waits of the host. Knows no engine; the rates of the GPUs are
rows of `stage_seconds.json`.

Source: Williams et al. 2009, Roofline; the shares of the peak: see `SHARES`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

LAUNCH_S, WAIT_S = 5e-6, 20e-6
"""Of one kernel launch, and of one time that the host waits for the device and then starts again."""
SHARES = {"product": 0.5, "attention": 0.35, "convolution": 0.25, "rays": 0.25}
"""Of the dense peak that each kind of kernel reaches. Attention: what FlashAttention-2, which torch calls, does on an
H100 (Shah et al. 2024, arXiv 2407.08608). The others are assumed: a half for cuBLAS, a quarter for own kernels."""
KINDS = ("arithmetic", "memory", "launches", "waits")


@dataclass(frozen=True)
class StageWork:
    """What one stage asks of a GPU.

    Attributes:
        launches: kernels.
        waits: times that the host waits for the device.
        moved_bytes: read and written by all kernels, each tensor once for each kernel.
        flops: by kind, a key of `SHARES`, and precision, `float16`, `bfloat16` or `float32`.
        peak_bytes: most memory in use, weights included.
    """

    launches: int
    waits: int
    moved_bytes: int
    flops: Mapping[tuple[str, str], int]
    peak_bytes: int = 0

    @property
    def tflop(self) -> float:
        """All arithmetic, in 10^12."""
        return sum(self.flops.values()) / 1e12


def bounds_s(work: StageWork, rates: Mapping[str, float]) -> dict[str, float]:
    """Seconds that each of `KINDS` takes.

    Args:
        work: of one stage.
        rates: `dense_fp16_tflops`, `dense_fp32_tflops` and `memory_gb_per_s` of a GPU.

    Raises:
        KeyError: a rate or a share is missing.
    """
    arithmetic_s = sum(
        flops / (SHARES[kind] * rates["dense_fp32_tflops" if precision == "float32" else "dense_fp16_tflops"] * 1e12)
        for (kind, precision), flops in work.flops.items()
    )
    memory_s = work.moved_bytes / (rates["memory_gb_per_s"] * 1e9)
    return dict(zip(KINDS, (arithmetic_s, memory_s, work.launches * LAUNCH_S, work.waits * WAIT_S), strict=True))


def predicted_s(stages: Mapping[str, StageWork], rates: Mapping[str, float]) -> float:
    """Seconds of all stages one after the other, each the slowest of its four."""
    return sum(max(bounds_s(work, rates).values()) for work in stages.values())
