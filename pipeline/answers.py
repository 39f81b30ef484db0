"""Jobs as the bodies that the contract promises, for fetch and webhook alike. Knows nothing of HTTP."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from pipeline.jobs.model import Job, JobState, OutboxTask, Timings
from schemas.responses import FailedBody, ProcessingBody, SuccessBody

DEFAULT_JOB_S = 20.0
"""The expected seconds of a job where none has succeeded yet."""


def final_body(job: Job, *, webhook_status: str = "") -> dict[str, Any]:
    """The body about a job that has ended, from fetch and in the webhook.

    Raises:
        ValueError: it has not ended.
    """
    result = job.result
    if result is None:
        raise ValueError(f"job {job.id} has not ended")
    meta = {**job.meta.parameters, **result.meta}
    if result.state is not JobState.SUCCESS:
        return FailedBody(
            id=job.id,
            message=result.message or "The job failed.",
            track_id=job.track_id,
            error_code=result.error_code,
            retryable=result.retryable,
            webhook_status=webhook_status,
            meta=meta,
        ).to_json()
    output = [artifact.url for artifact in result.artifacts if artifact.kind in ("model", "companion")]
    output += [artifact.url for artifact in result.artifacts if artifact.kind == "turntable"]
    extra = [artifact.url for artifact in result.artifacts if artifact.kind in ("extra", "thumbnail")]
    return SuccessBody(
        warning=" ".join([*job.meta.notes, *result.all_warnings]),
        id=job.id,
        generationTime=round(result.seconds, 2),
        output=output,
        proxy_links=output,
        webhook_status=webhook_status,
        track_id=job.track_id,
        extra_assets=extra,
        meta=meta,
    ).to_json()


def processing_body(
    job: Job, *, queue_position: int, timings: Timings, workers: int, fetch_result: str, future_links: Sequence[str]
) -> dict[str, Any]:
    """The body about a job that is queued or running."""
    message = f"The job is number {queue_position} in the queue." if queue_position else "The job is running."
    if job.progress.stage:
        message = f"The job is at stage {job.progress.stage}, {job.progress.percent} %."
    return ProcessingBody(
        eta=eta_s(job, queue_position=queue_position, timings=timings, workers=workers),
        message=message,
        fetch_result=fetch_result,
        id=job.id,
        meta=dict(job.meta.parameters),
        future_links=list(future_links),
        track_id=job.track_id,
        warning=" ".join(job.meta.notes),
        progress=job.progress.percent,
        stage=job.progress.stage or ("running" if job.state is JobState.RUNNING else "queued"),
        queue_position=queue_position,
    ).to_json()


def eta_s(job: Job, *, queue_position: int, timings: Timings, workers: int) -> int:
    """Whole seconds until a job ends, at least 1, estimated from recent jobs."""
    mean_s = timings.seconds if timings.calls else DEFAULT_JOB_S
    left_s = mean_s * (1 - job.progress.percent / 100)
    return max(1, math.ceil(left_s + mean_s * max(0, queue_position - 1) / max(1, workers)))


def webhook_status(tasks: Sequence[OutboxTask]) -> str:
    """The state of a job's webhook in a few words; "" without one."""
    task = next((task for task in reversed(tasks) if task.kind == "webhook"), None)
    if task is None:
        return ""
    last = f"answered {task.last_status}" if task.last_status is not None else task.last_error
    if task.state == "done":
        return f"delivered ({last})" if last else "delivered"
    if task.state == "given_up" and task.last_status == 410:
        return f"given up: {task.last_error}"
    if task.state == "given_up":
        return f"given up after {task.attempts} attempts ({last})"
    return f"pending after {task.attempts} attempts ({last})" if task.attempts else "pending"
