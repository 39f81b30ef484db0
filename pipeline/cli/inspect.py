"""`image-to-3d inspect`: what a 3D file holds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from pipeline.mesh.measure import MeshReport

REFUSED = 2


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("inspect")(inspect)


def inspect(
    file: Annotated[Path, typer.Argument(help="A .glb, .obj, .stl or .ply file.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")] = False,
) -> None:
    """Tell faces, vertices, whether it is watertight, bounds, texture size and components."""
    from pipeline.errors import MissingExtra

    try:
        found = _look_into(file)
    except ModuleNotFoundError as error:
        typer.echo(f"error: {MissingExtra('inspect', extra='local')}", err=True)
        raise typer.Exit(REFUSED) from error
    except Exception as error:  # readers of foreign files raise anything
        reason = getattr(error, "strerror", None) or "is no 3D file that can be read"
        typer.echo(f"error: {file}: {reason}", err=True)
        raise typer.Exit(REFUSED) from error
    if as_json:
        typer.echo(json.dumps(found))
        return
    width = max(len(name) for name in found)
    for name, value in found.items():
        typer.echo(f"{name.replace('_', ' '):<{width}}  {_in_words(value)}")


def _look_into(file: Path) -> dict[str, Any]:
    """Read and measure a file.

    Raises:
        OSError: it cannot be read.
        ValueError: it holds no mesh.
    """
    import numpy as np
    import trimesh

    from pipeline.mesh.measure import measure
    from pipeline.mesh.tri_mesh import TriMesh

    with file.open("rb"):
        pass
    loaded = trimesh.load(file, process=False)
    parts = list(loaded.geometry.values()) if isinstance(loaded, trimesh.Scene) else [loaded]
    parts = [part for part in parts if isinstance(part, trimesh.Trimesh) and len(part.faces)]
    if not parts:
        raise ValueError("no mesh")
    # Seams of the texture split vertices; joined by place, they are what they were.
    points = np.concatenate([np.asarray(part.vertices, np.float64) for part in parts])
    offsets = np.cumsum([0, *(len(part.vertices) for part in parts[:-1])])
    faces = np.concatenate([np.asarray(part.faces) + start for part, start in zip(parts, offsets, strict=True)])
    _, first, place = np.unique(np.round(points * 1e6).astype(np.int64), axis=0, return_index=True, return_inverse=True)
    welded = place.reshape(-1)[faces].astype(np.int32)
    proper = (welded != np.roll(welded, 1, axis=1)).all(axis=1)
    report = measure(TriMesh(points[first], welded[proper]))
    return {"file": str(file), **_as_dict(report), "texture": _texture_of(parts[0])}


def _as_dict(report: MeshReport) -> dict[str, Any]:
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
    }


def _texture_of(part: Any) -> str:
    """What colours a part: the size of its texture, or where else they are."""
    material = getattr(part.visual, "material", None)
    image = getattr(material, "baseColorTexture", None) or getattr(material, "image", None)
    if image is not None:
        return f"{image.size[0]} × {image.size[1]}"
    return "colours of vertices" if part.visual.kind == "vertex" else "none"


def _in_words(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        low, high = value
        return " × ".join(f"{b - a:.3f}" for a, b in zip(low, high, strict=True)) + f" m, from {low} to {high}"
    return f"{value:,}" if isinstance(value, int) else str(value)
