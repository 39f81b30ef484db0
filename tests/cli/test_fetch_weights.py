"""`image-to-3d fetch-weights` where nothing is downloaded; tests/nn covers the downloads."""

from __future__ import annotations

import typer
from typer.testing import CliRunner

from pipeline.cli import fetch_weights


def command() -> typer.Typer:
    app = typer.Typer()
    app.callback()(lambda: None)
    fetch_weights.register(app)
    return app


def test_fetching_for_an_engine_without_weights_says_that_it_needs_none() -> None:
    result = CliRunner().invoke(command(), ["fetch-weights", "--engine", "preview"])

    assert (result.exit_code, result.output) == (0, "preview needs no weights\n")


def test_an_unknown_engine_is_refused_in_one_sentence() -> None:
    result = CliRunner().invoke(command(), ["fetch-weights", "--engine", "nonsense"])

    assert result.exit_code == 1
    assert result.output.startswith("engine must be one of preview, trellis")
