"""The rule that chooses between an operation's Triton kernel and its PyTorch reference.

A kernel runs on CUDA tensors of one floating type of at most 32 bits that need no gradient. Triton comes with torch's
CUDA build; it is imported by the first kernel that runs, so a process without CUDA never imports it. A kernel that
cannot be imported, compiled or launched is reported once and not tried again in this process: the reference computes
the same result, more slowly.

On CPU tensors a kernel runs only in Triton's interpreter, which a test starts by importing Triton with
TRITON_INTERPRET=1. Knows no operation.
"""

from __future__ import annotations

import logging
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor

T = TypeVar("T")

TYPES = (torch.float16, torch.bfloat16, torch.float32)

log = logging.getLogger(__name__)


class Kernels:
    """What became of the kernels of one process.

    Attributes:
        runs: how often each kernel has run.
        failures: why a kernel is no longer tried, by its name.
    """

    def __init__(self) -> None:
        self.runs: Counter[str] = Counter()
        self.failures: dict[str, str] = {}

    def run(self, name: str, inputs: Sequence[Tensor], *, kernel: Callable[[], T], reference: Callable[[], T]) -> T:
        """Compute an operation by its kernel where that is possible, else by its reference.

        Args:
            name: of the kernel, for the log and the metric.
            inputs: the floating tensors of the operation; the first one's device decides.
            kernel: imports and launches the kernel; writes only to tensors that it allocates.
            reference: the same in PyTorch.

        Raises:
            torch.OutOfMemoryError: the device has too little memory; the reference would need more.
        """
        if name in self.failures or not _may_run(inputs):
            return reference()
        try:
            result = kernel()
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # noqa: BLE001  # compilers and drivers raise many types; the reference needs neither
            self.failures[name] = f"{type(error).__name__}: {error}"
            log.warning("the kernel %s does not run here, PyTorch takes its place: %s", name, self.failures[name])
            return reference()
        self.runs[name] += 1
        return result

    @property
    def failed(self) -> tuple[str, ...]:
        """Names of the kernels that PyTorch has replaced, sorted."""
        return tuple(sorted(self.failures))


KERNELS = Kernels()
"""Those of this process."""


def _may_run(inputs: Sequence[Tensor]) -> bool:
    first = inputs[0]
    if not (first.device.type == "cuda" or (first.device.type == "cpu" and is_interpreting())):
        return False
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in inputs):
        return False
    return first.numel() > 0 and first.dtype in TYPES and all(tensor.dtype == first.dtype for tensor in inputs)


def is_interpreting() -> bool:
    """Whether this process has imported Triton with its interpreter on."""
    triton = sys.modules.get("triton")
    return triton is not None and bool(triton.knobs.runtime.interpret)
