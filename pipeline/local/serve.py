"""The service on one machine: supervises a web process and worker processes, or one kind of them.

Knows nothing of what they do: it starts `python -m pipeline.local.web` and `python -m pipeline.local.worker`, restarts
them when they exit, and expires the leases of a dead worker at once. Machines of one deployment know nothing of each
other: they share the database and the storage of outputs.
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
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING
from urllib.parse import quote

import structlog

from pipeline.deployment import check_secret, ensure_key, open_store
from pipeline.errors import StoreUnavailable
from pipeline.jobs.store import JobStore
from pipeline.local.listener import open_listener
from pipeline.local.supervisor import ProcessSlot, Supervisor, stop_on_signals
from pipeline.private_files import make_private_folder
from pipeline.secrets import load_master_keys
from pipeline.settings import Settings

if TYPE_CHECKING:
    from pipeline.jobs.stores.sql.store import SqlStore

READY_WAIT_S = 60.0
STOP_MARGIN_S = 10.0
"""Time for a process to exit, in addition to the grace period of running jobs."""

log = structlog.get_logger()


def serve(settings: Settings, *, announce: Callable[[str], None], open_browser: bool = False) -> None:
    """Run a web process and workers until SIGTERM or SIGINT; no process is left when this returns.

    Args:
        announce: prints a line for the operator.
        open_browser: open the playground in a browser when the service is ready.

    Raises:
        CannotStart: the port is taken, this machine's secret is not the deployment's, or a process cannot start.
        StoreUnavailable: the database cannot be reached.
    """
    stop = stop_on_signals()
    with open_listener(settings.host, settings.port) as listener:
        store = _open_deployment(settings)
        try:
            created = ensure_key(store, settings)
            if created is not None:
                announce(f"API key for development, shown this once: {created}")
                announce("Create further keys with: image-to-3d keys create NAME")
            elif settings.api_key is None:
                announce("It has API keys from before: image-to-3d keys list. A new one: image-to-3d keys create NAME")
            arguments = (settings, announce, open_browser, stop, created or _configured_key(settings))
            ready = threading.Thread(target=announce_when_ready, args=arguments, daemon=True)
            ready.start()
            slots = [_web(settings, listener), *_workers(settings, store)]
            # Closed first: a request that arrives while the processes stop is refused, not left waiting.
            _supervisor(settings, slots, on_stop=listener.close).run(stop)
        finally:
            store.close()


def run_workers(settings: Settings) -> None:
    """Run this machine's workers until SIGTERM or SIGINT; no process is left when this returns.

    Raises:
        CannotStart: this machine's secret is not the deployment's, or the workers cannot start.
        StoreUnavailable: the database cannot be reached.
    """
    stop = stop_on_signals()
    store = _open_deployment(settings)
    try:
        _supervisor(settings, _workers(settings, store)).run(stop)
    finally:
        store.close()


def _open_deployment(settings: Settings) -> SqlStore:
    """The store, and the secret in the folder of data, which is made before several processes look for it."""
    make_private_folder(settings.data_dir)
    master_keys = load_master_keys(settings)
    store = open_store(settings)
    try:
        check_secret(store, settings, master_keys)
    except BaseException:
        store.close()
        raise
    return store


def _supervisor(
    settings: Settings, slots: Sequence[ProcessSlot], *, on_stop: Callable[[], None] = lambda: None
) -> Supervisor:
    return Supervisor(slots, stop_s=settings.stop_grace_s + STOP_MARGIN_S, on_stop=on_stop)


def _web(settings: Settings, listener: socket.socket) -> ProcessSlot:
    descriptor = listener.fileno()
    command = [sys.executable, "-m", "pipeline.local.web", *_common(settings), "--listener", str(descriptor)]
    return ProcessSlot("web", command=lambda _: command, on_exit=lambda _: None, descriptors=(descriptor,))


def _workers(settings: Settings, store: JobStore) -> list[ProcessSlot]:
    """The slots of this machine's workers: one for each GPU, or as many as the settings say."""
    run_id = f"{socket.gethostname()}-{secrets.token_hex(4)}"
    gpus = settings.worker_gpus or (None,) * settings.workers
    return [_worker(settings, store, f"{run_id}-{number}", gpu) for number, gpu in enumerate(gpus)]


def _worker(settings: Settings, store: JobStore, slot_id: str, gpu: str | None) -> ProcessSlot:
    """The slot of one worker; each process in it has its own id, so that a lease names one process."""

    def name(start: int) -> str:
        return f"{slot_id}-{start}"

    def expire_leases(start: int) -> None:
        try:
            expired = store.expire_leases(name(start))
        except StoreUnavailable as error:  # they expire by themselves
            log.warning("leases of a dead worker not expired", worker_id=name(start), reason=str(error))
        else:
            if expired:
                log.warning("leases of a dead worker expired", worker_id=name(start), jobs=expired)

    engine = ["--engine", settings.engine, "--engines", ",".join(settings.engines_of_worker)]
    base = [sys.executable, "-m", "pipeline.local.worker", *_common(settings), *engine, "--weights", settings.weights]
    return ProcessSlot(
        f"worker {slot_id.rpartition('-')[2]}" + ("" if gpu is None else f" on GPU {gpu}"),
        command=lambda start: [*base, "--worker-id", name(start)],
        on_exit=expire_leases,
        environment={} if gpu is None else {"CUDA_VISIBLE_DEVICES": gpu},
    )


def _common(settings: Settings) -> list[str]:
    address = ["--host", settings.host, "--port", str(settings.port)]
    return ["--data", str(settings.data_dir), *address, "--parent-pid", str(os.getpid())]


def _configured_key(settings: Settings) -> str | None:
    """The API key of the settings, None without one."""
    return None if settings.api_key is None else settings.api_key.get_secret_value()


def announce_when_ready(
    settings: Settings,
    announce: Callable[[str], None],
    open_browser: bool,
    stop: threading.Event,
    api_key: str | None = None,
) -> None:
    """Wait for the web process, then announce the service's address; give up after `READY_WAIT_S`.

    Args:
        api_key: given to the playground that `open_browser` opens, in the fragment of its address: a fragment is never
            sent, so it is in no log, and the page removes it at once.
    """
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
        webbrowser.open(f"{address}/" + ("" if api_key is None else f"#key={quote(api_key, safe='')}"))
