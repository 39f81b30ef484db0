"""What is not the API itself: the playground, readiness, metrics."""

from __future__ import annotations

from importlib.resources import files

from fastapi import APIRouter, Depends, Request
from fastapi.responses import HTMLResponse, JSONResponse, Response
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from pipeline.api.context import Context, context_of
from pipeline.api.problems import UNAUTHORIZED, UNAVAILABLE, documented
from pipeline.api.requests import check_operator
from pipeline.errors import ImageTo3DError, NotFound
from pipeline.jobs.record import StoreMetrics

router = APIRouter(tags=["service"])

ASSETS = {"playground.js": "text/javascript", "playground.css": "text/css", "model-viewer.min.js": "text/javascript"}
CONTENT_SECURITY_POLICY = (
    "default-src 'self'; script-src 'self' 'wasm-unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob: https: http:; connect-src 'self' blob: data: https: http:; worker-src 'self' blob:; "
    "media-src 'self' blob: https: http:; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
)


@router.get("/", include_in_schema=False)
async def playground() -> HTMLResponse:
    """The playground page."""
    page = files("pipeline.api.playground").joinpath("index.html").read_text()
    return HTMLResponse(page, headers={"content-security-policy": CONTENT_SECURITY_POLICY})


@router.get("/playground/{name}", include_in_schema=False)
async def playground_asset(name: str) -> Response:
    """A file of the playground."""
    if name not in ASSETS:
        raise NotFound(f"There is nothing at /playground/{name[:100]}.")
    content = files("pipeline.api.playground").joinpath(name).read_bytes()
    return Response(content, media_type=ASSETS[name], headers={"cache-control": "public, max-age=3600"})


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
