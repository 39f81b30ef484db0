"""Strict checkpoint loading: every key, shape and type must match, or nothing is loaded.

A module is built on the meta device, where it takes no memory. Its tensors either come from the memory-mapped file,
straight to their device and precision, or are read into memory of their own, so that the process no longer depends on
the file (a snapshot of the process requires that). Knows no particular model.
"""

from __future__ import annotations

import errno
import mmap
import os
from collections.abc import Mapping
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
"""Bytes that one thread reads at a time."""
READER_THREADS = 4
"""Threads that read one file; more than one so that page faults of the target memory run in parallel too."""


def module_entries(module: nn.Module) -> dict[str, Entry]:
    """Return the keys, types and shapes that a file must hold for a module."""
    return {key: Entry(FILE_DTYPES[t.dtype], tuple(t.shape)) for key, t in module.state_dict().items()}


def load_strictly(
    module: nn.Module,
    path: Path,
    *,
    device: torch.device | str,
    stored: dict[str, Entry] | None = None,
    copy: bool = False,
) -> None:
    """Load the tensors of a module that was built on the meta device.

    Args:
        module: on the meta device, in the precision in which it will run.
        path: a safetensors file.
        device: target device of the tensors.
        stored: what the file must hold, if that differs from the module's own types.
        copy: copy the tensors into memory of their own, see `read_tensors`. Otherwise tensors on the CPU that need no
            conversion stay mapped from the file: memory is not taken twice, but the file must not change.

    Raises:
        WeightsUnusable: the file is missing, truncated, or does not match; the module is then unchanged.
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


def read_chosen_tensors(
    path: Path, chosen: Mapping[str, Entry], *, device: torch.device, copy: bool
) -> dict[str, Tensor]:
    """Read some tensors of a file that holds more, in their stored types.

    Args:
        path: a safetensors file.
        chosen: what is read, with the type and shape that it must have.
        device: target device.
        copy: copy the tensors into memory of their own instead of mapping them from the file.

    Raises:
        WeightsUnusable: the file is missing or truncated, or a tensor is missing or another.
    """
    found = read_entries(path)
    check_entries(path.name, {key: found[key] for key in chosen if key in found}, chosen)
    try:
        with safe_open(path, framework="pt", device=str(device)) as file:
            return {key: file.get_tensor(key).clone() if copy else file.get_tensor(key) for key in chosen}
    except SafetensorError as error:
        raise WeightsUnusable(f"{path.name} cannot be read: {error}") from error


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read all tensors of a file to the CPU, in their stored types.

    The tensors share one block of memory, which is freed with the last of them.

    Raises:
        WeightsUnusable: the file is missing, truncated, or not a safetensors file.
    """
    entries = read_entries(path)
    size_bytes = sum(entry.size_bytes for entry in entries.values())
    try:
        with safe_open(path, framework="pt") as header:  # also checks that the tensors are contiguous up to the end
            keys = header.offset_keys()
        content = _read(path)
        if len(content) < size_bytes:
            raise EOFError("the file shrank while it was read")
    except (SafetensorError, OSError, EOFError) as error:
        raise WeightsUnusable(f"{path.name} cannot be read: {error}") from error
    tensors: dict[str, Tensor] = {}
    start = len(content) - size_bytes
    for key in keys:
        entry, dtype = entries[key], TORCH_DTYPES[entries[key].dtype]
        part = content[start : start + entry.size_bytes]
        # `view(dtype)` requires an aligned offset; the format allows any order of types, so copy where it is not.
        aligned = part if start % dtype.itemsize == 0 else part.clone()
        tensors[key] = aligned.view(dtype).view(entry.shape)  # (size,) uint8 -> (count,) -> entry.shape
        start += entry.size_bytes
    return tensors


def _read(path: Path) -> Tensor:
    """Read a file as (size,) uint8, with direct I/O if it is not in the page cache and the file system supports that.

    A buffered read takes the memory twice and copies every byte out of the page cache, which halves the throughput of
    a fast disk. A file that is in the page cache already is read from there: that is faster than any disk.

    Raises:
        OSError, EOFError: the file cannot be read, or shrank while it was read.
    """
    direct = 0 if _is_cached(path) else getattr(os, "O_DIRECT", 0)  # absent on macOS
    try:
        return _read_blocks(path, os.O_RDONLY | direct)
    except OSError as error:
        if error.errno != errno.EINVAL or not direct:  # EINVAL: tmpfs and some overlays do not support O_DIRECT
            raise
    return _read_blocks(path, os.O_RDONLY)


def _is_cached(path: Path) -> bool:
    """Return whether the page cache holds a file, judged by its first, middle and last byte."""
    with path.open("rb", buffering=0) as file:
        last = file.seek(0, os.SEEK_END) - 1
        try:
            return all(os.preadv(file.fileno(), [bytearray(1)], at, os.RWF_NOWAIT) for at in (0, last // 2, last))
        except (OSError, AttributeError):  # EAGAIN: not cached; otherwise RWF_NOWAIT is not supported
            return False


def _read_blocks(path: Path, flags: int) -> Tensor:
    """Read a file, opened with `flags`, as (size,) uint8."""
    file = os.open(path, flags)
    try:
        size_bytes = os.fstat(file).st_size
        # O_DIRECT requires an aligned address and length, so the buffer is an anonymous mapping of whole pages.
        pages = max(1, -(-size_bytes // mmap.PAGESIZE))
        memory = mmap.mmap(-1, pages * mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)

        def read_block(start: int) -> None:
            stop = start + BLOCK_BYTES
            with memoryview(memory) as whole:
                while start < min(stop, size_bytes):
                    taken = os.preadv(file, [whole[start:stop]], start)
                    if not taken:
                        raise EOFError("the file shrank while it was read")
                    start += taken

        with ThreadPoolExecutor(READER_THREADS) as pool:
            list(pool.map(read_block, range(0, size_bytes, BLOCK_BYTES)))
    finally:
        os.close(file)
    return torch.frombuffer(memory, dtype=torch.uint8)[:size_bytes]
