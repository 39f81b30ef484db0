"""A span for each request: its method, route and status. Of the caller's input it contains only the parent trace."""

from __future__ import annotations

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pipeline.telemetry import TRACEPARENT, span

METHODS = frozenset({"DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT"})
UNKNOWN = "_OTHER"


def traced(app: ASGIApp) -> ASGIApp:
    """The application with a span around each request.

    The span is named after the route, never the path: the path of a file grants access to it.
    Source: OpenTelemetry semantic conventions 1.40, HTTP server spans.
    """

    async def serve(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await app(scope, receive, send)
            return
        method = scope["method"] if scope["method"] in METHODS else UNKNOWN
        parent = Headers(scope=scope).get(TRACEPARENT)
        with span(method, {"http.request.method": method}, kind="server", parent=parent) as note:

            async def send_and_note(message: Message) -> None:
                if message["type"] == "http.response.start":
                    route = getattr(scope.get("route"), "path", "")
                    note({"http.response.status_code": message["status"], "http.route": route})
                await send(message)

            await app(scope, receive, send_and_note)

    return serve
