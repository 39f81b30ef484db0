"""Loading checkpoints strictly: every key, every shape and every type, or nothing.

A model is made on the meta device, where it takes no memory, and its tensors are read from the memory-mapped file
straight to their device and precision.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from pipeline.errors import WeightsUnusable
from pipeline.nn.tensor_files import Entry, check_entries, read_entries

FILE_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


def module_entries(module: nn.Module) -> dict[str, Entry]:
    """What a file must hold for a module: its state dict's keys, types and shapes."""
    return {key: Entry(FILE_DTYPES[t.dtype], tuple(t.shape)) for key, t in module.state_dict().items()}


def load_strictly(
    module: nn.Module,
    path: Path,
    *,
    device: torch.device | str,
    stored: dict[str, Entry] | None = None,
    copy: bool = False,
) -> None:
    """Give a module on the meta device its tensors.

    Args:
        module: made on the meta device, in the precision that it shall run in.
        path: a safetensors file.
        device: where the tensors shall lie.
        stored: what the file must hold where that differs from the module's own types.
        copy: on the CPU, give the tensors memory of their own; else those that need no conversion stay mapped from the
            file, which takes no memory twice but needs the file to stay as it is.

    Raises:
        WeightsUnusable: the file is missing, cut short, or holds anything else; the module is then left as it was.
    """
    check_entries(path.name, read_entries(path), stored or module_entries(module))
    wanted = {key: tensor.dtype for key, tensor in module.state_dict().items()}
    try:
        with safe_open(path, framework="pt", device=str(device)) as file:
            state = {key: file.get_tensor(key).to(dtype, copy=copy) for key, dtype in wanted.items()}
    except SafetensorError as error:
        raise WeightsUnusable(f"{path.name} cannot be read: {error}") from error
    module.load_state_dict(state, strict=True, assign=True)
    module.eval().requires_grad_(False)
