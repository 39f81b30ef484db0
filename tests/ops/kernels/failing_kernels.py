"""Kernels that fail on a machine without a GPU: python -m tests.ops.kernels.failing_kernels.

One is refused by Triton's compiler, one is compiled by nothing because there is no driver to launch it with. Both are
replaced by the reference, once with a line in the log, and are not tried again.
"""

from __future__ import annotations

import logging

import torch
import triton
import triton.language as tl
from torch._subclasses.fake_tensor import FakeTensorMode
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from pipeline.ops.kernels.dispatch import Kernels


@triton.jit
def refused(out):
    tl.store(out, tl.load(out) + undefined_name)  # noqa: F821


@triton.jit
def correct(out):
    tl.store(out, 1.0)


class Lines(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def compile_refused() -> str:
    triton.compile(ASTSource(refused, {"out": "*fp32"}, {}), target=GPUTarget("cuda", 80, 32))
    return "kernel"


def main() -> None:
    lines = Lines()
    logging.getLogger("pipeline.ops.kernels.dispatch").addHandler(lines)
    kernels = Kernels()
    with FakeTensorMode():
        on_gpu = torch.empty(4, device="cuda:0")

        def launch() -> str:
            correct[(1,)](on_gpu)
            return "kernel"

        for _ in range(2):
            assert kernels.run("refused", [on_gpu], kernel=compile_refused, reference=lambda: "pytorch") == "pytorch"
            assert kernels.run("launched", [on_gpu], kernel=launch, reference=lambda: "pytorch") == "pytorch"
    assert kernels.failed == ("launched", "refused"), kernels.failures
    assert "CompilationError" in kernels.failures["refused"], kernels.failures
    assert len(lines.lines) == 2, lines.lines
    print(kernels.failures)


if __name__ == "__main__":
    main()
