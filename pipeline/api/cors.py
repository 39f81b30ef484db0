"""Cross-origin requests from browsers, for the API and the files. Never with credentials: a key or a token is sent."""

from __future__ import annotations

from collections.abc import Sequence

from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from schemas.origins import origin_pattern

PATHS = ("/api/", "/files/")
"""Not the pages, and not `/metrics`, which the operator's own browser may read without a token."""
METHODS = ("GET", "HEAD", "POST", "OPTIONS")
EXPOSED = (
    "Retry-After",
    "X-RateLimit-Limit",
    "X-RateLimit-Remaining",
    "X-RateLimit-Reset",
    "Idempotent-Replayed",
    "X-Request-Id",
    "Content-Disposition",
    "ETag",
)
PREFLIGHT_LIFETIME_S = 600


def with_cors(app: ASGIApp, origins: Sequence[str]) -> ASGIApp:
    """The application for pages of these origins, `*` for all; a page may send any header of its own.

    Args:
        origins: as `schemas.origins.read_origin` returns them.
    """
    patterns = [origin_pattern(origin) for origin in origins if "*" in origin.removeprefix("*")]
    open_app = CORSMiddleware(
        app,
        allow_origins=origins,
        allow_origin_regex="|".join(patterns) or None,
        allow_methods=METHODS,
        allow_headers=["*"],
        expose_headers=EXPOSED,
        max_age=PREFLIGHT_LIFETIME_S,
    )

    async def serve(scope: Scope, receive: Receive, send: Send) -> None:
        is_open = scope["type"] == "http" and scope["path"].startswith(PATHS)
        await (open_app if is_open else app)(scope, receive, send)

    return serve
