"""Copies between host memory and a device that do not stop the host. Knows nothing of what is copied."""

from __future__ import annotations

import torch
from torch import Tensor


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor of the host to a device; on a GPU in the order of its stream, through pinned memory.

    The allocator of pinned memory keeps the source until the copy is done.
    """
    if device.type != "cuda" or tensor.device.type != "cpu":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def to_host(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Copy tensors of one device to host memory, waiting for the device once; those of the host are returned."""
    if not any(tensor.device.type == "cuda" for tensor in tensors):
        return tuple(tensor.cpu() for tensor in tensors)
    copies = tuple(torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True) for tensor in tensors)
    for copied, tensor in zip(copies, tensors, strict=True):
        copied.copy_(tensor, non_blocking=True)
    torch.cuda.synchronize(tensors[0].device)
    return copies
