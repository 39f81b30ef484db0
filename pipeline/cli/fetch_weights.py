"""`image-to-3d fetch-weights`: bring the published weights of an engine here, once; then everything runs offline."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("fetch-weights")(fetch_weights)


def fetch_weights(
    engine: Annotated[str, typer.Option(help="The engine whose weights are wanted.")] = "trellis",
    folder: Annotated[Path, typer.Option("--dir", help="Where the weights of all engines are kept.")] = Path("weights"),
) -> None:
    """Fetch an engine's weights at their pinned revisions and check them; whole files stay."""
    from pipeline.engines import fetching
    from pipeline.errors import ImageTo3DError

    try:
        fetched = fetching.fetch_weights(engine, folder, report=typer.echo)
    except ImageTo3DError as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(1) from error
    typer.echo(f"{engine} needs no weights" if fetched is None else f"{engine}'s weights are in {fetched}")
