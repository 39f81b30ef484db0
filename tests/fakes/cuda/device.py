"""Makes the device exist: what torch answers about CUDA, and how tensors get there."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.ops.constants import forget_constants
from pipeline.ops.kernels.dispatch import KERNELS
from tests.fakes.cuda import kernels
from tests.fakes.cuda.counts import Counts
from tests.fakes.cuda.field_kernel import FieldKernel
from tests.fakes.cuda.tensor import CPU, PINNED, Device, DeviceTensor, Dispatch

MEMORY_BYTES = 80 << 30
CAPABILITY = (9, 0)
CONVOLUTION, FIELD = "pipeline.ops.kernels.sparse_conv", "pipeline.render.field_kernel"


@contextmanager
def pretended_cuda(
    stage_of_function: Mapping[str, str] | None = None,
    *,
    free_bytes: int = MEMORY_BYTES,
    total_bytes: int = MEMORY_BYTES,
    follows_rays: bool = False,
) -> Iterator[Counts]:
    """Inside, `cuda:0` exists and counts. Name it with its number: `cuda` alone asks torch's C++ for the current one.

    Args:
        stage_of_function: see `Counts`.
        free_bytes: what the device says is free.
        total_bytes: what the device says it has.
        follows_rays: give the renderer of radiance fields its kernel, see `FieldKernel`, whose pictures are black;
            else the kernel cannot be imported and PyTorch renders.

    Raises:
        RuntimeError: this build of torch has CUDA.
    """
    if torch.version.cuda is not None:
        raise RuntimeError("the pretended device needs a build of torch without CUDA")
    counts = Counts(stage_of_function)
    device = Device(counts)
    answers = _answers(device, free_bytes, total_bytes)
    kept = [(owner, name, getattr(owner, name)) for owner, name, _ in answers]
    overwrites = torch.__future__.get_overwrite_module_params_on_conversion()
    with ExitStack() as after:
        after.callback(forget_constants)
        after.callback(torch.__future__.set_overwrite_module_params_on_conversion, overwrites)
        for each in kept:
            after.callback(setattr, *each)
        after.callback(KERNELS.failures.update, dict(KERNELS.failures))  # those that fail here are not the process's
        after.callback(KERNELS.failures.clear)
        modules: dict[str, ModuleType] = {CONVOLUTION: _convolution(device)}
        if follows_rays:
            modules[FIELD] = FieldKernel(device)
        for name, module in modules.items():
            after.callback(_forget_module, name, sys.modules.get(name))
            sys.modules[name] = module
        torch.__future__.set_overwrite_module_params_on_conversion(
            True
        )  # parameters cannot change their class in place
        forget_constants()
        for owner, name, answer in answers:
            setattr(owner, name, answer)
        with torch.no_grad(), Dispatch(device):
            yield counts


def without_values(module: nn.Module) -> nn.Module:
    """Move a module that was made on the meta device to the pretended one, without values."""
    device = _current()
    return module._apply(lambda tensor: DeviceTensor(tensor, device) if tensor.is_meta else tensor.to("cuda:0"))


def _current() -> Device:
    """The device of the innermost `pretended_cuda`."""
    made = torch.empty(0, device="cuda:0")
    assert isinstance(made, DeviceTensor)
    return made.owner


def _convolution(device: Device) -> ModuleType:
    """The module of the package's convolution kernel, which imports Triton, with one launch that computes the same."""

    def implicit_conv3(feats: Tensor, neighbours: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        assert isinstance(feats, DeviceTensor)
        flops = 2 * feats.numel() * 27 * weight.shape[0]  # as if every neighbour existed
        return device.one_kernel("implicit_conv3", kernels.implicit_conv3, feats, neighbours, weight, bias, flops=flops)

    module = ModuleType(CONVOLUTION)
    module.implicit_conv3 = implicit_conv3  # type: ignore[attr-defined]
    return module


def _forget_module(name: str, before: ModuleType | None) -> None:
    del sys.modules[name]
    if before is not None:
        sys.modules[name] = before


def _answers(device: Device, free_bytes: int, total_bytes: int) -> list[tuple[Any, str, Any]]:
    """Functions of torch that would ask a driver, or that copy to a device before the dispatcher sees them."""
    make, make_as = torch.tensor, torch.as_tensor

    def tensor(data: Any, *, device: Any = None, dtype: Any = None, **options: Any) -> Tensor:
        made = make(data, dtype=dtype, **options)
        return made if device is None or torch.device(device).type != "cuda" else made.to(device)

    def as_tensor(data: Any, *, device: Any = None, dtype: Any = None) -> Tensor:
        return (data if isinstance(data, Tensor) else make_as(data)).to(device=device or CPU, dtype=dtype)

    def pin_memory(self: Tensor, device: Any = None) -> Tensor:
        copied = self.clone()
        setattr(copied, PINNED, True)
        return copied

    def attend(q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None, **options: Any) -> Tensor:
        if not isinstance(q, DeviceTensor):
            return kernels.attend(q, k, v, attn_mask, **options)
        return device.attend(q, k, v, attn_mask, **options)

    def rms_norm(x: Tensor, shape: Any, weight: Tensor | None = None, eps: float | None = None) -> Tensor:
        if not isinstance(x, DeviceTensor):
            return kernels.rms_norm(x, shape, weight, eps)
        return device.one_kernel("rms_norm", kernels.rms_norm, x, shape, weight, eps)

    class Properties:
        major, minor = CAPABILITY
        total_memory = total_bytes
        name = "pretended"

    return [
        (torch, "tensor", tensor),
        (torch, "as_tensor", as_tensor),
        (
            torch,
            "inference_mode",
            lambda mode=True: torch.no_grad(),
        ),  # inside inference mode the dispatcher passes subclasses by
        (F, "scaled_dot_product_attention", attend),
        (F, "rms_norm", rms_norm),
        (torch.Tensor, "pin_memory", pin_memory),
        (torch.Tensor, "is_pinned", lambda self, device=None: getattr(self, PINNED, False)),
        (torch.cuda, "_lazy_init", lambda: None),
        (torch.cuda, "is_available", lambda: True),
        (torch.cuda, "current_device", lambda: 0),
        (torch.cuda, "get_device_capability", lambda *_: CAPABILITY),
        (torch.cuda, "get_device_properties", lambda *_: Properties()),
        (torch.cuda, "synchronize", lambda *_: device.counts.add_wait("synchronize")),
        (torch.cuda, "empty_cache", lambda: None),
        (torch.cuda, "mem_get_info", lambda *_: (free_bytes, total_bytes)),
    ]
