"""How much is computed at once on a device. Knows nothing of what is computed."""

from __future__ import annotations

import torch

DEFAULT_CHUNK_SIZE = 8192
"""The chunk size of a request that does not set it: it stands for the whole block of a GPU, and less for its share."""
MEMORY_SHARE = 8
"""A block takes at most one part in so many of a GPU's free memory."""
MOST_ROWS = 1 << 21
"""More rows in a block make no kernel quicker."""


def rows_at_once(device: torch.device, *, chunk_size: int, bytes_each: int) -> int:
    """Return how many rows a block has: `chunk_size` on a CPU, as many as its memory suggests on a GPU.

    A GPU takes 5 microseconds to start a kernel, in which it would compute a thousand rows: the chunks of a request,
    which bound the memory on a CPU, would make it wait for the host.

    Args:
        device: where the rows are.
        chunk_size: rows at once according to the request; below the default, a GPU's block shrinks in proportion.
        bytes_each: memory for a row, temporaries included.
    """
    if device.type != "cuda":
        return chunk_size
    free, _ = torch.cuda.mem_get_info(device)
    free += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # what torch keeps for later
    rows = min(MOST_ROWS, free // MEMORY_SHARE // bytes_each)
    return max(chunk_size, rows * min(chunk_size, DEFAULT_CHUNK_SIZE) // DEFAULT_CHUNK_SIZE)
