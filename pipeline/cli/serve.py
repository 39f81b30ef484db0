"""`image-to-3d serve`, `web` and `worker`: the HTTP endpoint and its workers, in one command or on machines apart."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline.cli.data_folder import DataOption, settings_for

if TYPE_CHECKING:
    from pathlib import Path

    from pipeline.settings import Settings

HostOption = Annotated[str | None, typer.Option(help="Address to listen on (default: 127.0.0.1)")]
PortOption = Annotated[int | None, typer.Option(min=1, max=65535, help="Port to listen on (default: 8000)")]
EngineOption = Annotated[str | None, typer.Option(help="Engine for requests that name none (default: preview)")]
OfferedOption = Annotated[
    str | None, typer.Option("--engines", help="Further engines that requests may name, separated by commas")
]
WorkersOption = Annotated[int | None, typer.Option(min=0, max=256, help="Worker processes (default: 1)")]
GpusOption = Annotated[
    str | None,
    typer.Option(help="One worker process for each of these GPUs, by index or UUID, separated by commas"),
]
WeightsOption = Annotated[str | None, typer.Option(help="Folder of the engines' weights (default: weights)")]
OpenOption = Annotated[bool, typer.Option("--open", help="Open the playground in the browser")]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    for command in (serve, web, worker):
        app.command()(command)


def serve(
    data: DataOption = None,
    host: HostOption = None,
    port: PortOption = None,
    workers: WorkersOption = None,
    gpus: GpusOption = None,
    engine: EngineOption = None,
    engines: OfferedOption = None,
    weights: WeightsOption = None,
    open_browser: OpenOption = False,
) -> None:
    """Run the HTTP endpoint, its workers and the playground until stopped."""
    given = {"host": host, "port": port, "engine": engine, "engines": engines, "weights": weights}
    with _started(data, **given, **_processes(workers, gpus)) as settings:
        from pipeline.local.serve import serve as run

        run(settings, announce=typer.echo, open_browser=open_browser)


def web(
    data: DataOption = None,
    host: HostOption = None,
    port: PortOption = None,
    engine: EngineOption = None,
    engines: OfferedOption = None,
    open_browser: OpenOption = False,
) -> None:
    """Run the HTTP endpoint and the playground alone; workers on this or other machines share its database."""
    with _started(data, host=host, port=port, engine=engine, engines=engines) as settings:
        import threading

        from pipeline.local.serve import announce_when_ready
        from pipeline.local.web import run_web

        def announce(stop: threading.Event) -> None:
            arguments = (settings, typer.echo, open_browser, stop)
            threading.Thread(target=announce_when_ready, args=arguments, daemon=True).start()

        run_web(settings, on_start=announce)


def worker(
    data: DataOption = None,
    workers: WorkersOption = None,
    gpus: GpusOption = None,
    engine: EngineOption = None,
    engines: Annotated[
        str | None, typer.Option(help="Run only jobs of these engines, separated by commas (default: all offered)")
    ] = None,
    weights: WeightsOption = None,
) -> None:
    """Run workers alone; they take jobs from the database that they share with web processes on other machines."""
    given = {"engine": engine, "worker_engines": engines, "weights": weights}
    with _started(data, **given, **_processes(workers, gpus)) as settings:
        from pipeline.local.serve import run_workers

        run_workers(settings)


def _processes(workers: int | None, gpus: str | None) -> dict[str, Any]:
    """How many worker processes to start, as settings.

    Raises:
        typer.BadParameter: both options are given.
    """
    if workers is not None and gpus is not None:
        raise typer.BadParameter("--gpus starts one worker for each GPU: leave out --workers")
    # An option wins over the environment: `--workers 2` starts two whatever IMAGE_TO_3D_WORKER_GPUS says.
    return {"workers": workers, "worker_gpus": gpus if workers is None else ()}


@contextmanager
def _started(data: Path | None, **given: Any) -> Iterator[Settings]:
    """Settings and logging of a process of the service. An `ImageTo3DError` is printed as one sentence, exit code 1."""
    from pipeline.engines.registry import find_spec
    from pipeline.errors import CannotStart, ImageTo3DError
    from pipeline.on_modal.settings import unknown_settings
    from pipeline.private_files import make_private_folder
    from pipeline.telemetry import configure_logging

    settings = settings_for(data, **given)
    for sentence in unknown_settings():
        typer.echo(f"warning: {sentence}", err=True)
    try:
        for name in (*settings.offered_engines, *settings.worker_engines):
            find_spec(name)
        try:
            make_private_folder(settings.data_dir)
        except OSError as error:
            reason = (error.strerror or "").lower()
            raise CannotStart(f"Cannot use {settings.data_dir} as the data folder: {reason}; name another.") from error
        configure_logging(settings.log_level, settings.log_format)
        yield settings
    except ImageTo3DError as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(1) from error
