"""Which implementation runs. The tensors say that they are on CUDA and hold nothing."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from pipeline.ops.kernels.dispatch import Kernels


@pytest.fixture
def on_gpu() -> Iterator[Tensor]:
    with FakeTensorMode():
        yield torch.empty((2, 3), device="cuda:0")


def is_from_kernel(kernels: Kernels, *inputs: Tensor) -> bool:
    return kernels.run("some", list(inputs), kernel=lambda: True, reference=lambda: False)


def test_a_kernel_runs_on_cuda_and_nowhere_else(on_gpu: Tensor) -> None:
    kernels = Kernels()

    assert is_from_kernel(kernels, on_gpu)
    assert not is_from_kernel(kernels, on_gpu.new_empty((2, 3), device="cpu"))
    assert not is_from_kernel(kernels, on_gpu.new_empty((2, 3), device="meta"))
    assert kernels.runs == {"some": 1}


def test_types_gradients_and_empty_tensors_that_no_kernel_takes_are_left_to_the_reference(on_gpu: Tensor) -> None:
    kernels = Kernels()

    assert is_from_kernel(kernels, on_gpu.half(), on_gpu.half())
    assert not is_from_kernel(kernels, on_gpu, on_gpu.half())
    assert not is_from_kernel(kernels, on_gpu.double())
    assert not is_from_kernel(kernels, torch.empty((0, 3), device="cuda:0"))
    weight = on_gpu.clone().requires_grad_()
    assert not is_from_kernel(kernels, on_gpu, weight)
    with torch.no_grad():
        assert is_from_kernel(kernels, on_gpu, weight)


def test_without_triton_the_reference_takes_over_with_one_line_in_the_log(
    on_gpu: Tensor, caplog: pytest.LogCaptureFixture
) -> None:
    kernels, attempts = Kernels(), []

    def kernel() -> str:
        attempts.append(1)
        importlib.import_module("pipeline.ops.kernels.sparse_conv")
        return "kernel"

    with caplog.at_level(logging.WARNING):
        results = [kernels.run("sparse_conv", [on_gpu], kernel=kernel, reference=lambda: "pytorch") for _ in range(3)]

    assert results == ["pytorch"] * 3
    assert len(attempts) == 1
    assert kernels.failed == ("sparse_conv",)
    assert [record.getMessage() for record in caplog.records] == [
        "the kernel sparse_conv does not run here, PyTorch takes its place: "
        "ModuleNotFoundError: No module named 'triton'"
    ]


def test_a_lack_of_memory_is_no_failure_of_the_kernel(on_gpu: Tensor) -> None:
    kernels = Kernels()

    def kernel() -> str:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(torch.OutOfMemoryError):
        kernels.run("some", [on_gpu], kernel=kernel, reference=lambda: "pytorch")
    assert kernels.failed == ()


def test_one_failing_kernel_does_not_stop_another(on_gpu: Tensor) -> None:
    kernels = Kernels()

    def kernel() -> bool:
        raise RuntimeError("out of shared memory")

    assert not kernels.run("other", [on_gpu], kernel=kernel, reference=lambda: False)
    assert is_from_kernel(kernels, on_gpu)
