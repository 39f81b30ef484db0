"""What the CPU containers with numpy run: one job, and the cleaner. Each may be killed and run again."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable

import structlog

from pipeline.job_handler import JobHandler, clean, folder_of
from pipeline.jobs.model import Job, JobState
from pipeline.jobs.worker_loop import QueueWorker, WorkerOptions
from pipeline.on_modal.deployment import Deployment
from pipeline.on_modal.engine_pool import EnginePool
from pipeline.on_modal.prewarm import start_prewarm
from pipeline.service import kept_generations
from pipeline.stages.deliver import retry_uploads

HEARTBEAT_INTERVAL_S = 2.0
"""Pause between two heartbeats of a job whose store is reached over the network."""
UPLOADS_FOR_S = 240.0
"""For how long one run of the cleaner starts late uploads, so that slow buckets do not fill its whole time limit."""

BACKUP_FOLDER = "backup"

log = structlog.get_logger()


def run_job(
    job_id: int,
    deployment: Deployment,
    *,
    worker_id: str,
    engines: EnginePool,
    send_webhooks: Callable[[int], object],
) -> None:
    """Run a dispatched job to its end. Run again, it resumes from the last checkpoint.

    Args:
        worker_id: identifies the dispatch; the same when the input is run again.
        engines: those of this job; a container of one of them starts during intake.
        send_webhooks: called with the id of a job that has ended and has a webhook.

    Raises:
        StoreUnavailable: the store could not be reached before the job was claimed.
    """
    settings, store = deployment.settings, deployment.store
    service, outputs = deployment.open_service()

    def clean_up_after(job: Job) -> None:
        shutil.rmtree(folder_of(job, settings.work_dir), ignore_errors=True)
        deployment.dispatch.forget(job.id)
        engines.forget(job.file_prefix)
        if job.webhook_url is not None:
            send_webhooks(job.id)
        deployment.commit_work()

    def start_containers(engine: str | None) -> None:
        engines.wake(engine)
        start_prewarm()

    handler = JobHandler(
        service,
        outputs,
        lambda job, engine: engines.client(
            engine, channel=job.file_prefix, restarts_requested=store.restarts_requested
        ),
        prepare=start_containers,
        on_checkpoint=lambda: _commit_checkpoint(deployment.commit_work),
    )
    worker = QueueWorker(
        store,
        handler,
        WorkerOptions(
            worker_id=worker_id,
            engine=",".join(settings.offered_engines),
            lease_s=settings.lease_s,
            heartbeat_interval_s=HEARTBEAT_INTERVAL_S,
            is_registered=False,
        ),
        on_end=clean_up_after,
    )
    job = worker.run_dispatched(job_id, threading.Event(), made_progress=deployment.dispatch.made_progress)
    service.http.close()
    if job is None:
        return
    if any(known.state is JobState.QUEUED for known in store.get_many([job_id])):
        deployment.dispatch(job_id)  # it was requeued through no fault of its own
    elif any(key.id == job.api_key_id and key.limits.running is not None for key in store.list_keys()):
        deployment.dispatch.dispatch_waiting(store, api_key_id=job.api_key_id, lost_after_s=0.0, limit=1)


def clean_up(deployment: Deployment, *, commit_backup: Callable[[], None] = lambda: None) -> None:
    """Run the cleaner once: maintain the store, delete expired files, dispatch lost jobs, retry late uploads.

    Args:
        commit_backup: commits what was written under `BACKUP_FOLDER` of the data folder.
    """
    settings, store = deployment.settings, deployment.store
    service, outputs = deployment.open_service()
    store.maintain(settings.data_dir / BACKUP_FOLDER)
    commit_backup()
    clean(store, outputs, settings.work_dir, generations=kept_generations(settings))
    deployment.commit_work()
    dispatched_again = deployment.dispatch.dispatch_waiting(store)  # before anything that waits for customers' servers
    retry_uploads(store, temporary=outputs, bucket_of=service.bucket_of, for_s=UPLOADS_FOR_S)
    service.http.close()
    log.info("cleaned", dispatched_again=dispatched_again)


def _commit_checkpoint(commit: Callable[[], None]) -> None:
    """Commit a stage's checkpoint; a failure is only logged, since a later attempt can run the stage again."""
    try:
        commit()
    except Exception:
        log.exception("checkpoint not committed")
