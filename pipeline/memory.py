"""How the C library's allocator gives memory back. Knows nothing of what is allocated."""

from __future__ import annotations

import ctypes
import sys

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
LARGE_BYTES, MAX_FREE_TOP_BYTES = 1 << 20, 4 << 20


def return_large_blocks() -> None:
    """Give every freed block of a megabyte or more back to the system at once.

    glibc raises the size from which it does so with each block that is freed, up to 32 MiB: after one large request the
    next ones leave holes in the heap, and the process keeps several times what it uses. A fixed size ends that. It also
    fixes the free space at the heap's end that is kept, to 128 KiB: blocks of 256 KiB, in which bodies arrive, would be
    given back and fetched again each time, which is a third of what receiving a body costs. So a few of them are kept.
    Source: mallopt(3), M_MMAP_THRESHOLD and M_TRIM_THRESHOLD. Other C libraries have no such function, and are left as
    they are.
    """
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, LARGE_BYTES)
        mallopt(M_TRIM_THRESHOLD, MAX_FREE_TOP_BYTES)
