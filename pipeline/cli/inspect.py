"""`image-to-3d inspect`: what a 3D file holds, through the Python API."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from schemas.formats import extensions_in_words

if TYPE_CHECKING:
    from pipeline.inspection import InspectionReport

REFUSED = 2


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("inspect")(inspect)


def inspect(
    file: Annotated[Path, typer.Argument(help=f"A {extensions_in_words()} file.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")] = False,
) -> None:
    """Measure a 3D file: faces, vertices, whether it is watertight, bounds, texture, components."""
    from pipeline.errors import ImageTo3DError
    from pipeline.inspection import inspect as measure

    try:
        found = {"file": str(file), **_as_dict(measure(file))}
    except ImageTo3DError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(REFUSED) from error
    if as_json:
        typer.echo(json.dumps(found))
        return
    width = max(len(name) for name in found)
    for name, value in found.items():
        typer.echo(f"{name.replace('_', ' '):<{width}}  {_as_text(value)}")


def _as_dict(report: InspectionReport) -> dict[str, Any]:
    return {
        "faces": report.faces,
        "vertices": report.vertices,
        "components": report.components,
        "watertight": report.is_watertight,
        "winding_consistent": report.is_winding_consistent,
        "non_manifold_edges": report.non_manifold_edges,
        "boundary_edges": report.boundary_edges,
        "volume": round(report.volume, 6),
        "bounds": [[round(value, 4) for value in corner] for corner in (report.lowest, report.highest)],
        "texture": _colours_as_text(report),
    }


def _colours_as_text(report: InspectionReport) -> str:
    """The size of the texture, or where else the colours are."""
    if report.texture_size is not None:
        return "{} × {}".format(*report.texture_size)
    return "colours of vertices" if report.has_vertex_colours else "none"


def _as_text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        low, high = value
        return " × ".join(f"{b - a:.3f}" for a, b in zip(low, high, strict=True)) + f" m, from {low} to {high}"
    return f"{value:,}" if isinstance(value, int) else str(value)
