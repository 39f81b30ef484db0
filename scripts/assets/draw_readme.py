"""Draws scripts/assets/result.png for the README: the sample image and its model from four sides."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from PIL import Image

from pipeline.engines.preview.engine import PreviewEngine
from pipeline.render.mesh_view import FOV_RAD, over_background, render_view
from pipeline.render.orbit import Camera, intrinsics_of, look_at
from pipeline.stages.export import make_levels, render_mesh_of
from pipeline.stages.generate import options_of
from pipeline.stages.intake import load_views
from schemas.request import parse_request

HERE = Path(__file__).parent
SIZE = 280


def main() -> None:
    """Write the image."""
    request = parse_request(
        {"image": str(HERE.parents[1] / "pipeline" / "api" / "playground" / "sample.png"), "seed": 1}
    ).request

    def no_download(url: str) -> bytes:
        raise AssertionError(url)

    views = load_views(request, fetch=no_download, allow_paths=True)
    generation = PreviewEngine().generate(views, options_of(request, seed=1))
    mesh = render_mesh_of(make_levels(generation, request=request, on_step=lambda share: None)[0])
    panels = [over_background(np.asarray(Image.fromarray(views[0]).resize((SIZE, SIZE), Image.Resampling.LANCZOS)))]
    for degrees in (0, 45, 110, 180):
        yaw, pitch = math.radians(180 + degrees), 0.2
        eye = 2.2 * np.array([math.sin(yaw) * math.cos(pitch), math.cos(yaw) * math.cos(pitch), math.sin(pitch)])
        camera = Camera(look_at(eye, np.zeros(3)), intrinsics_of(FOV_RAD))
        panels.append(over_background(render_view(mesh, camera, size=SIZE)))
    Image.fromarray(np.concatenate(panels, axis=1)).quantize(128).save(HERE / "result.png", optimize=True)


if __name__ == "__main__":
    main()
