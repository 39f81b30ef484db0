"""`image-to-3d engines`: which engines exist, what each needs, and whether this machine has it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.cli.data_folder import print_table, settings_for

if TYPE_CHECKING:
    from pipeline.engines.registry import EngineSpec


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("engines")(engines)


def engines(
    weights: Annotated[str | None, typer.Option(help="Folder of the engines' weights (default: weights)")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text")] = False,
) -> None:
    """List the engines: what each one is, whether it is installed, and whether its weights are here."""
    from pipeline.engines.registry import ENGINES

    folder = Path(settings_for(None, weights=weights).weights)
    states = [state_of(spec, folder) for spec in ENGINES]
    if as_json:
        typer.echo(json.dumps({"engines": [asdict(state) for state in states]}))
        return
    rows: list[tuple[object, ...]] = [
        (
            state.name,
            "yes" if state.installed else f"no: pip install 'image-to-3d[{state.extra}]'",
            _weights_in_words(state, folder),
            _inputs_in_words(state),
            state.summary,
        )
        for state in states
    ]
    print_table(("ENGINE", "INSTALLED", "WEIGHTS", "TAKES", "WHAT IT IS"), rows)


@dataclass(frozen=True)
class EngineState:
    """One engine on this machine.

    Attributes:
        inputs: what it makes assets from: image, text, or both.
        installed: whether the packages of its extra are installed.
        has_weights: whether it needs weights at all.
        weights_folder: where they lie in the folder of all engines' weights; "" if it needs none.
        missing_bytes: bytes of weights that are not in the folder yet.
    """

    name: str
    summary: str
    extra: str
    inputs: tuple[str, ...]
    max_views: int
    installed: bool
    has_weights: bool
    weights_folder: str
    missing_bytes: int


def state_of(spec: EngineSpec, folder: Path) -> EngineState:
    """Check an engine's packages and weights, without importing the packages."""
    from pipeline.engines.registry import is_installed, weights_module

    module = weights_module(spec)
    return EngineState(
        name=spec.name,
        summary=spec.summary,
        extra=spec.extra,
        inputs=spec.inputs,
        max_views=spec.max_views,
        installed=is_installed(spec),
        has_weights=spec.has_weights,
        weights_folder="" if module is None else module.WEIGHTS_FOLDER,
        missing_bytes=0 if module is None else module.missing_bytes(folder),
    )


def _inputs_in_words(state: EngineState) -> str:
    views = "1 image" if state.max_views == 1 else f"1 to {state.max_views} images"
    return " or ".join("a text" if kind == "text" else views for kind in state.inputs)


def _weights_in_words(state: EngineState, folder: Path) -> str:
    if not state.has_weights:
        return "needs none"
    if state.missing_bytes:
        return f"{state.missing_bytes / 1e9:.1f} GB to fetch"
    return f"in {folder / state.weights_folder}"
