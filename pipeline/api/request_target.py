"""Brings the path of a request into one form before it is routed.

`/path/` and `//path` are `/path`, as clients ask for that join a base address and a path: no redirect, which would
repeat the key and the image at an address made from the request's own host. An absolute URL in place of the path, as
clients send it to a proxy, counts as its path, and its authority as the host. Source: RFC 9112 section 3.2.2.
"""

from __future__ import annotations

import re

from starlette.types import ASGIApp, Receive, Scope, Send

_ABSOLUTE = re.compile(r"(?i)/?https?://([^/?#]*)")

_SLASHES = re.compile(r"/{2,}")


def with_plain_targets(app: ASGIApp) -> ASGIApp:
    """The application behind this rule."""

    async def serve(scope: Scope, receive: Receive, send: Send) -> None:
        await app(_plain(scope) if scope["type"] == "http" else scope, receive, send)

    return serve


def _plain(scope: Scope) -> Scope:
    path: str = scope["path"]
    changes: Scope = {}
    if (absolute := _ABSOLUTE.match(path)) is not None:
        path = path[absolute.end() :] or "/"
        host = absolute[1].rpartition("@")[2].encode("latin-1", "replace")
        changes["headers"] = [*(header for header in scope["headers"] if header[0] != b"host"), (b"host", host)]
    path = _SLASHES.sub("/", path)
    if len(path) > 1 and path.endswith("/"):
        path = path.removesuffix("/")
    if path == scope["path"]:
        return scope
    return {**scope, **changes, "path": path, "raw_path": path.encode("utf-8", "surrogateescape")}
