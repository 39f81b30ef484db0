"""The web process: `python -m pipeline.local.web` serves the API until it is told to stop or its parent exits."""

from __future__ import annotations

import argparse
from pathlib import Path

import uvicorn

from pipeline.api.app import create_app
from pipeline.local.http_protocol import bounded_protocol, max_connections
from pipeline.local.supervisor import call_when_orphaned, stop_on_signals
from pipeline.settings import Settings
from pipeline.telemetry import configure_logging, start_tracing

KEEP_ALIVE_S = 75


def main(argv: list[str] | None = None) -> None:
    """Entry point of the process; uvicorn itself handles SIGTERM and SIGINT."""
    parser = argparse.ArgumentParser(prog="python -m pipeline.local.web", description=__doc__)
    parser.add_argument("--data", type=Path, help="folder of the deployment's data")
    parser.add_argument("--host")
    parser.add_argument("--port", type=int)
    parser.add_argument("--parent-pid", type=int, help="exit when this process, the parent, exits")
    options = parser.parse_args(argv)
    given = {"data_dir": options.data, "host": options.host, "port": options.port}
    settings = Settings(**{name: value for name, value in given.items() if value is not None})
    configure_logging(settings.log_level, settings.log_format)
    config = uvicorn.Config(
        create_app(settings),
        host=settings.host,
        port=settings.port,
        http=bounded_protocol(limit=max_connections()),
        log_config=None,
        access_log=False,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=round(settings.stop_grace_s),
    )
    server = uvicorn.Server(config)
    call_when_orphaned(lambda: setattr(server, "should_exit", True), parent_pid=options.parent_pid)
    stop_on_signals()  # uvicorn raises the signal that stopped it again, for the handler before its own
    stop_tracing = start_tracing() if settings.is_traced else lambda: None
    try:
        server.run()
    finally:
        stop_tracing()


if __name__ == "__main__":
    main()
