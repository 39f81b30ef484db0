"""The command `image-to-3d`: one module per group of commands. Imports nothing heavy before a command runs."""

from __future__ import annotations

from typing import Annotated

import typer

from pipeline.cli import doctor, engines, fetch_weights, generate, inspect, jobs, keys, secrets, serve, usage
from pipeline.cli.commands import Commands
from pipeline.version import __version__

app = Commands(name="image-to-3d", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


def _print_version(is_asked: bool) -> None:
    if is_asked:
        typer.echo(f"image-to-3d {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit")
    ] = False,
) -> None:
    """Turn images into textured 3D files, or serve the HTTP endpoint that does."""


for module in (generate, inspect, engines, fetch_weights, serve, keys, secrets, jobs, usage, doctor):
    module.register(app)


def main() -> None:
    """Entry point of the console script."""
    app()
