"""Jobs as the bodies that the contract promises, for fetch and webhook alike. Knows nothing of HTTP."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, overload

from pipeline.jobs.model import Job, JobState, OutboxTask, Timings
from pipeline.storage.base import Artifact, FileRole, role_of
from schemas.responses import FailedBody, FileEntry, ProcessingBody, SuccessBody

if TYPE_CHECKING:
    from pipeline.service import Service
    from pipeline.webhooks.sender import WebhookDispatcher

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
    ends = [artifact.expires_at for artifact in result.artifacts]
    times: dict[str, Any] = {
        "created_at": iso_time(job.created_at),
        "finished_at": iso_time(job.finished_at),
        "expires_at": iso_time(min((end for end in [job.expires_at, *ends] if end is not None), default=None)),
    }
    if result.state is not JobState.SUCCESS:
        return FailedBody(
            id=job.id,
            message=result.message or "The job failed.",
            track_id=job.track_id,
            error_code=result.error_code,
            retryable=result.retryable,
            webhook_status=webhook_status,
            **times,
            meta=meta,
        ).to_json()
    roles = [(artifact, role_of(artifact.kind, artifact.name)) for artifact in result.artifacts]
    # The turntable is the last of `output`.
    output = [artifact.url for artifact, role in roles if role.listed_in == "output" and role.kind != "turntable"]
    output += [artifact.url for artifact, role in roles if role.kind == "turntable"]
    return SuccessBody(
        warning=" ".join([*job.meta.notes, *result.all_warnings]),
        id=job.id,
        generationTime=round(result.seconds, 2),
        output=output,
        proxy_links=output,
        webhook_status=webhook_status,
        track_id=job.track_id,
        extra_assets=[artifact.url for artifact, role in roles if role.listed_in == "extra_assets"],
        files=[_file_entry(artifact, role) for artifact, role in roles],
        **times,
        meta=meta,
    ).to_json()


def _file_entry(artifact: Artifact, role: FileRole) -> FileEntry:
    return FileEntry(
        kind=role.kind,
        format=PurePath(artifact.name).suffix.removeprefix("."),
        url=artifact.url,
        content_type=artifact.content_type,
        bytes=artifact.size_bytes,
        faces=artifact.faces,
        expires_at=iso_time(artifact.expires_at),
    )


@overload
def iso_time(seconds: float) -> str: ...
@overload
def iso_time(seconds: None) -> None: ...
@overload
def iso_time(seconds: float | None) -> str | None: ...
def iso_time(seconds: float | None) -> str | None:
    """A time in seconds since 1970 as ISO 8601 in UTC, `2026-01-31T12:00:00.000Z`; None as None."""
    if seconds is None:
        return None
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


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
        created_at=iso_time(job.created_at),
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


def webhook_dispatcher(service: Service) -> WebhookDispatcher:
    """The sender of a service's webhooks; their body is the one that a fetch of the job returns."""

    def body_of(task: OutboxTask) -> bytes:
        return json.dumps(final_body(service.store.get(task.job_id, api_key_id=None))).encode()

    return service.webhook_dispatcher(body_of)
