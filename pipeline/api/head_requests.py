"""`HEAD` answers as `GET` does, without a body, on every path: uptime monitors and link checkers send it.

Source: RFC 9110 section 9.1, by which every server supports both.
"""

from __future__ import annotations

import anyio
from starlette.types import ASGIApp, Message, Receive, Scope, Send

OWN_ROUTES = "/files/"
"""Paths that begin so have routes for `HEAD`, which read no file."""


def with_head_as_get(app: ASGIApp) -> ASGIApp:
    """The application behind this rule. A stream of events ends at once: its client counts as disconnected."""

    async def serve(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "HEAD" or scope["path"].startswith(OWN_ROUTES):
            await app(scope, receive, send)
            return
        has_answered = anyio.Event()
        is_body_read = False

        async def receive_request() -> Message:
            nonlocal is_body_read
            if not is_body_read:
                message = await receive()
                is_body_read = not message.get("more_body", False)
                return message
            await has_answered.wait()
            return {"type": "http.disconnect"}

        async def send_head(message: Message) -> None:
            if message["type"] == "http.response.start":
                await send(message)
                await send({"type": "http.response.body", "body": b""})
                has_answered.set()

        await app({**scope, "method": "GET"}, receive_request, send_head)

    return serve
