"""Work on the CPU in pieces, each on one thread from its first operation to its last."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

T = TypeVar("T")


def each_on_one_thread(work: Callable[[T], None], pieces: Sequence[T], *, at_once: int) -> None:
    """Do the pieces, several at a time, none of them split over threads.

    For many small operations that is quicker than to split each of them, and a piece's bits then depend neither on
    how many threads there are nor on what else is done at the same time.

    Args:
        work: writes its result itself; runs without gradients.
        at_once: most pieces at a time; fewer where torch has fewer threads.

    Raises:
        whatever `work` raises, after the pieces that had begun.
    """
    threads = torch.get_num_threads()

    def guarded(piece: T) -> None:
        with torch.inference_mode():
            work(piece)

    # The number of threads is each thread's own, but a new thread begins with the last one that was set anywhere.
    with ThreadPoolExecutor(min(threads, at_once), initializer=torch.set_num_threads, initargs=(1,)) as pool:
        try:
            for done in [pool.submit(guarded, piece) for piece in pieces]:
                done.result()
        finally:
            pool.shutdown(cancel_futures=True)
            torch.set_num_threads(threads)
