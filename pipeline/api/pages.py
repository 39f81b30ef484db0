"""What is not the API itself: the playground, the reference, readiness, metrics."""

from __future__ import annotations

from fastapi import APIRouter, Depends, Request
from fastapi.responses import HTMLResponse, JSONResponse, Response
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from pipeline.api.assets import answer_asset, read_asset
from pipeline.api.context import Context, context_of
from pipeline.api.problems import UNAUTHORIZED, UNAVAILABLE, documented
from pipeline.api.requests import check_operator
from pipeline.errors import ImageTo3DError
from pipeline.jobs.model import StoreMetrics

router = APIRouter(tags=["service"])

PLAYGROUND, REFERENCE = "playground", "reference"
"""The folders of the pages."""
NOTHING_ELSE = "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
POLICIES = {
    # Nothing from elsewhere, nothing inline but the one style sheet that model-viewer brings (its hash), no eval but
    # compiled WebAssembly, which decodes meshes. `blob:` is how previews and a model's textures are read.
    PLAYGROUND: NOTHING_ELSE + "script-src 'self' 'wasm-unsafe-eval'; "
    "style-src 'self' 'sha256-PXtZZkJMMyc18o/DN1ZEFOJ2qEGq95IQbVaJFMOXOb0='; "
    "img-src 'self' blob: data:; media-src 'self'; connect-src 'self' blob:",
    # `data:` is how Swagger UI's style sheet holds its signs.
    REFERENCE: NOTHING_ELSE + "script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'",
}
"""What each page may load, as its Content-Security-Policy."""
PAGE_HEADERS = {
    "cache-control": "no-cache",
    "cross-origin-opener-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}


# Plain functions, which run beside the event loop: a large file is compressed when it is first asked for.
@router.get("/", include_in_schema=False)
def playground() -> HTMLResponse:
    """The playground page."""
    return _page(PLAYGROUND)


@router.get("/docs", include_in_schema=False)
def reference() -> HTMLResponse:
    """The contract, to read and to try: Swagger UI from our own address, which works where no other can be reached."""
    return _page(REFERENCE)


@router.get("/playground/{name}", include_in_schema=False)
def playground_asset(name: str, request: Request) -> Response:
    """A file of the playground."""
    return answer_asset(PLAYGROUND, name, request)


@router.get("/docs/{name}", include_in_schema=False)
def reference_asset(name: str, request: Request) -> Response:
    """A file of the reference."""
    return answer_asset(REFERENCE, name, request)


def _page(folder: str) -> HTMLResponse:
    headers = {**PAGE_HEADERS, "content-security-policy": POLICIES[folder]}
    return HTMLResponse(read_asset(folder, "index.html").content, headers=headers)


@router.get("/health", responses={200: {"description": "The process answers."}})
async def health() -> JSONResponse:
    """Liveness; asks nothing of anybody."""
    return JSONResponse({"status": "ok"})


@router.get("/ready", responses={**documented(), UNAVAILABLE: {"description": "Why calls would not be taken."}})
async def ready(context: Context = Depends(context_of)) -> JSONResponse:
    """Whether calls are taken, with reasons; wakes no GPU."""
    reasons = []
    try:
        workers = await context.do(context.store.workers)
        if not workers:
            reasons.append("no worker is alive; calls wait in the queue")
        elif not any(worker.is_ready for worker in workers):
            reasons.append("no worker has room for a call; calls wait in the queue")
    except ImageTo3DError as error:
        return JSONResponse({"status": "unavailable", "reasons": [str(error)]}, UNAVAILABLE)
    return JSONResponse({"status": "ok", "reasons": reasons})


@router.get(
    "/metrics",
    responses={
        **documented(UNAUTHORIZED),
        200: {"content": {"text/plain": {}}, "description": "Prometheus metrics."},
    },
)
async def metrics(request: Request, context: Context = Depends(context_of)) -> Response:
    """Counters and gauges of the whole deployment in Prometheus' text form; for its operator alone."""
    check_operator(request, context.settings.metrics_token)
    found = await context.do(context.store.metrics)
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_StoreCollector(found))
    return Response(generate_latest(registry), media_type="text/plain; version=0.0.4; charset=utf-8")


class _StoreCollector(Collector):
    """What the store counted, as Prometheus' families."""

    def __init__(self, found: StoreMetrics) -> None:
        self._found = found

    def collect(self) -> list[Metric]:
        found = self._found
        submitted = CounterMetricFamily("image_to_3d_submits", "Calls accepted", value=found.submitted)
        gpu = CounterMetricFamily("image_to_3d_gpu_seconds", "Accelerator seconds", value=found.gpu_seconds)
        age = GaugeMetricFamily(
            "image_to_3d_oldest_queued_seconds", "Age of the call that waits longest", value=found.oldest_queued_s
        )
        ended = CounterMetricFamily("image_to_3d_ended", "Calls ended, by state", labels=["state"])
        for state, count in found.ended.items():
            ended.add_metric([state], count)
        states = GaugeMetricFamily("image_to_3d_calls", "Calls on record, by state", labels=["state"])
        for state, count in found.states.items():
            states.add_metric([state], count)
        stages = CounterMetricFamily("image_to_3d_stage_seconds", "Wall seconds, by stage", labels=["stage"])
        runs = CounterMetricFamily("image_to_3d_stage_runs", "Runs, by stage", labels=["stage"])
        for stage, seconds in found.stage_seconds.items():
            stages.add_metric([stage], seconds)
        for stage, count in found.stage_runs.items():
            runs.add_metric([stage], count)
        attempts = CounterMetricFamily("image_to_3d_task_attempts", "Attempts after calls", labels=["kind", "result"])
        for (kind, result), count in found.task_attempts.items():
            attempts.add_metric([kind, result], count)
        pending = GaugeMetricFamily("image_to_3d_tasks_pending", "Webhooks and uploads to do", labels=["kind"])
        for kind, count in found.tasks_pending.items():
            pending.add_metric([kind], count)
        return [submitted, gpu, age, ended, states, stages, runs, attempts, pending]
