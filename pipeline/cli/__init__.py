"""The command `image-to-3d`: one module per group of commands. Imports nothing heavy before a command runs."""

from __future__ import annotations

import typer

from pipeline.cli import engines, fetch_weights, generate, inspect, jobs, keys, secrets, serve, usage

app = typer.Typer(
    name="image-to-3d", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__
)


@app.callback()
def root() -> None:
    """Turn pictures into textured 3D assets, or serve the endpoint that does."""


for module in (generate, inspect, engines, fetch_weights, serve, keys, secrets, jobs, usage):
    module.register(app)


def main() -> None:
    """Entry point of the console script."""
    app()
