"""Reads a request's JSON body within bounds of memory, structure and time, before the caller is authenticated.

A small body is read and parsed at once. A larger one is received only for a caller whose key is known: the key in a
header is checked first; where the key stands in the body, all such bodies together share a byte budget, and the body is
parsed only once a known key was found in its bytes. Counts of JSON's structural characters stop a body of millions of
tiny values while it arrives. Knows nothing of routes.
"""

from __future__ import annotations

import json
import re
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, cast

import anyio
from fastapi import Request
from starlette.concurrency import run_in_threadpool

from pipeline.errors import BodyTooLarge, BodyTooSlow, InvalidRequest, ServiceBusy, Unauthorized
from schemas.contract import json_type_name

SMALL_BYTES = 64 << 10
"""A body up to this size is parsed on the event loop, before its key is checked: the cost is negligible."""
MAX_STRUCTURE = 20_000
"""Brackets, braces, commas and colons in one body. A request has some hundred; every parsed value needs one of them."""
MAX_NUMBER_CHARS = 300
"""Python's integers have no bound, and text of thousands of digits takes seconds to convert."""
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

_STRUCTURE = b"[{,:"
_KEY = re.compile(rb'"key"\s*:\s*"((?:[^"\\]|\\.){1,512})"')
_MAX_KEYS = 4

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
    """Reads JSON bodies of one web process.

    Args:
        max_bytes: length of the longest body that is read.
        is_known_key: whether an API key exists and may be used.
    """

    def __init__(self, *, max_bytes: int, is_known_key: IsKnownKey) -> None:
        self._max_bytes = max_bytes
        self._is_known_key = is_known_key
        self._budget = ByteBudget(UNKNOWN_CALLERS_BYTES)

    async def read(self, request: Request, *, header_key: str | None) -> dict[str, Any]:
        """The body as a JSON object; an absent body is an empty one.

        Args:
            header_key: the API key that the request's headers present, None without one.

        Raises:
            BodyTooLarge: it has more than `max_bytes`.
            BodyTooSlow: it did not arrive in time.
            InvalidRequest: it is not JSON, not an object, or has too many values.
            Unauthorized: it is larger than `SMALL_BYTES`, and neither its headers nor its bytes hold a known key.
            ServiceBusy: too many bodies of callers without a known key are arriving.
        """
        received = _Received(request, max_bytes=self._max_bytes)
        await received.until(SMALL_BYTES)
        if received.is_complete:
            return parse_object(bytes(received.content))
        if header_key is not None and await self._is_known_key(header_key):
            await received.until(None)
        else:
            announced = received.announced_bytes or self._max_bytes
            async with self._budget.reserve(announced, wait_s=BUDGET_WAIT_S):
                await received.until(None)
                await self._check_key(received.content)
        return await run_in_threadpool(parse_object, bytes(received.content))

    async def _check_key(self, content: bytearray) -> None:
        """Look for a known key in the bytes of a body.

        Raises:
            Unauthorized: there is none.
        """
        for number, found in enumerate(_KEY.finditer(content)):
            try:
                key = json.loads(b'"' + found[1] + b'"')
            except ValueError:
                continue
            if await self._is_known_key(key):
                return
            if number + 1 >= _MAX_KEYS:
                break
        raise Unauthorized("API key required" if _KEY.search(content) is None else "Invalid API key")


class _Received:
    """What has arrived of one body."""

    def __init__(self, request: Request, *, max_bytes: int) -> None:
        announced = request.headers.get("content-length", "")
        self.announced_bytes = int(announced) if announced.isdecimal() else None
        self.content = bytearray()
        self.is_complete = False
        self._max_bytes = max_bytes
        self._is_client_waiting = "expect" in request.headers  # for the status 100, before it sends the body
        self._pieces = request.stream()
        self._structure = 0
        self._started_s = anyio.current_time()

    async def until(self, size_bytes: int | None) -> None:
        """Receive until the body is complete or longer than `size_bytes`; None receives all of it."""
        if self.announced_bytes is not None and self.announced_bytes > self._max_bytes:
            await self._refuse_as_too_large()
        while not self.is_complete and (size_bytes is None or len(self.content) <= size_bytes):
            piece = await self._next_piece()
            if piece is None:
                self.is_complete = True
                return
            self.content += piece
            if len(self.content) > self._max_bytes:
                await self._refuse_as_too_large()
            self._structure += sum(piece.count(character) for character in _STRUCTURE)
            if self._structure > MAX_STRUCTURE:
                self.content.clear()
                await self._drain()
                raise InvalidRequest(f"the body has more than {MAX_STRUCTURE} values")

    async def _next_piece(self) -> bytes | None:
        """The next bytes, None at the end of the body.

        Raises:
            BodyTooSlow: they did not come in time.
        """
        spent_s = anyio.current_time() - self._started_s
        left_s = GRACE_S + len(self.content) / MIN_BYTES_PER_S - spent_s
        with anyio.move_on_after(max(0.0, min(STALL_S, left_s))):
            return await anext(self._pieces, None)
        self.content.clear()
        raise BodyTooSlow("The body did not arrive in time.")

    async def _refuse_as_too_large(self) -> None:
        self.content.clear()
        if not self._is_client_waiting:
            await self._drain()
        raise BodyTooLarge(f"The body is larger than {self._max_bytes / 2**20:g} MiB.")

    async def _drain(self) -> None:
        """Read and discard what still arrives, up to a limit."""
        drained_bytes = 0
        with anyio.move_on_after(DRAIN_S):
            async for piece in self._pieces:
                drained_bytes += len(piece)
                if drained_bytes > DRAINED_BODIES * self._max_bytes:
                    return


def parse_object(content: bytes) -> dict[str, Any]:
    """A body's bytes as a JSON object; blank ones are an empty object.

    Raises:
        InvalidRequest: they are not JSON, not an object, or hold a number of too many digits.
    """
    if not content.strip():
        return {}
    try:
        body = json.loads(content, parse_int=_integer, parse_float=_float)
    except (ValueError, RecursionError):
        raise InvalidRequest("the body is not valid JSON") from None
    if not isinstance(body, dict):
        raise InvalidRequest(f"the body must be a JSON object, got {json_type_name(body)}")
    return cast(dict[str, Any], body)


def _integer(text: str) -> int:
    return int(_short(text))


def _float(text: str) -> float:
    return float(_short(text))


def _short(text: str) -> str:
    """The text of a number.

    Raises:
        InvalidRequest: it has more than `MAX_NUMBER_CHARS`.
    """
    if len(text) > MAX_NUMBER_CHARS:
        raise InvalidRequest(f"the body has a number of {len(text)} characters; at most {MAX_NUMBER_CHARS} are read")
    return text
