"""Everything beside the API itself: the playground, the reference, health, readiness, metrics."""

from __future__ import annotations

from fastapi import APIRouter, Depends, Request
from fastapi.responses import HTMLResponse, JSONResponse, Response
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from pipeline.api.assets import answer_asset, read_asset
from pipeline.api.context import Context, context_of
from pipeline.api.problems import OK, UNAUTHORIZED, UNAVAILABLE, documented
from pipeline.api.requests import check_operator
from pipeline.errors import ImageTo3DError
from pipeline.jobs.model import StoreMetrics

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
    "x-content-type-options": "nosniff",
}


# Plain functions, which FastAPI runs in threads: the first request for a large file compresses it.
@router.get("/", include_in_schema=False)
def playground() -> HTMLResponse:
    """The playground page."""
    return _page(PLAYGROUND)


@router.get("/docs", include_in_schema=False)
def reference() -> HTMLResponse:
    """The API reference: Swagger UI, served from here so that it works without access to the internet."""
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


@router.get("/health", responses={OK: {"description": "The process answers."}})
async def health() -> JSONResponse:
    """Liveness; reads nothing."""
    return JSONResponse({"status": "ok"})


@router.get("/ready", responses={**documented(), UNAVAILABLE: {"description": "Why jobs are not accepted."}})
async def ready(context: Context = Depends(context_of)) -> JSONResponse:
    """Whether jobs are accepted, with reasons; starts no GPU."""
    reasons: list[str] = []
    try:
        workers = await context.in_thread(context.store.workers)
        if not workers:
            reasons.append("no worker is running; jobs wait in the queue")
        elif not any(worker.is_ready for worker in workers):
            reasons.append("no worker is ready for a job; jobs wait in the queue")
        else:
            present = {engine for worker in workers if worker.is_ready for engine in worker.engines}
            lacking = [engine for engine in context.settings.offered_engines if engine not in present]
            reasons += [f"no worker has the engine {engine}; its jobs wait in the queue" for engine in lacking]
    except ImageTo3DError as error:
        return JSONResponse({"status": "unavailable", "reasons": [str(error)]}, UNAVAILABLE)
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
    check_operator(request, context.settings.metrics_token)
    counted = await context.in_thread(context.store.metrics)
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_StoreCollector(counted))
    return Response(generate_latest(registry), media_type="text/plain; version=0.0.4; charset=utf-8")


class _StoreCollector(Collector):
    """The store's counters as Prometheus metric families."""

    def __init__(self, counted: StoreMetrics) -> None:
        self._counted = counted

    def collect(self) -> list[Metric]:
        counted = self._counted
        submitted = CounterMetricFamily("image_to_3d_submits", "Jobs accepted", value=counted.submitted)
        gpu = CounterMetricFamily("image_to_3d_gpu_seconds", "Accelerator seconds", value=counted.gpu_seconds)
        age = GaugeMetricFamily(
            "image_to_3d_oldest_queued_seconds", "Age of the job that has waited longest", value=counted.oldest_queued_s
        )
        ended = CounterMetricFamily("image_to_3d_ended", "Jobs ended, by state", labels=["state"])
        for state, count in counted.ended.items():
            ended.add_metric([state], count)
        states = GaugeMetricFamily("image_to_3d_calls", "Jobs on record, by state", labels=["state"])
        for state, count in counted.states.items():
            states.add_metric([state], count)
        stages = CounterMetricFamily("image_to_3d_stage_seconds", "Wall seconds, by stage", labels=["stage"])
        runs = CounterMetricFamily("image_to_3d_stage_runs", "Runs, by stage", labels=["stage"])
        for stage, seconds in counted.stage_seconds.items():
            stages.add_metric([stage], seconds)
        for stage, count in counted.stage_runs.items():
            runs.add_metric([stage], count)
        attempts = CounterMetricFamily(
            "image_to_3d_task_attempts", "Attempts of webhooks and late uploads", labels=["kind", "result"]
        )
        for (kind, result), count in counted.task_attempts.items():
            attempts.add_metric([kind, result], count)
        pending = GaugeMetricFamily(
            "image_to_3d_tasks_pending", "Webhooks and late uploads that are pending", labels=["kind"]
        )
        for kind, count in counted.tasks_pending.items():
            pending.add_metric([kind], count)
        return [submitted, gpu, age, ended, states, stages, runs, attempts, pending]
