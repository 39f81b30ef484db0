"""A time limit for an HTTP request as a whole. Knows nothing of what is requested.

httpx limits the wait for the next bytes; a server that sends one byte at a time stays within that limit for hours.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Generator
from contextlib import contextmanager, suppress
from typing import Any

import httpx


class Deadline:
    """The deadline of one request.

    Attributes:
        extensions: httpx extensions that the request must use.
        has_passed: the connection was closed because the deadline passed.
    """

    def __init__(self) -> None:
        self.extensions: dict[str, Any] = {"trace": self._on_event}
        self.has_passed = False
        self._streams: list[Any] = []
        self._lock = threading.Lock()

    def cut(self) -> None:
        """Close the connections of the request, including later ones."""
        with self._lock:
            self.has_passed = True
            for stream in self._streams:
                _close(stream)

    def _on_event(self, event: str, info: dict[str, Any]) -> None:
        """httpcore's trace callback: a connection is about to be made, is made, or has started TLS."""
        if event == "connection.connect_tcp.started" and self.has_passed:
            raise httpx.ConnectTimeout("the deadline of this request has passed")
        if event in ("connection.connect_tcp.complete", "connection.start_tls.complete"):
            with self._lock:
                self._streams.append(info["return_value"])
                if self.has_passed:  # `cut` ran while the connection was made
                    _close(info["return_value"])


@contextmanager
def deadline(seconds: float) -> Generator[Deadline]:
    """Close the connection of a request that is not finished after this many seconds.

    For requests on their own connection (`Connection: close`), sent with `extensions=deadline.extensions`. The request
    then raises an `httpx.TransportError`, and `has_passed` is True.
    """
    limit = Deadline()
    timer = threading.Timer(seconds, limit.cut)
    timer.daemon = True
    timer.start()
    try:
        yield limit
    finally:
        timer.cancel()


def _close(stream: Any) -> None:
    connection = stream.get_extra_info("socket")
    if connection is not None:
        with suppress(OSError):  # it may already be closed
            socket.socket.shutdown(connection, socket.SHUT_RDWR)
