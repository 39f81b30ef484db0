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
    for_print: Annotated[
        bool, typer.Option("--print", help="Measure what a 3D printer needs to know: shells, base, walls, overhangs.")
    ] = False,
    min_wall_mm: Annotated[
        float, typer.Option("--min-wall-mm", min=0.1, max=10, help="With --print: thinner walls are reported.")
    ] = 0.8,
    up_axis: Annotated[
        str | None, typer.Option("--up-axis", help="With --print: y or z; by default that of the format.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")] = False,
) -> None:
    """Measure a 3D file: faces, vertices, whether it is watertight, bounds, texture, components."""
    from pipeline.errors import ImageTo3DError, InvalidRequest
    from pipeline.inspection import inspect as measure
    from pipeline.inspection import inspect_print

    try:
        if up_axis not in (None, "y", "z"):
            raise InvalidRequest(f"--up-axis must be y or z, got {up_axis!r}")
        if for_print:
            measures = inspect_print(file, min_wall_mm=min_wall_mm, up_axis=up_axis).as_dict()
        else:
            measures = _as_dict(measure(file))
        found = {"file": str(file), **measures}
    except ImageTo3DError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(REFUSED) from error
    if as_json:
        typer.echo(json.dumps(found))
        return
    width = max(len(name) for name in found)
    for name, value in found.items():
        typer.echo(f"{name.replace('_', ' '):<{width}}  {_in_print_words(name, value) or _as_text(value)}")


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


def _in_print_words(name: str, value: Any) -> str:
    """A measure of `--print` whose unit its name has; "" for any other."""
    if name == "size_mm":
        return " × ".join(f"{side:g}" for side in value) + " (width, depth, height)"
    return f"{value:.2%}" if name.endswith("_share") else ""


def _as_text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None:
        return "none"
    if isinstance(value, list):
        low, high = value
        return " × ".join(f"{b - a:.3f}" for a, b in zip(low, high, strict=True)) + f" m, from {low} to {high}"
    return f"{value:,}" if isinstance(value, int) else str(value)
