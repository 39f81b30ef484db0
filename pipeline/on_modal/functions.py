"""The CPU containers: one call, webhooks until they arrive, and the cleaner. Each may be killed and run again."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import structlog

from pipeline.engines.base import ForegroundImage, Generation, GenerationOptions, OnStep, ignore_steps
from pipeline.job_handler import JobHandler, clean, folder_of, webhook_dispatcher
from pipeline.jobs.model import Job, JobState
from pipeline.jobs.store import Store
from pipeline.jobs.worker_loop import QueueWorker
from pipeline.on_modal.dispatch import Dispatcher
from pipeline.on_modal.engine_pool import RemoteEngines
from pipeline.on_modal.observability import start_observing
from pipeline.on_modal.prewarm import start_prewarm
from pipeline.run_job import Generate
from pipeline.service import local_outputs, open_service
from pipeline.settings import Settings
from pipeline.stages.deliver import retry_uploads

HEARTBEAT_INTERVAL_S = 2.0
"""Pause between two heartbeats of a call whose store is a network away."""
STAY_S = 120.0
"""A webhook that is due again so soon is waited for; later ones are the next round's."""
UPLOADS_FOR_S = 240.0
"""How long one round of the cleaner begins late uploads: buckets that hang must not keep it until it is killed."""

log = structlog.get_logger()


@dataclass(frozen=True)
class Shared:
    """What the containers of a deployment share.

    Attributes:
        settings: with the deployment's public address.
        commit_work: makes what was written under `settings.work_dir` last.
        commit_outputs: the same for `settings.files_dir`.
        dispatch: hands jobs over.
    """

    settings: Settings
    store: Store
    commit_work: Callable[[], None]
    commit_outputs: Callable[[], None]
    dispatch: Dispatcher


def run_job(
    job_id: int,
    shared: Shared,
    *,
    worker_id: str,
    engines: RemoteEngines,
    send_webhooks: Callable[[int], object],
) -> None:
    """Bring a job to its end: the whole of what a submit sets going. Run again, it goes on after the last kept stage.

    Args:
        worker_id: names the hand-over, the same when it is run again.
        engines: those of this call; one of them is woken while the picture is read.
        send_webhooks: told the id of a job that has ended and has a webhook.

    Raises:
        StoreUnavailable: the store was away before the job was taken.
    """
    settings, store = shared.settings, shared.store
    start_observing(settings.log_level, is_traced=settings.is_traced)
    outputs = local_outputs(settings, commit=shared.commit_outputs)
    service = open_service(settings, store=store, temporary=outputs)

    def after(job: Job) -> None:
        shutil.rmtree(folder_of(job, settings.work_dir), ignore_errors=True)
        shared.dispatch.forget(job.id)
        engines.forget(job.file_prefix)
        if job.webhook_url is not None:
            send_webhooks(job.id)
        shared.commit_work()

    def prepare(engine: str | None) -> None:
        engines.wake(engine)
        start_prewarm()

    def generate_for(job: Job, engine: str | None) -> Generate:
        def generate(
            views: Sequence[ForegroundImage], options: GenerationOptions, on_step: OnStep = ignore_steps
        ) -> Generation:
            restarts = store.restarts_requested()
            return engines.generator_for(engine, line=job.file_prefix, restarts=restarts)(views, options, on_step)

        return generate

    work = JobHandler(
        service,
        outputs,
        generate_for,
        prepare=prepare,
        on_checkpoint=lambda: _try(shared.commit_work),
    )
    worker = QueueWorker(
        store,
        work,
        worker_id=worker_id,
        on_end=after,
        engine=settings.engine,
        lease_s=settings.lease_s,
        heartbeat_interval_s=HEARTBEAT_INTERVAL_S,
    )
    job = worker.run_dispatched(job_id, threading.Event(), made_progress=shared.dispatch.made_progress)
    service.http.close()
    if job is None:
        return
    if any(left.state is JobState.QUEUED for left in store.get_many([job_id])):
        shared.dispatch(job_id)  # it was interrupted through no fault of its own
    elif any(key.id == job.api_key_id and key.limits.running is not None for key in store.list_keys()):
        shared.dispatch.dispatch_waiting(store, api_key_id=job.api_key_id, lost_after_s=0.0, limit=1)


def send_webhooks(settings: Settings, store: Store, *, job_id: int | None = None) -> int:
    """Send what is due, and stay while the webhook of one job is due again soon.

    Returns:
        How many attempts were made.
    """
    start_observing(settings.log_level, is_traced=settings.is_traced)
    service = open_service(settings, store=store)
    sender = webhook_dispatcher(service)
    attempts = sender.send_due()
    while job_id is not None and (pause_s := _due_in_s(store, job_id)) is not None and pause_s < STAY_S:
        time.sleep(pause_s)
        attempts += sender.send_due()
    service.http.close()
    return attempts


def _due_in_s(store: Store, job_id: int) -> float | None:
    """Seconds until a job's webhook is due, at least a little; None where there is nothing to send."""
    due = [
        task.next_attempt_at for task in store.tasks_of(job_id) if task.kind == "webhook" and task.state == "pending"
    ]
    return None if not due else max(0.5, min(due) - time.time())


def clean_up(shared: Shared) -> None:
    """One round of what keeps a deployment vacuum: old files, late uploads, jobs whose hand-over was lost."""
    settings, store = shared.settings, shared.store
    start_observing(settings.log_level, is_traced=settings.is_traced)
    outputs = local_outputs(settings, commit=shared.commit_outputs)
    service = open_service(settings, store=store, temporary=outputs)
    store.maintain(settings.work_dir / "copy")
    clean(store, outputs, settings.work_dir)
    shared.commit_work()
    handed_over = shared.dispatch.dispatch_waiting(store)  # before what waits for customers' servers
    retry_uploads(store, temporary=outputs, bucket_of=service.bucket_of, for_s=UPLOADS_FOR_S)
    service.http.close()
    log.info("cleaned", handed_over_again=handed_over)


def _try(commit: Callable[[], None]) -> None:
    """Make what a stage left last; without it a later attempt does the stage again, which is no reason to fail."""
    try:
        commit()
    except Exception:
        log.exception("kept results not committed")
