"""uvicorn's HTTP/1.1 protocol with the bounds that it lacks: open connections, and how long a client may stand still.

uvicorn ends an idle connection only after an answer. Without this, a client that opens connections and sends nothing,
or half a head, or that does not read its answer, keeps each of them for ever, and with them the process's files. Knows
nothing of the application.
"""

from __future__ import annotations

import asyncio
import resource

from uvicorn.protocols.http.h11_impl import H11Protocol

HEAD_TIMEOUT_S = 15.0
"""How long a connection may take from its opening, or from the first byte of its next request, to a complete head."""
WRITE_STALL_S = 600.0
"""How long a client may take before more can be sent to it. It must read some 1.5 MB for that: the buffers of both
machines hold 4 MB, and only a socket with a third of its buffer free can be written to."""
MAX_CONNECTIONS = 4096
SPARE_FILES = 256
"""Of the files that a process may open, so many are left for the database, uploads and downloads."""


def max_connections() -> int:
    """How many connections this process can hold, once its limit of open files is raised as far as it may be."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_CONNECTIONS + SPARE_FILES
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return MAX_CONNECTIONS if soft == resource.RLIM_INFINITY else max(1, min(MAX_CONNECTIONS, soft - SPARE_FILES))


def bounded_protocol(
    *, limit: int, head_timeout_s: float = HEAD_TIMEOUT_S, write_stall_s: float = WRITE_STALL_S
) -> type[H11Protocol]:
    """The protocol class for `uvicorn.Config(http=...)`.

    Args:
        limit: open connections; further ones are closed at once.
    """

    class BoundedH11Protocol(H11Protocol):
        """One connection."""

        _head_timer: asyncio.TimerHandle | None = None
        _write_timer: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:
            super().connection_made(transport)
            if len(self.connections) > limit:
                transport.abort()
                return
            self._start_head_timer()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if self.cycle is None or self.cycle.response_complete:
                self._start_head_timer()
            else:
                self._stop_head_timer()

        def on_response_complete(self) -> None:
            # A pipelined request may have arrived already: its head is complete, and its own cycle stops the timer.
            self._stop_head_timer()
            super().on_response_complete()

        def pause_writing(self) -> None:
            super().pause_writing()
            self._write_timer = self.loop.call_later(write_stall_s, self.transport.abort)

        def resume_writing(self) -> None:
            self._stop_write_timer()
            super().resume_writing()

        def connection_lost(self, exc: Exception | None) -> None:
            self._stop_head_timer()
            self._stop_write_timer()
            super().connection_lost(exc)

        def _stop_write_timer(self) -> None:
            if self._write_timer is not None:
                self._write_timer.cancel()
                self._write_timer = None

        def _start_head_timer(self) -> None:
            if self._head_timer is None and not self.transport.is_closing():
                self._head_timer = self.loop.call_later(head_timeout_s, self.transport.abort)

        def _stop_head_timer(self) -> None:
            if self._head_timer is not None:
                self._head_timer.cancel()
                self._head_timer = None

    return BoundedH11Protocol
