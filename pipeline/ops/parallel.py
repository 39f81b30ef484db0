"""Runs CPU work in pieces, each piece on one thread. Knows nothing of what the work is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

T = TypeVar("T")


def each_on_one_thread(work: Callable[[T], None], pieces: Sequence[T], *, at_once: int) -> None:
    """Process the pieces concurrently, with torch's own threading off inside a piece.

    For many small operations this is quicker than splitting each of them over threads, and the bits of a piece's result
    depend neither on the number of threads nor on the other work of the process.

    Args:
        work: processes one piece and stores the result itself; runs in inference mode.
        pieces: arguments of `work`.
        at_once: most pieces at a time; fewer if torch has fewer threads.

    Raises:
        Exception: the first exception that `work` raised, once the running pieces have finished; others are cancelled.
    """
    threads = torch.get_num_threads()

    def guarded(piece: T) -> None:
        with torch.inference_mode():
            work(piece)

    # torch's number of threads is a setting per thread, but a new thread inherits the last value set in any thread: the
    # initializer sets it for the pool's threads, and the end resets the value that later threads inherit.
    with ThreadPoolExecutor(min(threads, at_once), initializer=torch.set_num_threads, initargs=(1,)) as pool:
        try:
            for done in [pool.submit(guarded, piece) for piece in pieces]:
                done.result()
        finally:
            pool.shutdown(cancel_futures=True)
            torch.set_num_threads(threads)
