"""A limit of time for everything that one thread sends and receives, and a way to end it early.

httpx limits the wait for the next bytes; a server that sends one byte at a time stays within that limit for hours. The
limit here holds for all requests inside a `with deadline(...)` block together: name servers, connections, retries and
bodies, on new connections and on kept ones. Knows nothing of what is requested.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from typing import Any

import httpcore
import httpx

from pipeline.errors import Cancelled

CANCEL_POLL_S = 0.2

IsCancelled = Callable[[], bool]


class DeadlinePassed(httpx.TimeoutException):
    """The limit of `deadline` has passed."""

    def __init__(self) -> None:
        super().__init__("the deadline has passed")


class Deadline:
    """The limit of one `with deadline(...)` block."""

    def __init__(self, seconds: float, is_cancelled: IsCancelled | None) -> None:
        self._ends_at_s = time.monotonic() + seconds
        self._is_cancelled = is_cancelled
        self._is_over = threading.Event()
        self._lock = threading.Lock()
        self._in_use: httpcore.NetworkStream | None = None

    @property
    def left_s(self) -> float:
        """Seconds that are left, at least 0."""
        return max(0.0, self._ends_at_s - time.monotonic())

    def check(self) -> None:
        """Raise when the block must not go on.

        Raises:
            Cancelled: it was cancelled.
            DeadlinePassed: no time is left.
        """
        if self._is_cancelled is not None and self._is_cancelled():
            raise Cancelled("The job was cancelled.")
        if not self.left_s:
            raise DeadlinePassed

    @contextmanager
    def using(self, stream: httpcore.NetworkStream) -> Generator[None]:
        """Close the stream's connection if the block must not go on before this inner block ends."""
        self.check()
        with self._lock:
            self._in_use = stream
        try:
            yield
        except (httpcore.TimeoutException, httpcore.NetworkError) as error:
            self.check()  # raises where this error is only the effect of the closed connection
            if isinstance(error, httpcore.TimeoutException) and self.left_s < CANCEL_POLL_S:
                raise DeadlinePassed from error  # the wait was as long as the limit, but for rounding
            raise
        finally:
            with self._lock:
                self._in_use = None
        self.check()

    def watch(self) -> None:
        """Close the connection in use when time is up or the block is cancelled; returns when the block ends."""
        while True:
            pause_s = self.left_s if self._is_cancelled is None else min(CANCEL_POLL_S, self.left_s)
            if self._is_over.wait(pause_s):
                return
            try:
                self.check()
            except (Cancelled, DeadlinePassed):
                with self._lock:
                    if self._in_use is not None:
                        _shut_down(self._in_use)
                if self._is_over.wait(CANCEL_POLL_S):  # the next stream is closed too
                    return

    def end(self) -> None:
        """Stop watching."""
        self._is_over.set()


_current: ContextVar[Deadline | None] = ContextVar("deadline", default=None)


@contextmanager
def deadline(seconds: float, *, is_cancelled: IsCancelled | None = None) -> Generator[Deadline]:
    """Limit all requests of this thread, inside the block and sent with `guarded_client`, to so many seconds together.

    After that they raise `DeadlinePassed`, and after a cancellation `Cancelled`, both within a fraction of a second.

    Args:
        is_cancelled: asked a few times per second, from another thread.
    """
    limit = Deadline(seconds, is_cancelled)
    token = _current.set(limit)
    watcher = threading.Thread(target=limit.watch, name="deadline", daemon=True)
    watcher.start()
    try:
        yield limit
    finally:
        _current.reset(token)
        limit.end()


def current_deadline() -> Deadline | None:
    """The innermost deadline of this thread."""
    return _current.get()


class LimitedStream(httpcore.NetworkStream):
    """A connection that keeps to the deadline of the thread that uses it."""

    def __init__(self, stream: httpcore.NetworkStream) -> None:
        self._stream = stream

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        limit = _current.get()
        if limit is None:
            return self._stream.read(max_bytes, timeout)
        with limit.using(self._stream):
            return self._stream.read(max_bytes, _least(timeout, limit.left_s))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        limit = _current.get()
        if limit is None:
            self._stream.write(buffer, timeout)
            return
        with limit.using(self._stream):
            self._stream.write(buffer, _least(timeout, limit.left_s))

    def start_tls(
        self, ssl_context: Any, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        limit = _current.get()
        if limit is None:
            return LimitedStream(self._stream.start_tls(ssl_context, server_hostname, timeout))
        with limit.using(self._stream):
            return LimitedStream(self._stream.start_tls(ssl_context, server_hostname, _least(timeout, limit.left_s)))

    def close(self) -> None:
        self._stream.close()

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)


def _least(timeout: float | None, left_s: float) -> float:
    """The shorter of two limits; never 0, which makes a socket non-blocking."""
    return max(0.001, left_s if timeout is None else min(timeout, left_s))


def _shut_down(stream: httpcore.NetworkStream) -> None:
    connection = stream.get_extra_info("socket")
    if connection is not None:
        with suppress(OSError):  # it may already be closed
            socket.socket.shutdown(connection, socket.SHUT_RDWR)
