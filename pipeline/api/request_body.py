"""Reads a request's body within bounds of memory, structure and time, before the caller is authenticated.

A small body is read at once. A larger one is received only for a caller whose key is known: from a header, or from the
beginning of the body; where the key stands further down, all such bodies together share a byte budget, and the body is
used only once a known key was found in it. What the body holds is up to `body_formats`. Knows nothing of routes.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, NoReturn

import anyio
from fastapi import Request
from starlette.concurrency import run_in_threadpool

from pipeline.api.body_formats import BodyFormat, choose_format
from pipeline.api.content_coding import Decoder, decoder_of
from pipeline.errors import BodyTooLarge, BodyTooSlow, CallerError, ServiceBusy, Unauthorized

SMALL_BYTES = 64 << 10
"""A body up to this size is read before its key is checked: the cost is negligible."""
PIECE_BYTES = 1 << 20
"""A larger body is handed on in pieces of about this size, most of them in a thread."""
UNKNOWN_CALLERS_BYTES = 48 << 20
"""What all larger bodies together may hold in memory while no key of theirs is known."""
BUDGET_WAIT_S = 20.0
STALL_S = 30.0
"""How long a body may pause."""
MIN_BYTES_PER_S = 8 << 10
GRACE_S = 60.0
"""A body must arrive within this time and what its bytes take at `MIN_BYTES_PER_S`."""
DRAINED_BODIES, DRAIN_S = 3, 10.0
"""How much of a body that is too long is read and dropped, and for how long: a client that is still sending when the
connection closes never reads the refusal."""

IsKnownKey = Callable[[str], Awaitable[bool]]


class ByteBudget:
    """Bytes that many tasks share; a task that finds too few left waits. For one event loop."""

    def __init__(self, total: int) -> None:
        self._left = self._total = total
        self._changed = anyio.Event()

    @asynccontextmanager
    async def reserve(self, size_bytes: int, *, wait_s: float) -> AsyncGenerator[None]:
        """Reserve some bytes for the `async with` body.

        Raises:
            ServiceBusy: they were not free in time.
        """
        size_bytes = min(size_bytes, self._total)
        with anyio.move_on_after(wait_s):
            while size_bytes > self._left:
                await self._changed.wait()
        if size_bytes > self._left:
            raise ServiceBusy(
                "Too many large requests are arriving at once; try again, or send the API key in a header."
            )
        self._left -= size_bytes
        try:
            yield
        finally:
            self._left += size_bytes
            self._changed.set()
            self._changed = anyio.Event()


class BodyReader:
    """Reads the bodies of one web process.

    Args:
        max_bytes: length of the longest body that is read, and of the longest that a compressed one may become.
        is_known_key: whether an API key exists and may be used.
    """

    def __init__(self, *, max_bytes: int, is_known_key: IsKnownKey) -> None:
        self._max_bytes = max_bytes
        self._is_known_key = is_known_key
        self._budget = ByteBudget(UNKNOWN_CALLERS_BYTES)

    async def read(self, request: Request, *, header_key: str | None, takes_raw: bool = False) -> dict[str, Any]:
        """The body's fields, as JSON has them; an absent body has none. Files are `form_fields.FilePart`.

        Args:
            header_key: the API key that the request's headers present, None without one.
            takes_raw: the bytes of an image are accepted as the whole body, as the field `image`.

        Raises:
            BodyTooLarge: it has more than `max_bytes`.
            BodyTooSlow: it did not arrive in time.
            InvalidRequest: it is malformed, or has too many values.
            UnsupportedMediaType: it has a type or an encoding that is not taken.
            Unauthorized: it is larger than `SMALL_BYTES`, and neither its headers nor its bytes hold a known key.
            ServiceBusy: too many bodies of callers without a known key are arriving.
        """
        received = _Received(request, max_bytes=self._max_bytes)
        try:
            received.decoder = decoder_of(request.headers.get("content-encoding", ""))
            beginning = await received.next(SMALL_BYTES + 1)
            body = choose_format(request.headers.get("content-type", ""), beginning, takes_raw=takes_raw)
            body.feed(beginning)
            if received.is_complete:
                return body.finish()
            if await self._is_known(header_key, body):
                await _receive(received, body)
            elif not body.may_hold_key:
                await self._check_key(body)
            else:
                announced = received.announced_bytes or self._max_bytes
                async with self._budget.reserve(announced, wait_s=BUDGET_WAIT_S):
                    await _receive(received, body)
                    await self._check_key(body)
        except CallerError:
            await received.drain()
            raise
        return await run_in_threadpool(body.finish)

    async def _is_known(self, header_key: str | None, body: BodyFormat) -> bool:
        """Whether a known key is in the headers, or in what has arrived of the body."""
        for key in (header_key, *body.keys()):
            if key is not None and await self._is_known_key(key.strip()):
                return True
        return False

    async def _check_key(self, body: BodyFormat) -> None:
        """Look for a known key in a body.

        Raises:
            Unauthorized: there is none.
        """
        keys = list(body.keys())
        for key in keys:
            if await self._is_known_key(key.strip()):
                return
        raise Unauthorized("Invalid API key" if keys else "API key required")


async def _receive(received: _Received, body: BodyFormat) -> None:
    """Hand the rest of a body on to its format."""
    while piece := await received.next(SMALL_BYTES if body.is_cheap else PIECE_BYTES):
        if body.is_cheap:
            body.feed(piece)
        else:
            await run_in_threadpool(body.feed, piece)


class _Received:
    """What arrives of one body, decoded."""

    def __init__(self, request: Request, *, max_bytes: int) -> None:
        announced = request.headers.get("content-length", "")
        self.announced_bytes = int(announced) if announced.isdecimal() else None
        self.decoder: Decoder | None = None
        self.is_complete = False
        self._size_bytes = 0
        self._max_bytes = max_bytes
        self._is_client_waiting = "expect" in request.headers  # for the status 100, before it sends the body
        self._pieces = request.stream()
        self._started_s = time.monotonic()
        self._wire_bytes = 0
        self._is_read = False

    async def next(self, size_bytes: int) -> bytes:
        """At least so many further bytes, or what is left of the body.

        Raises:
            BodyTooLarge: the body has more than it may have.
            BodyTooSlow: they did not come in time.
            InvalidRequest: the body is not encoded as it says.
        """
        if self.announced_bytes is not None and self.announced_bytes > self._max_bytes:
            self._refuse_as_too_large()
        pieces: list[bytes] = []
        missing_bytes = size_bytes
        while not self.is_complete and missing_bytes > 0:
            pieces.append(await self._next_decoded())
            missing_bytes -= len(pieces[-1])
            self._size_bytes += len(pieces[-1])
            if self._size_bytes > self._max_bytes:
                pieces.clear()
                self._refuse_as_too_large()
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    async def drain(self) -> None:
        """Read and discard what still arrives, up to a limit: a client that is still sending reads no refusal."""
        if self.is_complete or (self._is_client_waiting and not self._is_read):
            return
        drained_bytes = 0
        with anyio.move_on_after(DRAIN_S):
            async for piece in self._pieces:
                drained_bytes += len(piece)
                if drained_bytes > DRAINED_BODIES * self._max_bytes:
                    return

    async def _next_decoded(self) -> bytes:
        """The next bytes; none at the end of the body, or where a compressed one needs more input."""
        if self.decoder is not None and (decoded := await run_in_threadpool(self.decoder.step)):
            return decoded
        piece = await self._next_piece()
        if self.decoder is None or piece is None:
            self.is_complete = piece is None
            if self.is_complete and self.decoder is not None and self._wire_bytes:
                self.decoder.finish()
            return piece or b""
        self.decoder.feed(piece)
        return b""

    async def _next_piece(self) -> bytes | None:
        """The next bytes as they were sent, None at the end of the body.

        Raises:
            BodyTooSlow: they did not come in time.
        """
        self._is_read = True
        spent_s = time.monotonic() - self._started_s
        left_s = GRACE_S + self._wire_bytes / MIN_BYTES_PER_S - spent_s
        with anyio.move_on_after(max(0.0, min(STALL_S, left_s))):
            piece = await anext(self._pieces, None)
            self._wire_bytes += len(piece or b"")
            return piece
        self.is_complete = True  # nothing more is read: the connection is as good as dead
        raise BodyTooSlow("The body did not arrive in time.")

    def _refuse_as_too_large(self) -> NoReturn:
        raise BodyTooLarge(f"The body is larger than {self._max_bytes / 2**20:g} MiB.")
