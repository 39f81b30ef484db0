"""The service on one machine: a web process and its workers, kept running by this one.

Knows nothing of what the processes do: it starts `python -m pipeline.local.web` and `python -m pipeline.local.worker`, starts them
again when they end, and lets a dead worker's jobs go at once rather than when their leases expire.
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
from pipeline.settings import Settings, load_master_keys

READY_WAIT_S = 60.0
STOP_MARGIN_S = 10.0
"""On top of the grace for running calls: what a process may need to put its things away."""

log = structlog.get_logger()


def serve(settings: Settings, *, announce: Callable[[str], None], open_browser: bool = False) -> None:
    """Run the service until SIGTERM or SIGINT; no process is left when this returns.

    Args:
        announce: prints a line for whoever started the service.
        open_browser: show the playground once it is there.

    Raises:
        StoreUnavailable: the database is away.
    """
    stop = stop_on_signals()
    settings.data_dir.mkdir(parents=True, exist_ok=True)
    load_master_keys(settings)  # made before two processes want one
    store = open_store(settings)
    try:
        made = ensure_key(store, settings)
        if made is not None:
            announce(f"API key for development, shown this once: {made}")
            announce("Make real ones with: image-to-3d keys create NAME")
        threading.Thread(
            target=_announce_when_ready, args=(settings, announce, open_browser, stop), daemon=True
        ).start()
        run_id = f"{socket.gethostname()}-{secrets.token_hex(4)}"
        children = [_web(settings), *(_worker(settings, store, run_id, place) for place in range(settings.workers))]
        Supervisor(children, stop_s=settings.stop_grace_s + STOP_MARGIN_S).run(stop)
    finally:
        store.close()


def _web(settings: Settings) -> ProcessSlot:
    command = [sys.executable, "-m", "pipeline.local.web", *_common(settings)]
    return ProcessSlot("web", command=lambda _: command, on_death=lambda _: None)


def _worker(settings: Settings, store: JobStore, run_id: str, place: int) -> ProcessSlot:
    """One worker's place; each process in it has an id of its own, so that a lease names one process."""

    def name(start: int) -> str:
        return f"{run_id}-{place}-{start}"

    def release(start: int) -> None:
        try:
            released = store.expire_leases(name(start))
        except StoreUnavailable as error:  # then their leases expire by themselves
            log.warning("jobs of a dead worker not released", worker_id=name(start), reason=str(error))
        else:
            if released:
                log.warning("jobs of a dead worker released", worker_id=name(start), jobs=released)

    engine = ["--engine", settings.engine, "--weights", settings.weights]
    base = [sys.executable, "-m", "pipeline.local.worker", *_common(settings), *engine]
    return ProcessSlot(f"worker {place}", command=lambda start: [*base, "--worker-id", name(start)], on_death=release)


def _common(settings: Settings) -> list[str]:
    address = ["--host", settings.host, "--port", str(settings.port)]
    return ["--data", str(settings.data_dir), *address, "--parent-pid", str(os.getpid())]


def _announce_when_ready(
    settings: Settings, announce: Callable[[str], None], open_browser: bool, stop: threading.Event
) -> None:
    address = settings.model_copy(update={"public_url": None}).base_url
    deadline_s = time.monotonic() + READY_WAIT_S
    while not stop.is_set():
        try:
            with urllib.request.urlopen(f"{address}/health", timeout=2):
                break
        except (urllib.error.URLError, OSError):
            if time.monotonic() > deadline_s:
                announce(f"{address} does not answer yet; see the log")
                return
            time.sleep(0.05)
    if stop.is_set():
        return
    announce(f"Ready at {settings.public_url or address}/")
    if open_browser:
        webbrowser.open(f"{address}/")
