"""A worker process: claims jobs from the store and runs them; threads beside it send webhooks and clean up.

Only the wiring: `pipeline.jobs.worker_loop` is the loop, `pipeline.run_job` runs a job, and
`pipeline.webhooks.sender` sends webhooks. Several workers may run without knowing of each other;
each may be killed at any moment.
"""

from __future__ import annotations

import argparse
import os
import secrets
import shutil
import socket
import sys
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path

import structlog

from pipeline.answers import webhook_dispatcher
from pipeline.errors import CannotStart, ImageTo3DError
from pipeline.job_handler import JobHandler, clean, folder_of, late_uploads
from pipeline.jobs.model import Job
from pipeline.jobs.worker_loop import QueueWorker, WorkerOptions
from pipeline.local.supervisor import call_when_orphaned, stop_on_signals
from pipeline.private_files import OF_OTHERS
from pipeline.secrets import load_master_keys
from pipeline.service import kept_generations, open_service, temporary_outputs
from pipeline.settings import Settings
from pipeline.shared_storage import shared_work
from pipeline.stages.generate import LocalEngines
from pipeline.telemetry import configure_logging, start_tracing

CLEAN_EVERY_S = 60.0
UPLOAD_POLL_S = 5.0
MIN_FREE_BYTES = 64 << 20
"""With less free space, no job is claimed: it could not store its files and would fail, as would the whole queue."""
EX_SOFTWARE = 70

log = structlog.get_logger()


def has_space(folder: Path) -> bool:
    """Whether the disk of a folder has space for the files of a job."""
    try:
        free_bytes = shutil.disk_usage(folder).free
    except FileNotFoundError:
        return True  # the first job creates it
    return free_bytes >= MIN_FREE_BYTES


def repeat(task: Callable[[], object], *, every_s: float, stop: threading.Event) -> None:
    """Run a task periodically until told to stop; its errors are logged."""
    while not stop.wait(every_s):
        try:
            task()
        except ImageTo3DError as error:
            log.warning("periodic task failed, will be retried", task=getattr(task, "__name__", ""), reason=str(error))
        except Exception:
            log.exception("periodic task failed", task=getattr(task, "__name__", ""))


def run_worker(settings: Settings, *, worker_id: str, stop: threading.Event) -> None:
    """Run jobs until told to stop or until a restart is requested.

    Raises:
        StoreUnavailable: the database cannot be reached at the start.
    """
    master_keys = load_master_keys(settings)
    outputs, shared = temporary_outputs(settings, master_keys), shared_work(settings, master_keys)
    service = open_service(settings, master_keys=master_keys, temporary=outputs)
    engines = LocalEngines(settings.engine, weights=settings.weights, arguments=settings.engine_arguments)
    is_finished = threading.Event()

    uploads = late_uploads(service, outputs, is_cancelled=is_finished.is_set)

    generations = kept_generations(settings)

    def clean_up() -> None:
        clean(service.store, outputs, settings.work_dir, generations=generations, shared=shared)

    def forget(job: Job) -> None:
        shutil.rmtree(folder_of(job, settings.work_dir), ignore_errors=True)
        if shared is not None:
            shared.forget(folder_of(job, settings.work_dir))

    threads = [
        threading.Thread(target=webhook_dispatcher(service).run, args=(is_finished,), name="webhooks"),
        threading.Thread(target=uploads.run, args=(is_finished,), kwargs={"poll_s": UPLOAD_POLL_S}, name="uploads"),
        threading.Thread(target=repeat, args=(clean_up,), kwargs={"every_s": CLEAN_EVERY_S, "stop": is_finished}),
    ]
    for thread in threads:
        thread.start()
    worker = QueueWorker(
        service.store,
        JobHandler(
            service,
            outputs,
            lambda job, engine: partial(engines.generate, engine or job.engine or None),
            shared_work=shared,
        ),
        WorkerOptions(
            worker_id=worker_id,
            engine=",".join(settings.engines_of_worker),
            engines=settings.engines_of_worker,
            lease_s=settings.lease_s,
            stop_grace_s=settings.stop_grace_s,
            timeout_s=settings.call_timeout_s,
            on_timeout=lambda: os._exit(EX_SOFTWARE),
            is_able=lambda: has_space(settings.data_dir),
        ),
        on_end=forget,
    )
    try:
        worker.run(stop)
    finally:
        is_finished.set()
        for thread in threads:
            thread.join()
        service.close()


def main(argv: list[str] | None = None) -> None:
    """Entry point of `python -m pipeline.local.worker`."""
    parser = argparse.ArgumentParser(prog="python -m pipeline.local.worker", description=__doc__)
    parser.add_argument("--data", type=Path, help="folder of the deployment's data")
    parser.add_argument("--host", help="where the web process listens, for the URLs of files")
    parser.add_argument("--port", type=int)
    parser.add_argument("--engine", help="engine of requests that name none")
    parser.add_argument("--engines", help="engines of this worker, separated by commas; all by default")
    parser.add_argument("--weights", help="folder of the engines' weights")
    parser.add_argument("--worker-id", help="unique among all workers ever started; random by default")
    parser.add_argument("--parent-pid", type=int, help="exit when this process, the parent, exits")
    options = parser.parse_args(argv)
    given = {"data_dir": options.data, "host": options.host, "port": options.port}
    given |= {"engine": options.engine, "worker_engines": options.engines, "weights": options.weights}
    settings = Settings(**{name: value for name, value in given.items() if value is not None})
    configure_logging(settings.log_level, settings.log_format)
    os.umask(OF_OTHERS)  # for the files that libraries write into the work folder
    stop = stop_on_signals()
    call_when_orphaned(stop.set, parent_pid=options.parent_pid)
    worker_id = options.worker_id or f"{socket.gethostname()}-{secrets.token_hex(4)}"
    log.info("worker started", worker_id=worker_id, engine=",".join(settings.engines_of_worker))
    stop_tracing = start_tracing() if settings.is_traced else lambda: None
    try:
        run_worker(settings, worker_id=worker_id, stop=stop)
    except CannotStart as error:
        sys.exit(str(error))
    finally:
        stop_tracing()


if __name__ == "__main__":
    main()
