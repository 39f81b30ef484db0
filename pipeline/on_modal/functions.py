"""What the CPU containers with numpy run: one job, and the cleaner. Each may be killed and run again."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import replace

import structlog

from pipeline.job_handler import JobHandler, clean, folder_of
from pipeline.jobs.model import Job, JobResult, JobState
from pipeline.jobs.transfer import Transferred
from pipeline.jobs.transitions import CANCELLED
from pipeline.jobs.worker_loop import LeaseKeeper, QueueWorker, WorkerOptions
from pipeline.on_modal.deployment import Deployment
from pipeline.on_modal.engine_pool import EnginePool
from pipeline.on_modal.one_shot import delete_old_folders
from pipeline.on_modal.prewarm import start_prewarm
from pipeline.service import kept_generations
from pipeline.stages.deliver import retry_uploads

HEARTBEAT_INTERVAL_S = 5.0
"""Pause between two heartbeats of a job whose store is reached over the network: also the delay of a cancellation while
a container works on the job. All jobs write to one entry, so that a write costs the others a read and often a try."""
LIMITS_AGE_S = 5.0
"""How old the limits of a key may be where they tell whether the end of a job lets another one of the key begin: the
cleaner finds that one too."""
UPLOADS_FOR_S = 240.0
"""For how long one run of the cleaner starts late uploads, so that slow buckets do not fill its whole time limit."""

BACKUP_FOLDER = "backup"

log = structlog.get_logger()


def run_job(
    job_id: int,
    deployment: Deployment,
    *,
    announced: str = "",
    worker_id: str,
    engines: EnginePool,
    send_webhooks: Callable[[int], object],
) -> None:
    """Run a dispatched job as far as it goes without waiting: to the start of its generation, or to its end.

    It may be dispatched at any time and by anyone. It resumes from the last checkpoint that is there, takes the answer
    of the generation where that is there, and transfers the job where it is not.

    No stage waits for a commit of its checkpoint but the one before the transfer: the GPU's result can be asked for
    again by its call, and the platform commits in the background every few seconds: also the deletion of a checkpoint.
    Outputs are committed before the end of the job is written.

    Args:
        announced: the call of the generation that has announced its answer; "" if another one dispatches.
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
        if job.state is JobState.SUCCESS:
            engines.forget(job.file_prefix, was_asked_to_stop=job.is_cancel_requested)
        else:
            engines.abandon(job.file_prefix)
        if job.webhook_url is not None:
            send_webhooks(job.id)

    def start_containers(job: Job, engine: str | None) -> None:
        engines.wake(engine, channel=job.file_prefix, is_first_run=_is_first_run(job))
        start_prewarm()

    handler = JobHandler(
        service,
        outputs,
        lambda job, engine: engines.client(
            engine,
            channel=job.file_prefix,
            restarts_requested=store.restarts_requested,
            job_id=job.id,
            announced=announced,
            is_first_run=_is_first_run(job),
        ),
        prepare=start_containers,
        before_resuming=deployment.reload_work,
        before_own_link=deployment.reload_outputs,
        on_kept=lambda: _best_effort_commit(deployment.commit_work),
    )

    def work(job: Job, lease: LeaseKeeper) -> JobResult:
        if lease.is_cancel_requested:
            gpu_seconds = engines.stop(job.file_prefix)
            return replace(CANCELLED, engine=job.engine or settings.engine, gpu_seconds=gpu_seconds)
        try:
            return handler(job, lease)
        except Transferred:
            _best_effort_commit(deployment.commit_work)  # the next run begins with what intake found
            raise

    worker = QueueWorker(
        store,
        work,
        WorkerOptions(
            worker_id=worker_id,
            engine=",".join(settings.offered_engines),
            lease_s=settings.lease_s,
            heartbeat_interval_s=HEARTBEAT_INTERVAL_S,
            is_registered=False,
            writes_stages_at_once=False,
        ),
        on_end=clean_up_after,
    )
    job = worker.run_dispatched(job_id, threading.Event(), made_progress=deployment.dispatch.made_progress)
    service.http.close()
    if job is None:
        for known in store.get_many([job_id]):
            if known.state.is_final:  # given up, or cancelled: its last attempt left a generation behind
                engines.abandon(known.file_prefix)
    elif job.state is JobState.QUEUED:
        deployment.dispatch(job_id)  # it was requeued through no fault of its own
    elif job.state.is_final and store.get_key(job.api_key_id, max_age_s=LIMITS_AGE_S).limits.running is not None:
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
    delete_old_folders(settings.work_dir, now=time.time())
    deployment.commit_work()
    dispatched_again = deployment.waiting.watch(store)
    dispatched_again += deployment.dispatch.dispatch_waiting(store)  # before anything that waits for customers' servers
    retry_uploads(store, temporary=outputs, bucket_of=service.bucket_of, for_s=UPLOADS_FOR_S)
    service.http.close()
    log.info("cleaned", dispatched_again=dispatched_again)


def _is_first_run(job: Job) -> bool:
    """Whether no generation of a job can have been started: no process has had it before."""
    return job.attempts == 1 and not job.progress.stage


def _best_effort_commit(commit: Callable[[], None]) -> None:
    """Commit what no answer depends on: a generation kept for exports, what intake found."""
    try:
        commit()
    except Exception:
        log.exception("work folder not committed")
