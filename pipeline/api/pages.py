"""Everything beside the API itself: the playground, the reference, health, readiness, metrics."""

from __future__ import annotations

from html import escape
from urllib.parse import urlsplit

from fastapi import APIRouter, Depends, Request
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response

from pipeline.api.assets import answer_asset, read_asset
from pipeline.api.context import Context, context_in, context_of
from pipeline.api.llms import llms_text
from pipeline.api.metrics import metrics_text
from pipeline.api.problems import OK, UNAUTHORIZED, UNAVAILABLE, documented
from pipeline.api.requests import check_operator
from pipeline.errors import ImageTo3DError

router = APIRouter(tags=["service"])

PLAYGROUND, REFERENCE = "playground", "reference"
"""The pages' folders."""
DENY_BY_DEFAULT = "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
POLICIES = {
    # No other origin. The only inline style is the one of model-viewer (by its hash), and the only eval is compiled
    # WebAssembly, which decodes meshes. Previews and a model's textures are `blob:` URLs.
    PLAYGROUND: DENY_BY_DEFAULT + "script-src 'self' 'wasm-unsafe-eval'; "
    "style-src 'self' 'sha256-PXtZZkJMMyc18o/DN1ZEFOJ2qEGq95IQbVaJFMOXOb0='; "
    "img-src 'self' blob: data:; media-src 'self'; connect-src 'self' blob:",
    # Swagger UI's style sheet has its icons as `data:` URLs.
    REFERENCE: DENY_BY_DEFAULT + "script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'",
}
"""Each page's Content-Security-Policy."""
PAGE_HEADERS = {
    "cache-control": "no-cache",
    "cross-origin-opener-policy": "same-origin",
    "referrer-policy": "no-referrer",
}


# Plain functions, which FastAPI runs in threads: the first request for a large file compresses it.
@router.get("/", include_in_schema=False)
def playground(request: Request) -> HTMLResponse:
    """The playground page."""
    return _page(PLAYGROUND, request)


@router.get("/docs", include_in_schema=False)
def reference(request: Request) -> HTMLResponse:
    """The API reference: Swagger UI, served from here so that it works without access to the internet."""
    return _page(REFERENCE, request)


@router.get("/llms.txt", include_in_schema=False)
def llms(request: Request) -> PlainTextResponse:
    """The service in a text for programs that read text."""
    return PlainTextResponse(llms_text(request.app.openapi(), base_url=context_in(request).base_url(request)))


@router.get("/playground/{name}", include_in_schema=False)
def playground_asset(name: str, request: Request) -> Response:
    """A file of the playground."""
    return answer_asset(PLAYGROUND, name, request)


@router.get("/docs/{name}", include_in_schema=False)
def reference_asset(name: str, request: Request) -> Response:
    """A file of the reference."""
    return answer_asset(REFERENCE, name, request)


def _page(folder: str, request: Request) -> HTMLResponse:
    """A page; its links begin with the path that a proxy may serve the whole service below."""
    path = urlsplit(context_in(request).base_url(request)).path.rstrip("/")
    content = read_asset(folder, "index.html").content.replace(b'="/', f'="{escape(path)}/'.encode())
    headers = {**PAGE_HEADERS, "content-security-policy": POLICIES[folder]}
    return HTMLResponse(content, headers=headers)


@router.get("/health", responses={OK: {"description": "The process answers."}})
async def health() -> JSONResponse:
    """Liveness; reads nothing."""
    return JSONResponse({"status": "ok"})


@router.get("/ready", responses={**documented(), UNAVAILABLE: {"description": "Why no job would run."}})
async def ready(context: Context = Depends(context_of)) -> JSONResponse:
    """Whether a job would run now, with reasons if not; starts no GPU.

    Submits are accepted and queued without a worker too. Where workers start on demand, none is needed to be ready.
    """
    reasons: list[str] = []
    try:
        workers = await context.in_thread(context.store.workers)
    except ImageTo3DError as error:
        return JSONResponse({"status": "unavailable", "reasons": [str(error)]}, UNAVAILABLE)
    if not any(worker.is_ready for worker in workers):
        problem = "no worker is ready for a job" if workers else "no worker is running"
        reasons.append(f"{problem}; jobs wait in the queue")
    if reasons and not context.service.starts_workers_on_demand:
        return JSONResponse({"status": "unavailable", "reasons": reasons}, UNAVAILABLE)
    if not context.service.starts_workers_on_demand:
        present = {engine for worker in workers if worker.is_ready for engine in worker.engines}
        lacking = [engine for engine in context.settings.offered_engines if engine not in present]
        reasons += [f"no worker has the engine {engine}; its jobs wait in the queue" for engine in lacking]
    return JSONResponse({"status": "ok", "reasons": reasons})


@router.get(
    "/metrics",
    responses={
        **documented(UNAUTHORIZED),
        OK: {"content": {"text/plain": {}}, "description": "Prometheus metrics."},
    },
)
async def metrics(request: Request, context: Context = Depends(context_of)) -> Response:
    """Counters and gauges of the whole deployment in Prometheus' text format, for its operator."""
    check_operator(request, context.settings)
    counted = await context.in_thread(context.store.metrics)
    workers = await context.in_thread(context.store.workers)
    settings = context.settings
    text = await context.in_thread(
        metrics_text,
        counted,
        workers,
        context.refusals.counts,
        engines=settings.offered_engines,
        data_dir=settings.data_dir,
    )
    return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")
