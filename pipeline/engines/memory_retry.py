"""A second, smaller try of a generation for which the device has too little memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch

from pipeline.errors import OutOfMemory

T = TypeVar("T")

RETRY_CHUNK_DIVISOR = 4
"""By how much chunks shrink in the second try."""


def smaller_chunk(chunk_size: int) -> int:
    """Return the chunk size of the second try."""
    return max(1, chunk_size // RETRY_CHUNK_DIVISOR)


def with_memory_retry(first: Callable[[], T], smaller: Callable[[], T], *, device: torch.device, tried: str) -> T:
    """Run a whole generation, from encoding to decoding and rendering, and again with less memory if it runs out.

    Args:
        first: the generation.
        smaller: the same with less memory.
        device: whose memory it is.
        tried: what the second try was, for the message: "even for one pass at a time".

    Raises:
        OutOfMemory: the second try ran out too.
    """
    try:
        return first()
    except torch.cuda.OutOfMemoryError:
        pass
    # After the handler: inside, the exception's frames would keep the tensors of the first try.
    torch.cuda.empty_cache()
    try:
        return smaller()
    except torch.cuda.OutOfMemoryError as error:
        torch.cuda.empty_cache()
        free, total = (size / 1e9 for size in torch.cuda.mem_get_info(device))
        raise OutOfMemory(
            f"the device has too little memory, {tried}: {free:.1f} of {total:.1f} GB are free"
        ) from error
