"""Loading checkpoints strictly: every key, every shape and every type, or nothing.

A model is made on the meta device, where it takes no memory. Its tensors come from the memory-mapped file, straight to
their device and precision, or, where they shall not hang on the file, are read into memory of their own.
"""

from __future__ import annotations

import math
import mmap
import os
from io import FileIO
from itertools import groupby
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

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
TORCH_DTYPES = {name: dtype for dtype, name in FILE_DTYPES.items()}


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
        copy: give the tensors memory of their own, see `read_tensors`; else, on the CPU, those that need no conversion
            stay mapped from the file, which takes no memory twice but needs the file to stay as it is.

    Raises:
        WeightsUnusable: the file is missing, cut short, or holds anything else; the module is then left as it was.
    """
    check_entries(path.name, read_entries(path), stored or module_entries(module))
    wanted = {key: tensor.dtype for key, tensor in module.state_dict().items()}
    if copy:
        tensors = read_tensors(path)
        state = {key: tensors[key].to(device, dtype) for key, dtype in wanted.items()}
    else:
        try:
            with safe_open(path, framework="pt", device=str(device)) as file:
                state = {key: file.get_tensor(key).to(dtype) for key, dtype in wanted.items()}
        except SafetensorError as error:
            raise WeightsUnusable(f"{path.name} cannot be read: {error}") from error
    module.load_state_dict(state, strict=True, assign=True)
    module.eval().requires_grad_(False)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a file on the CPU, as they are stored, in memory of their own.

    Neighbours of one type share a piece of memory, which goes when the last of them goes. Reading four gigabytes into
    a few such pieces made of large pages takes 3 thousand page faults; copying them out of a mapping takes a million,
    which cost more than the disk.

    Raises:
        WeightsUnusable: the file is missing, cut short, or not a safetensors file.
    """
    entries = read_entries(path)
    tensors: dict[str, Tensor] = {}
    try:
        with safe_open(path, framework="pt") as header:  # also checks that tensors lie back to back up to the end
            keys = header.offset_keys()
        with path.open("rb", buffering=0) as file:
            file.seek(-sum(entry.size_bytes for entry in entries.values()), os.SEEK_END)
            for dtype, run in groupby(keys, key=lambda key: entries[key].dtype):
                shapes = {key: entries[key].shape for key in run}
                counts = [math.prod(shape) for shape in shapes.values()]
                parts = _read(file, sum(counts), TORCH_DTYPES[dtype]).split(counts)
                tensors |= {key: part.view(shape) for part, (key, shape) in zip(parts, shapes.items(), strict=True)}
    except (SafetensorError, OSError, EOFError) as error:
        raise WeightsUnusable(f"{path.name} cannot be read: {error}") from error
    return tensors


def _read(file: FileIO, count: int, dtype: torch.dtype) -> Tensor:
    """The next `count` numbers of a file, (count,), in memory made of large pages where the system has them."""
    size_bytes = count * dtype.itemsize
    memory = mmap.mmap(-1, max(size_bytes, 1), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):  # Linux
        memory.madvise(mmap.MADV_HUGEPAGE)
    rest = memoryview(memory)[:size_bytes]
    while rest:
        if not (taken := file.readinto(rest)):
            raise EOFError("it ended while it was read")
        rest = rest[taken:]
    return torch.frombuffer(memory, dtype=torch.uint8)[:size_bytes].view(dtype)
