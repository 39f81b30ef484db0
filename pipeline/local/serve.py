"""The service on one machine: this process supervises a web process and worker processes.

Knows nothing of what they do: it starts `python -m pipeline.local.web` and `python -m pipeline.local.worker`, restarts
them when they exit, and expires the leases of a dead worker at once.
"""

from __future__ import annotations

import os
import secrets
import socket
import sys
import threading
import time
import urllib.error
import urllib.request
import webbrowser
from collections.abc import Callable

import structlog

from pipeline.deployment import ensure_key, open_store
from pipeline.errors import StoreUnavailable
from pipeline.jobs.store import JobStore
from pipeline.local.supervisor import ProcessSlot, Supervisor, stop_on_signals
from pipeline.secrets import load_master_keys
from pipeline.settings import Settings

READY_WAIT_S = 60.0
STOP_MARGIN_S = 10.0
"""Time for a process to exit, in addition to the grace period of running jobs."""

log = structlog.get_logger()


def serve(settings: Settings, *, announce: Callable[[str], None], open_browser: bool = False) -> None:
    """Run the service until SIGTERM or SIGINT; no process is left when this returns.

    Args:
        announce: prints a line for the operator.
        open_browser: open the playground in a browser when the service is ready.

    Raises:
        StoreUnavailable: the database cannot be reached.
    """
    stop = stop_on_signals()
    settings.data_dir.mkdir(parents=True, exist_ok=True)
    load_master_keys(settings)  # generated, if need be, before several processes start
    store = open_store(settings)
    try:
        created = ensure_key(store, settings)
        if created is not None:
            announce(f"API key for development, shown this once: {created}")
            announce("Create further keys with: image-to-3d keys create NAME")
        threading.Thread(target=announce_when_ready, args=(settings, announce, open_browser, stop), daemon=True).start()
        run_id = f"{socket.gethostname()}-{secrets.token_hex(4)}"
        workers = (_worker(settings, store, run_id, number) for number in range(settings.workers))
        Supervisor([_web(settings), *workers], stop_s=settings.stop_grace_s + STOP_MARGIN_S).run(stop)
    finally:
        store.close()


def _web(settings: Settings) -> ProcessSlot:
    command = [sys.executable, "-m", "pipeline.local.web", *_common(settings)]
    return ProcessSlot("web", command=lambda _: command, on_exit=lambda _: None)


def _worker(settings: Settings, store: JobStore, run_id: str, number: int) -> ProcessSlot:
    """The slot of one worker; each process in it has its own id, so that a lease names one process."""

    def name(start: int) -> str:
        return f"{run_id}-{number}-{start}"

    def expire_leases(start: int) -> None:
        try:
            expired = store.expire_leases(name(start))
        except StoreUnavailable as error:  # they expire by themselves
            log.warning("leases of a dead worker not expired", worker_id=name(start), reason=str(error))
        else:
            if expired:
                log.warning("leases of a dead worker expired", worker_id=name(start), jobs=expired)

    engine = ["--engine", settings.engine, "--weights", settings.weights]
    base = [sys.executable, "-m", "pipeline.local.worker", *_common(settings), *engine]
    return ProcessSlot(
        f"worker {number}", command=lambda start: [*base, "--worker-id", name(start)], on_exit=expire_leases
    )


def _common(settings: Settings) -> list[str]:
    address = ["--host", settings.host, "--port", str(settings.port)]
    return ["--data", str(settings.data_dir), *address, "--parent-pid", str(os.getpid())]


def announce_when_ready(
    settings: Settings, announce: Callable[[str], None], open_browser: bool, stop: threading.Event
) -> None:
    """Wait for the web process, then announce the service's address; give up after `READY_WAIT_S`."""
    address = settings.model_copy(update={"public_url": None}).base_url
    # Without the environment's proxy, which would answer for this machine's own address.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    deadline_s = time.monotonic() + READY_WAIT_S
    while not stop.is_set():
        try:
            with opener.open(f"{address}/health", timeout=2):
                break
        except (urllib.error.URLError, OSError):
            if time.monotonic() > deadline_s:
                announce(f"{address} does not answer after {READY_WAIT_S:g} s; see the log")
                return
            time.sleep(0.05)
    if stop.is_set():
        return
    announce(f"Ready at {settings.public_url or address}/")
    if open_browser:
        webbrowser.open(f"{address}/")
