"""The web process's listening socket, opened before anything else is, so that a port that is taken is one sentence."""

from __future__ import annotations

import errno
import socket
import time
from typing import Any

from pipeline.errors import CannotStart

BACKLOG = 2048
WAIT_S = 5.0
"""How long a port may stay taken: a web process whose supervisor was killed frees it within about a second."""
POLL_S = 0.1


def open_listener(host: str, port: int) -> socket.socket:
    """A socket that listens on an address of this machine.

    Args:
        host: a name or an address; empty is every IPv4 address.
        port: 0 is one that is free.

    Raises:
        CannotStart: the port is another process's, or this process may not listen there.
    """
    place = f"port {port} of {host or '0.0.0.0'}"
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host or "0.0.0.0", port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except socket.gaierror as error:
        raise CannotStart(f"{host!r} is not an address of this machine ({error.strerror}).") from error
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        _bind(listener, address)
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise CannotStart(f"Cannot listen on {place}: {_why(error)}.") from error
    return listener


def _bind(listener: socket.socket, address: tuple[Any, ...]) -> None:
    deadline_s = time.monotonic() + WAIT_S
    while True:
        try:
            listener.bind(address)
        except OSError as error:
            if error.errno != errno.EADDRINUSE or time.monotonic() > deadline_s:
                raise
            time.sleep(POLL_S)
        else:
            return


def inherited_listener(descriptor: int) -> socket.socket:
    """The socket that the parent process opened; it outlives this process, so a restart refuses no connection."""
    return socket.socket(fileno=descriptor)


def _why(error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return "another process uses it; choose another with --port or IMAGE_TO_3D_PORT"
    return (error.strerror or type(error).__name__).lower()
