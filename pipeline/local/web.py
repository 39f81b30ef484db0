"""The web process: `python -m pipeline.local.web` serves the API until it is told to stop or its parent exits."""

from __future__ import annotations

import argparse
import gc
import os
import socket
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import uvicorn

from pipeline.api.app import create_app
from pipeline.deployment import ensure_key
from pipeline.errors import ImageTo3DError
from pipeline.local.http_protocol import bounded_protocol, max_connections
from pipeline.local.listener import inherited_listener, open_listener
from pipeline.local.supervisor import call_when_orphaned, stop_on_signals
from pipeline.memory import return_large_blocks
from pipeline.service import open_service
from pipeline.settings import Settings
from pipeline.telemetry import configure_logging, start_tracing

KEEP_ALIVE_S = 75


def run_web(
    settings: Settings,
    *,
    listener: socket.socket | None = None,
    parent_pid: int | None = None,
    on_start: Callable[[threading.Event], None] = lambda stop: None,
) -> None:
    """Serve the API until SIGTERM or SIGINT, which uvicorn itself handles.

    Args:
        listener: where requests arrive; opened at the host and port of the settings by default.
        parent_pid: also stop when this process, the parent, exits.
        on_start: called before requests are served, with an event that is set when the process is told to stop.

    Raises:
        CannotStart: the port is taken, or this machine's secret is not the deployment's.
        StoreUnavailable: the database cannot be reached.
    """
    return_large_blocks()
    with listener or open_listener(settings.host, settings.port) as listening:
        service = open_service(settings)
        if settings.api_key is not None:
            ensure_key(service.store, settings)
        config = uvicorn.Config(
            create_app(settings, service=service),
            http=bounded_protocol(limit=max_connections()),
            loop="uvloop",
            log_config=None,
            access_log=False,
            timeout_keep_alive=KEEP_ALIVE_S,
            timeout_graceful_shutdown=round(settings.stop_grace_s),
        )
        server = uvicorn.Server(config)
        if parent_pid is not None:
            call_when_orphaned(lambda: setattr(server, "should_exit", True), parent_pid=parent_pid)
        on_start(stop_on_signals())  # uvicorn raises the signal that stopped it again, for the handler before its own
        stop_tracing = start_tracing() if settings.is_traced else lambda: None
        gc.collect()
        gc.freeze()  # what is loaded by now stays: searching it took 80 ms, once in a thousand submits
        try:
            server.run(sockets=[listening])
        finally:
            stop_tracing()
            service.close()


def main(argv: list[str] | None = None) -> None:
    """Entry point of the process."""
    parser = argparse.ArgumentParser(prog="python -m pipeline.local.web", description=__doc__)
    parser.add_argument("--data", type=Path, help="folder of the deployment's data")
    parser.add_argument("--host")
    parser.add_argument("--port", type=int)
    parser.add_argument("--parent-pid", type=int, help="exit when this process, the parent, exits")
    parser.add_argument("--listener", type=int, help="descriptor of a socket that listens already")
    options = parser.parse_args(argv)
    given = {"data_dir": options.data, "host": options.host, "port": options.port}
    settings = Settings(**{name: value for name, value in given.items() if value is not None})
    configure_logging(settings.log_level, settings.log_format)
    listener = None if options.listener is None else inherited_listener(options.listener)
    try:
        run_web(settings, listener=listener, parent_pid=options.parent_pid or os.getppid())
    except ImageTo3DError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
