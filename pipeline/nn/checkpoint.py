"""Loading checkpoints strictly: every key, every shape and every type, or nothing.

A model is made on the meta device, where it takes no memory. Its tensors come from the memory-mapped file, straight to
their device and precision, or, where they shall not hang on the file, are read into memory of their own.
"""

from __future__ import annotations

import errno
import mmap
import os
from concurrent.futures import ThreadPoolExecutor
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
BLOCK_BYTES = 16 << 20
READERS = 4
"""Threads that read one file."""


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
    """All tensors of a file on the CPU, as they are stored, in one piece of memory that goes with the last of them.

    Raises:
        WeightsUnusable: the file is missing, cut short, or not a safetensors file.
    """
    entries = read_entries(path)
    size_bytes = sum(entry.size_bytes for entry in entries.values())
    try:
        with safe_open(path, framework="pt") as header:  # also checks that tensors lie back to back up to the end
            keys = header.offset_keys()
        content = _read(path)
        if len(content) < size_bytes:
            raise EOFError("it became shorter while it was read")
    except (SafetensorError, OSError, EOFError) as error:
        raise WeightsUnusable(f"{path.name} cannot be read: {error}") from error
    tensors: dict[str, Tensor] = {}
    start = len(content) - size_bytes
    for key in keys:
        entry, dtype = entries[key], TORCH_DTYPES[entries[key].dtype]
        part = content[start : start + entry.size_bytes]
        aligned = part if start % dtype.itemsize == 0 else part.clone()
        tensors[key] = aligned.view(dtype).view(entry.shape)
        start += entry.size_bytes
    return tensors


def _read(path: Path) -> Tensor:
    """A file's bytes, (size,) of uint8; past the system's cache, where they are not in it and the file system can.

    Through the cache, memory is taken twice and all bytes are copied, which can cost more than the disk; so can memory
    that is taken by one thread alone.

    Raises:
        OSError, EOFError: the file cannot be read, or became shorter.
    """
    past_cache = 0 if _is_cached(path) else getattr(os, "O_DIRECT", 0)
    try:
        return _read_blocks(path, os.O_RDONLY | past_cache)
    except OSError as error:
        if error.errno != errno.EINVAL or not past_cache:
            raise
    return _read_blocks(path, os.O_RDONLY)


def _is_cached(path: Path) -> bool:
    """Whether the system's cache holds a file, judged by its first, its middle and its last byte."""
    with path.open("rb", buffering=0) as file:
        last = file.seek(0, os.SEEK_END) - 1
        try:
            return all(os.preadv(file.fileno(), [bytearray(1)], at, os.RWF_NOWAIT) for at in (0, last // 2, last))
        except (OSError, AttributeError):  # it would have to wait, or cannot be asked
            return False


def _read_blocks(path: Path, flags: int) -> Tensor:
    """As `_read`, from the file opened so."""
    file = os.open(path, flags)
    try:
        size_bytes = os.fstat(file).st_size
        pages = max(1, -(-size_bytes // mmap.PAGESIZE))  # whole ones: O_DIRECT wants the place and the length aligned
        memory = mmap.mmap(-1, pages * mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)

        def read_block(start: int) -> None:
            stop = start + BLOCK_BYTES
            with memoryview(memory) as whole:
                while start < min(stop, size_bytes):
                    taken = os.preadv(file, [whole[start:stop]], start)
                    if not taken:
                        raise EOFError("it became shorter while it was read")
                    start += taken

        with ThreadPoolExecutor(READERS) as pool:
            list(pool.map(read_block, range(0, size_bytes, BLOCK_BYTES)))
    finally:
        os.close(file)
    return torch.frombuffer(memory, dtype=torch.uint8)[:size_bytes]
