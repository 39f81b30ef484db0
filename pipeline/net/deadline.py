"""A limit for an HTTP request as a whole. Knows nothing of what is requested.

httpx limits each wait for a few bytes; a peer that sends one byte now and then stays within that for hours.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Generator
from contextlib import contextmanager, suppress
from typing import Any

import httpx


class Deadline:
    """What a request is given on its way, and whether its time ran out.

    Attributes:
        extensions: the request's httpx extensions.
        has_passed: the connection was cut because the time was up.
    """

    def __init__(self) -> None:
        self.extensions: dict[str, Any] = {"trace": self._note}
        self.has_passed = False
        self._streams: list[Any] = []
        self._lock = threading.Lock()

    def cut(self) -> None:
        """Break whatever connection there is, and any that is yet to come."""
        with self._lock:
            self.has_passed = True
            for stream in self._streams:
                _break(stream)

    def _note(self, event: str, info: dict[str, Any]) -> None:
        """httpcore tells what it does: when a connection is about to be made, is made, and when it speaks TLS."""
        if event == "connection.connect_tcp.started" and self.has_passed:
            raise httpx.ConnectTimeout("the time for this request is up")
        if event in ("connection.connect_tcp.complete", "connection.start_tls.complete"):
            with self._lock:
                self._streams.append(info["return_value"])
                if self.has_passed:  # in the very moment
                    _break(info["return_value"])


@contextmanager
def deadline(seconds: float) -> Generator[Deadline]:
    """Break the connection of a request that is not over after so many seconds.

    For requests on a connection of their own (`Connection: close`), sent with `extensions=deadline.extensions`. The
    request then ends with an `httpx.TransportError`, and `has_passed` says why.
    """
    limit = Deadline()
    timer = threading.Timer(seconds, limit.cut)
    timer.daemon = True
    timer.start()
    try:
        yield limit
    finally:
        timer.cancel()


def _break(stream: Any) -> None:
    connection = stream.get_extra_info("socket")
    if connection is not None:
        with suppress(OSError):  # it may be closed already
            socket.socket.shutdown(connection, socket.SHUT_RDWR)
