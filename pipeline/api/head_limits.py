"""Refuses requests whose head is ambiguous or too large, before any route sees them.

Two servers may read a head with both framing headers in two ways (request smuggling, RFC 9112 section 6.1): a proxy in
front that believes the other header passes on a second request inside the first.
"""

from __future__ import annotations

from starlette.types import ASGIApp, Receive, Scope, Send

from pipeline.api.problems import error_response
from pipeline.errors import HeadTooLarge, ImageTo3DError, InvalidRequest

FRAMING = (b"content-length", b"transfer-encoding")
MAX_HEADERS = 100
MAX_HEAD_BYTES = 32 << 10


def with_head_limits(app: ASGIApp) -> ASGIApp:
    """The application behind the limits; a refused connection is closed."""

    async def serve(scope: Scope, receive: Receive, send: Send) -> None:
        error = _error_of(scope) if scope["type"] == "http" else None
        if error is None:
            await app(scope, receive, send)
            return
        response = error_response(error)
        response.headers["connection"] = "close"  # where this request ends, and the next begins, is uncertain
        await response(scope, receive, send)

    return serve


def _error_of(scope: Scope) -> ImageTo3DError | None:
    """Why a head is refused; None for one that is fine."""
    headers: list[tuple[bytes, bytes]] = scope["headers"]
    size_bytes = len(scope.get("raw_path") or b"") + len(scope.get("query_string") or b"")
    framing = 0
    for name, value in headers:
        size_bytes += len(name) + len(value)
        framing += name in FRAMING
    if framing > 1:
        return InvalidRequest("The request has more than one of Content-Length and Transfer-Encoding.")
    if len(headers) > MAX_HEADERS or size_bytes > MAX_HEAD_BYTES:
        limits = f"at most {MAX_HEADERS} headers and {MAX_HEAD_BYTES >> 10} KiB are accepted"
        return HeadTooLarge(f"The request's head is too large: {limits}.")
    return None
