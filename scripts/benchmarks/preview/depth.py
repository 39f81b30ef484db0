"""Errors of the depths of front and back against solids of known shape, in percent of the longer side.

Beside the engine's result stands the bare solution of Poisson's equation, as the engine inflated before it knew flat
from round.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from pipeline.engines.base import GenerationOptions
from pipeline.engines.preview.engine import PreviewEngine
from pipeline.engines.preview.inflate import HALF_DEPTH, solve_poisson
from pipeline.engines.preview.mask_grid import sample_mask
from pipeline.engines.preview.silhouette_mesh import mesh_between_sheets
from pipeline.mesh.tri_mesh import TriMesh
from tests.fakes.layered_solids import LAYERED, PRINTED
from tests.fakes.solids import HELD_OUT, SOLIDS, Rendering, Solid, depth_error, mesh_depths, render_solid
from tests.fakes.unseen_solids import UNSEEN

SIDE = 192  # pixels of the rendered cube of 1.5
RESOLUTION = 128
DEPTHS = tuple(np.linspace(0.1, 1.0, 10))
"""Depths among which the best is searched: what a rule that knew the solid could reach with this field alone."""


def main(images: str | None) -> None:
    """Print the table; images without a known shape do not count here."""
    print("| solid | plain | now | `depth` | best of ten depths |")
    print("| --- | --- | --- | --- | --- |")
    sets = {"": SOLIDS, " (more)": HELD_OUT, " (layered)": LAYERED, " (printed)": PRINTED, " (unseen)": UNSEEN}
    for title, solids in sets.items():
        _print_rows(title, solids)


def _print_rows(title: str, solids: Mapping[str, Solid]) -> None:
    for name, solid in solids.items():
        rendering = render_solid(solid, side=SIDE)
        plain = _error(rendering, _plainly_inflated(rendering))
        now, depth = _generated(rendering, None)
        best = min(_generated(rendering, float(each))[0] for each in DEPTHS)
        print(f"| {name}{title} | {plain:.1f} | {now:.1f} | {depth:.2f} | {best:.1f} |", flush=True)


def _error(rendering: Rendering, mesh: TriMesh) -> float:
    return 100 * depth_error(rendering, *mesh_depths(mesh.vertices, rendering.front.shape))


def _generated(rendering: Rendering, depth: float | None) -> tuple[float, float]:
    """Return the error of the engine's result, and the depth that it used."""
    options = GenerationOptions(seed=1, resolution=RESOLUTION, depth=depth)
    generation = PreviewEngine().generate([rendering.image], options)
    assert generation.depth is not None
    return _error(rendering, generation.mesh), generation.depth


def _plainly_inflated(rendering: Rendering) -> TriMesh:
    grid = sample_mask((rendering.image[..., 3] / 255).astype(np.float32), resolution=RESOLUTION)
    heights = np.sqrt(solve_poisson(grid)) * grid.cell_m
    return mesh_between_sheets(grid, heights * min(1.0, HALF_DEPTH / heights.max()))
