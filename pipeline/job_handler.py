"""What every runtime shares around a job: `JobHandler` runs one, `clean` removes what jobs leave behind.

Used by the worker process (`pipeline.local`) and by the containers (`pipeline.on_modal`). Knows neither of them.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from pipeline.engines.base import ForegroundImage, Generation
from pipeline.errors import NotFound
from pipeline.imaging.decode_process import DecodeProcess
from pipeline.imaging.inline import at_most
from pipeline.imaging.rembg_remover import select_background_remover
from pipeline.jobs.model import ExportSource, Job, JobResult
from pipeline.jobs.outbox_dispatcher import OutboxDispatcher
from pipeline.jobs.store import JobStore
from pipeline.jobs.worker_loop import LeaseKeeper
from pipeline.net.deadline import IsCancelled
from pipeline.net.download import MAX_BYTES, fetch
from pipeline.run_job import GENERATION, Generate, load_generation, run_export, run_job
from pipeline.service import Service, generation_gone, kept_generations
from pipeline.stages.deliver import Delivery, SlowBuckets, deliver, upload_dispatcher
from pipeline.stages.intake import load_views
from pipeline.storage.base import CustomerBucket, OutputFile, StoredFile
from pipeline.storage.generations import KeptGenerations
from pipeline.storage.local import LocalStorage
from pipeline.storage.own_links import OwnLinks
from pipeline.storage.s3 import JOB_PATIENCE
from pipeline.storage.shared_work import SharedWork
from schemas.request import GenerationRequest
from schemas.text import request_model

STALE_FOLDER_S = 600.0
"""A work folder is kept for so long after its job's end or, if its job is unknown, after its last change."""


class JobHandler:
    """The work of a `QueueWorker`: one job through its four stages, into the caller's storage.

    Args:
        outputs: temporary storage, for files that no bucket takes.
        generate_for: returns the `generate` of `run_job` for a job and the engine that its request names. Raises
            nothing itself: an engine that is not offered is an error of `generate`.
        prepare: called with a job and its engine's name before its images are loaded, so that later stages can get
            ready.
        on_checkpoint: as for `run_job`.
        before_resuming: called before a job that may have files in its work folder from another machine.
        before_own_link: called before an image is read that an earlier job delivered, perhaps on another machine.
        on_kept: called when the generation is kept, before the end is written, for callers that must commit it.
        shared_work: where machines share checkpoints; None where `on_checkpoint` does all that is needed.
    """

    def __init__(
        self,
        service: Service,
        outputs: LocalStorage,
        generate_for: Callable[[Job, str | None], Generate],
        *,
        prepare: Callable[[Job, str | None], None] = lambda job, engine: None,
        on_checkpoint: Callable[[], None] = lambda: None,
        before_resuming: Callable[[], None] = lambda: None,
        before_own_link: Callable[[], None] = lambda: None,
        on_kept: Callable[[], None] = lambda: None,
        shared_work: SharedWork | None = None,
    ) -> None:
        self._service = service
        self._shared_work = shared_work
        self._outputs = outputs
        self._generate_for = generate_for
        self._prepare = prepare
        self._on_checkpoint = on_checkpoint
        self._before_resuming = before_resuming
        self._before_own_link = before_own_link
        self._on_kept = on_kept
        self._decoder = DecodeProcess()
        self._generations = kept_generations(service.settings)
        self._slow_buckets = SlowBuckets()
        self._remover = select_background_remover(service.settings.matting_model, service.settings.weights)

    def __call__(self, job: Job, lease: LeaseKeeper) -> JobResult:
        """Run a job; resumes after the last checkpoint of an earlier attempt.

        Raises:
            StoreUnavailable: the store did not answer in the middle of the job.
            Transferred: raised by `generate`, see `run_job`.
        """
        model = request_model(job.meta.parameters)
        request = model.model_validate_json(self._service.store.request_of(job.id))
        folder = folder_of(job, self._service.settings.work_dir)
        if job.attempts > 1 or job.progress.stage or job.meta.export_of is not None:
            self._before_resuming()
        if self._shared_work is not None:
            self._shared_work.restore(folder)
        if job.meta.export_of is not None:
            return run_export(
                request,
                file_prefix=job.file_prefix,
                work_dir=folder,
                load=partial(self._load_generation, job.meta.export_of),
                deliver=partial(self._deliver, job, request, lease.is_cancelled),
                on_progress=lease.report,
                is_cancelled=lease.is_cancelled,
                on_checkpoint=partial(self._share_checkpoint, folder),
            )
        return run_job(
            request,
            file_prefix=job.file_prefix,
            work_dir=folder,
            load_views=partial(self._load_views, job, lease.is_cancelled),
            generate=self._generate_for(job, request.engine),
            deliver=partial(self._deliver_and_keep, job, request, lease.is_cancelled),
            on_progress=lease.report,
            is_cancelled=lease.is_cancelled,
            on_checkpoint=partial(self._share_checkpoint, folder),
        )

    def _share_checkpoint(self, folder: Path) -> None:
        self._on_checkpoint()
        if self._shared_work is not None:
            self._shared_work.save(folder)

    def _load_generation(self, source: ExportSource) -> Generation:
        """The kept generation of an earlier job.

        Raises:
            GenerationGone: it is not kept any more.
        """
        kept = self._generations.find(source.file_prefix)
        if kept is None:
            raise generation_gone(source.job_id, self._service)
        return load_generation(kept)

    def _deliver_and_keep(
        self, job: Job, request: GenerationRequest, is_cancelled: IsCancelled, files: Sequence[OutputFile]
    ) -> Delivery:
        delivery = self._deliver(job, request, is_cancelled, files)
        folder = folder_of(job, self._service.settings.work_dir)
        self._generations.keep(job.file_prefix, folder / GENERATION)  # before the end is written: a kill loses neither
        self._on_kept()
        return delivery

    def _load_views(self, job: Job, is_cancelled: IsCancelled, request: GenerationRequest) -> list[ForegroundImage]:
        self._prepare(job, request.engine)
        decode = partial(self._decoder.decode, is_cancelled=is_cancelled)
        download = partial(self._download, is_cancelled)
        return load_views(request, fetch=download, decode=decode, remover=self._remover)

    def _download(self, is_cancelled: IsCancelled, url: str) -> bytes:
        """The image behind a URL; one that is stored here is read without the network."""
        links = OwnLinks(_Fresh(self._outputs, self._before_own_link), base_url=self._service.settings.base_url)
        own = links.read(url, most_bytes=MAX_BYTES + 1)
        if own is not None:
            return at_most(own)
        return fetch(url, policy=self._service.settings, is_cancelled=is_cancelled)

    def _deliver(
        self, job: Job, request: GenerationRequest, is_cancelled: IsCancelled, files: Sequence[OutputFile]
    ) -> Delivery:
        bucket: CustomerBucket | None = None
        if not request.temp:
            saved = self._service.bucket_of(job.api_key_id, patience=JOB_PATIENCE, is_cancelled=is_cancelled)
            bucket = saved and self._slow_buckets.watched(saved, bucket_id=saved.encrypted)
        temporary = self._outputs.for_job(created_at=job.created_at, lifetime_s=request.retention_s)
        return deliver(files, file_prefix=job.file_prefix, temporary=temporary, bucket=bucket)


@dataclass(frozen=True)
class _Fresh:
    """Temporary outputs, by their links, with a call before each look."""

    outputs: LocalStorage
    before: Callable[[], None]

    def open_file(self, token: str, name: str) -> StoredFile:
        self.before()
        return self.outputs.open_file(token, name)


def folder_of(job: Job, work_dir: Path) -> Path:
    """The folder of a job's checkpoints, from which the next attempt resumes."""
    return work_dir / f"{job.id}-{job.file_prefix}"


def late_uploads(service: Service, outputs: LocalStorage, *, is_cancelled: IsCancelled) -> OutboxDispatcher:
    """The late uploads of a service, from temporary storage to the buckets that are saved at the time.

    Args:
        is_cancelled: asked during an upload, which is then made again later.
    """
    bucket_of = partial(service.bucket_of, is_cancelled=is_cancelled)
    return upload_dispatcher(service.store, temporary=outputs, bucket_of=bucket_of)


def clean(
    store: JobStore,
    temporary: LocalStorage,
    work_dir: Path,
    *,
    generations: KeptGenerations | None = None,
    shared: SharedWork | None = None,
) -> None:
    """Delete outputs whose links have expired, expired records and requests, old generations, dead workers' folders.

    Several processes may clean at the same time.
    """
    if shared is not None:
        shared.clean(partial(_is_of_ended_job, store))
    temporary.clean()
    if generations is not None:
        generations.clean()
    for job in store.expired():
        temporary.delete(job.file_prefix)
        try:
            store.delete(job.id, api_key_id=None)
        except NotFound:  # another process has deleted it
            continue
    store.expire_requests()
    if not work_dir.is_dir():
        return
    folders = {folder: int(folder.name.split("-")[0]) for folder in work_dir.iterdir() if folder.name[:1].isdigit()}
    known = {folder_of(job, work_dir): job for job in store.get_many([*folders.values()])}
    for folder in folders:
        job = known.get(folder)
        # Of a deleted job nothing resumes, so it does not matter where a file system does not keep a folder's time.
        changed_s_ago = _age_s(folder) if job is None else time.time() - (job.finished_at or time.time())
        if changed_s_ago > STALE_FOLDER_S:
            shutil.rmtree(folder, ignore_errors=True)


def _is_of_ended_job(store: JobStore, folder: str, changed_at: float) -> bool:
    """Whether a folder of checkpoints belongs to no open job, and not to one that is just ending."""
    job_id = folder.partition("-")[0]
    if not job_id.isdigit() or time.time() - changed_at < STALE_FOLDER_S:
        return False
    return all(job.state.is_final for job in store.get_many([int(job_id)]))


def _age_s(path: Path) -> float:
    """Seconds since the last change; 0 for what is gone."""
    try:
        return time.time() - path.stat().st_mtime
    except FileNotFoundError:
        return 0.0
