"""A worker process: takes calls from the store and runs them; beside that it sends webhooks and cleans up.

Wiring alone: the loop is `pipeline.jobs.queue`, the call `pipeline.call`, the webhooks `pipeline.notify`. Several
workers run side by side without knowing of each other; each may be killed at any moment.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import shutil
import socket
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import structlog

from pipeline.api.bodies import final_body
from pipeline.call import CallOutcome, Generate, run_call
from pipeline.children import call_when_orphaned, stop_on_signals
from pipeline.deliver import Delivery, deliver, retry_uploads
from pipeline.engines.base import View
from pipeline.errors import ImageTo3DError, NotFound, StoreUnavailable
from pipeline.generate import LocalEngines
from pipeline.imaging.rembg_matter import choose_matter
from pipeline.intake import take_in
from pipeline.jobs.queue import QueueWorker, Watch, Worked
from pipeline.jobs.record import AfterTask, Ending, Job, JobState
from pipeline.jobs.store import JobStore
from pipeline.net.egress import fetch
from pipeline.notify import WebhookCourier
from pipeline.service import Service, local_outputs, open_service
from pipeline.settings import Settings
from pipeline.storage.base import OutputFile
from pipeline.storage.local import LocalStorage
from pipeline.telemetry import configure_logging, start_tracing
from schemas.request import ImageTo3DRequest

CLEAN_EVERY_S = 60.0
UPLOAD_EVERY_S = 5.0
STALE_FOLDER_S = 600.0
"""A call's folder is left alone for so long after its last change, whatever the store says."""
MIN_FREE_BYTES = 64 << 20
"""With less room no call is taken: it could not keep its files, and would fail, and after it the whole queue."""
EX_SOFTWARE = 70

log = structlog.get_logger()


class CallWork:
    """The work of a `QueueWorker`: one call through its five stages, into the caller's storage.

    Args:
        outputs: where files go that no bucket takes.
        generate_for: the engine that a request names, as the call's `generate`; errors of finding it are the call's.
        prepare: told when a call is about to take its pictures in, so that what comes after can get ready.
        on_kept: as for `run_call`.
    """

    def __init__(
        self,
        service: Service,
        outputs: LocalStorage,
        generate_for: Callable[[Job, str | None], Generate],
        *,
        prepare: Callable[[str | None], None] = lambda engine: None,
        on_kept: Callable[[], None] = lambda: None,
    ) -> None:
        self._service = service
        self._outputs = outputs
        self._generate_for = generate_for
        self._prepare = prepare
        self._on_kept = on_kept
        self._matter = choose_matter(service.settings.matting_model, service.settings.weights)

    def __call__(self, job: Job, watch: Watch) -> Worked:
        """Run a job's call; goes on after the last stage that an earlier attempt finished.

        Raises:
            StoreUnavailable: the store was away in the middle of the call.
        """
        here = self._service
        request = ImageTo3DRequest.model_validate_json(here.store.request_of(job.id))

        def bring_out(files: Sequence[OutputFile]) -> Delivery:
            bucket = None if request.temp else here.bucket_of(job.key_id)
            temporary = self._outputs.for_call(created_at=job.created_at)
            return deliver(files, file_prefix=job.file_prefix, temporary=temporary, bucket=bucket)

        def bring_in(request: ImageTo3DRequest) -> list[View]:
            self._prepare(request.engine)
            return take_in(request, fetch=lambda url: fetch(url, here.settings), matter=self._matter)

        outcome = run_call(
            request,
            file_prefix=job.file_prefix,
            work_dir=folder_of(job, here.settings.work_dir),
            take_in=bring_in,
            generate=lambda views, options, on_step: self._generate_for(job, request.engine)(views, options, on_step),
            deliver=bring_out,
            notify=lambda _: None,  # the webhook leaves the outbox, where the final state puts it
            on_progress=watch.report,
            is_cancelled=watch.is_cancelled,
            on_kept=self._on_kept,
        )
        if outcome.error_code == StoreUnavailable.code:
            raise StoreUnavailable(outcome.message)
        upload_for_s = here.settings.output_lifetime_s if outcome.is_upload_pending else None
        return Worked(ending_of(outcome), upload_for_s=upload_for_s)


def ending_of(outcome: CallOutcome) -> Ending:
    """What the store keeps of how a call ended."""
    return Ending(
        state=JobState(outcome.state),  # type: ignore[arg-type]  # the three final states, by name
        message=outcome.message,
        error_code=outcome.error_code,
        retryable=outcome.retryable,
        warnings=outcome.warnings,
        artifacts=tuple(asdict(artifact) for artifact in outcome.artifacts),
        stage_seconds=outcome.stage_seconds,
        gpu_seconds=outcome.gpu_seconds,
        engine=outcome.engine,
        meta=outcome.meta,
    )


def folder_of(job: Job, work_dir: Path) -> Path:
    """Where a job's finished stages leave what the next attempt goes on from."""
    return work_dir / f"{job.id}-{job.file_prefix}"


def courier(service: Service) -> WebhookCourier:
    """The sender of a service's webhooks, which say what a fetch of their call says."""

    def body_of(task: AfterTask) -> bytes:
        return json.dumps(final_body(service.store.get(task.job_id, key_id=None))).encode()

    return service.courier(body_of)


def clean(store: JobStore, temporary: LocalStorage, work_dir: Path) -> None:
    """Remove outputs that no link opens any more, records whose time is over, and what dead workers left.

    Several processes may clean at the same time.
    """
    temporary.clean()
    for job in store.expired():
        temporary.delete(job.file_prefix)
        try:
            store.delete(job.id, key_id=None)
        except NotFound:  # another process was quicker
            continue
    if not work_dir.is_dir():
        return
    folders = {folder: int(folder.name.split("-")[0]) for folder in work_dir.iterdir() if folder.name[:1].isdigit()}
    running = {folder_of(job, work_dir) for job in store.get_many([*folders.values()]) if not job.state.is_final}
    for folder in folders.keys() - running:
        if _age_s(folder) > STALE_FOLDER_S:
            shutil.rmtree(folder, ignore_errors=True)


def _age_s(path: Path) -> float:
    """Seconds since the last change; 0 for what is gone."""
    try:
        return time.time() - path.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def has_room(folder: Path) -> bool:
    """Whether the disk that a folder is on has room for the files of a call."""
    try:
        free_bytes = shutil.disk_usage(folder).free
    except FileNotFoundError:
        return True  # it is made by the first call
    return free_bytes >= MIN_FREE_BYTES


def repeat(duty: Callable[[], object], *, every_s: float, stop: threading.Event) -> None:
    """Do something again and again until told to stop; what it raises is logged, and it is tried again."""
    while not stop.wait(every_s):
        try:
            duty()
        except ImageTo3DError as error:
            log.warning("duty put off", duty=getattr(duty, "__name__", ""), reason=str(error))
        except Exception:
            log.exception("duty failed")


def run_worker(settings: Settings, *, worker_id: str, stop: threading.Event) -> None:
    """Work until told to stop, or until a restart is wished for.

    Raises:
        StoreUnavailable: the database is away at the start.
    """
    outputs = local_outputs(settings)
    here = open_service(settings, temporary=outputs)
    engines = LocalEngines(settings.engine, weights=settings.weights, arguments=settings.engine_arguments)
    is_over = threading.Event()

    def retry() -> None:
        retry_uploads(here.store, temporary=outputs, bucket_of=here.bucket_of)

    def clean_up() -> None:
        clean(here.store, outputs, settings.work_dir)

    duties = [
        threading.Thread(target=courier(here).run, args=(is_over,), name="webhooks"),
        threading.Thread(target=repeat, args=(retry,), kwargs={"every_s": UPLOAD_EVERY_S, "stop": is_over}),
        threading.Thread(target=repeat, args=(clean_up,), kwargs={"every_s": CLEAN_EVERY_S, "stop": is_over}),
    ]
    for duty in duties:
        duty.start()
    worker = QueueWorker(
        here.store,
        CallWork(here, outputs, lambda job, engine: engines.generator_for(engine)),
        worker_id=worker_id,
        on_end=lambda job: shutil.rmtree(folder_of(job, settings.work_dir), ignore_errors=True),
        engine=settings.engine,
        lease_s=settings.lease_s,
        stop_grace_s=settings.stop_grace_s,
        timeout_s=settings.call_timeout_s,
        on_timeout=lambda: os._exit(EX_SOFTWARE),
        is_able=lambda: has_room(settings.data_dir),
    )
    try:
        worker.run(stop)
    finally:
        is_over.set()
        for duty in duties:
            duty.join()
        here.close()


def main(argv: list[str] | None = None) -> None:
    """Entry point of `python -m pipeline.worker`."""
    parser = argparse.ArgumentParser(prog="python -m pipeline.worker", description=__doc__)
    parser.add_argument("--data", type=Path, help="folder of the deployment's data")
    parser.add_argument("--host", help="where the web process listens, for the URLs of files")
    parser.add_argument("--port", type=int)
    parser.add_argument("--engine", help="engine of calls that name none")
    parser.add_argument("--weights", help="folder of the engines' weights")
    parser.add_argument("--worker-id", help="unique over all workers ever started; drawn when left out")
    parser.add_argument("--parent-pid", type=int, help="end when this process, the parent, has ended")
    options = parser.parse_args(argv)
    given = {"data_dir": options.data, "host": options.host, "port": options.port}
    given |= {"engine": options.engine, "weights": options.weights}
    settings = Settings(**{name: value for name, value in given.items() if value is not None})
    configure_logging(settings.log_level)
    stop = stop_on_signals()
    call_when_orphaned(stop.set, parent_pid=options.parent_pid)
    worker_id = options.worker_id or f"{socket.gethostname()}-{secrets.token_hex(4)}"
    log.info("worker starts", worker_id=worker_id, engine=settings.engine)
    stop_tracing = start_tracing() if settings.is_traced else lambda: None
    try:
        run_worker(settings, worker_id=worker_id, stop=stop)
    finally:
        stop_tracing()


if __name__ == "__main__":
    main()
