"""The ASGI application: `create_app` is all that a server needs."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from fastapi import FastAPI, Security
from fastapi.security import APIKeyHeader, HTTPBearer
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pipeline.api import (
    account,
    document,
    engines,
    estimates,
    events,
    exports,
    files,
    pages,
    problems,
    routes,
    sample_asset,
    tokens,
    uploads,
)
from pipeline.api.context import Context
from pipeline.api.cors import with_cors
from pipeline.api.head_limits import with_head_limits
from pipeline.api.head_requests import with_head_as_get
from pipeline.api.problems import OK
from pipeline.api.request_target import with_plain_targets
from pipeline.api.tracing import traced
from pipeline.service import Service, open_service
from pipeline.settings import Settings
from pipeline.version import __version__

DESCRIPTION = f"""Turns an image into a textured 3D asset. The HTTP bodies are those that ModelsLab documents for \
its Image to 3D API: clients work here after changing host and key.

Every refused request and every failed job has an `error_code`. Where `retryable` is yes, the same request may \
succeed when it is sent again; where it is sometimes, the body of the failed job says so.

{problems.error_codes_as_markdown()}
"""
KEY_PLACES = [
    Security(APIKeyHeader(name="key", scheme_name="key", description="or `key` in the body", auto_error=False)),
    Security(HTTPBearer(scheme_name="bearer", description="the same key", auto_error=False)),
]
"""Where a key may be sent, for the OpenAPI document alone: the routes read it with `requests.presented_key`."""
HEALTHY = b'{"status":"ok"}'


def create_app(settings: Settings, *, service: Service | None = None) -> ASGIApp:
    """The application of one deployment.

    Args:
        service: the live parts; opened from the settings by default, and closed with the application.

    Raises:
        StoreUnavailable: the database does not answer.
    """
    opened = service or open_service(settings)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncGenerator[None]:
        yield
        if service is None:
            opened.close()

    app = FastAPI(
        title="image-to-3d",
        version=__version__,
        description=DESCRIPTION,
        lifespan=lifespan,
        redirect_slashes=False,  # `with_plain_targets` makes both answer
        openapi_tags=document.TAGS,
        generate_unique_id_function=lambda route: route.name,
        # FastAPI's own pages load their scripts from a CDN; `pages` serves /docs.
        docs_url=None,
        redoc_url=None,
        # FastAPI's own spans contain paths, and the path of a file grants access to it; `traced` writes ours.
        telemetry={"tracing": False},
    )
    app.state.context = Context(opened)
    problems.install(app, errors_as_200=settings.errors_as_200)
    for module in (routes, events, exports, estimates, account, uploads, tokens):
        app.include_router(module.router, dependencies=KEY_PLACES)
    for module in (engines, files, sample_asset, pages):
        app.include_router(module.router)
    document.install(app, public_url=settings.public_url)
    served = _health_first(traced(app) if settings.is_traced else app)
    if settings.cors_origins:
        served = with_cors(served, settings.cors_origins)
    return _without_sniffing(with_head_limits(with_plain_targets(with_head_as_get(served))))


def _without_sniffing(app: ASGIApp) -> ASGIApp:
    """Add to every answer the header that keeps browsers from taking it for another type than it says."""

    async def serve(scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_header(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["x-content-type-options"] = "nosniff"
            await send(message)

        await app(scope, receive, send_with_header)

    return serve


def _health_first(app: ASGIApp) -> ASGIApp:
    """Answer `GET /health` before all other processing: probes are frequent and must never wait."""
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(HEALTHY)).encode())]

    async def serve(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] == "/health" and scope["method"] == "GET":
            await send({"type": "http.response.start", "status": OK, "headers": headers})
            await send({"type": "http.response.body", "body": HEALTHY})
            return
        await app(scope, receive, send)

    return serve
