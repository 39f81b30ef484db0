"""`image-to-3d serve`: the HTTP endpoint and its workers in one command."""

from __future__ import annotations

from typing import Annotated

import typer

from pipeline.cli.data_folder import DataOption, settings_for


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(serve)


def serve(
    data: DataOption = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on (default: 127.0.0.1)")] = None,
    port: Annotated[int | None, typer.Option(min=1, max=65535, help="Port to listen on (default: 8000)")] = None,
    workers: Annotated[int | None, typer.Option(min=0, max=256, help="Worker processes (default: 1)")] = None,
    engine: Annotated[str | None, typer.Option(help="Engine for requests that name none (default: preview)")] = None,
    weights: Annotated[str | None, typer.Option(help="Folder of the engines' weights (default: weights)")] = None,
    open_browser: Annotated[bool, typer.Option("--open", help="Open the playground in the browser")] = False,
) -> None:
    """Run the HTTP endpoint, its workers and the playground until stopped."""
    from pipeline.engines.registry import find_spec
    from pipeline.errors import ImageTo3DError
    from pipeline.local.serve import serve as run
    from pipeline.telemetry import configure_logging

    settings = settings_for(data, host=host, port=port, workers=workers, engine=engine, weights=weights)
    try:
        find_spec(settings.engine)
        configure_logging(settings.log_level, settings.log_format)
        run(settings, announce=typer.echo, open_browser=open_browser)
    except ImageTo3DError as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(1) from error
