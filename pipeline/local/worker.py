"""A worker process: takes calls from the store and runs them; beside that it sends webhooks and cleans up.

Wiring alone: the loop is `pipeline.jobs.worker_loop`, the call `pipeline.run_job`, the webhooks `pipeline.webhooks.sender`. Several
workers run side by side without knowing of each other; each may be killed at any moment.
"""

from __future__ import annotations

import argparse
import os
import secrets
import shutil
import socket
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path

import structlog

from pipeline.errors import ImageTo3DError
from pipeline.job_handler import JobHandler, clean, folder_of, webhook_dispatcher
from pipeline.jobs.worker_loop import QueueWorker
from pipeline.local.supervisor import call_when_orphaned, stop_on_signals
from pipeline.service import local_outputs, open_service
from pipeline.settings import Settings
from pipeline.stages.deliver import retry_uploads
from pipeline.stages.generate import LocalEngines
from pipeline.telemetry import configure_logging, start_tracing

CLEAN_EVERY_S = 60.0
UPLOAD_EVERY_S = 5.0
MIN_FREE_BYTES = 64 << 20
"""With less room no call is taken: it could not keep its files, and would fail, and after it the whole queue."""
EX_SOFTWARE = 70

log = structlog.get_logger()


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
        threading.Thread(target=webhook_dispatcher(here).run, args=(is_over,), name="webhooks"),
        threading.Thread(target=repeat, args=(retry,), kwargs={"every_s": UPLOAD_EVERY_S, "stop": is_over}),
        threading.Thread(target=repeat, args=(clean_up,), kwargs={"every_s": CLEAN_EVERY_S, "stop": is_over}),
    ]
    for duty in duties:
        duty.start()
    worker = QueueWorker(
        here.store,
        JobHandler(here, outputs, lambda job, engine: partial(engines.generate, engine)),
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
    """Entry point of `python -m pipeline.local.worker`."""
    parser = argparse.ArgumentParser(prog="python -m pipeline.local.worker", description=__doc__)
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
