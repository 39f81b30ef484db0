"""Parts before a body, told from prints."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.engines.preview.front_parts import FrontParts, find_front_parts
from pipeline.engines.preview.inflate import inflate
from pipeline.mesh.measure import measure
from tests.fakes.layered_solids import LAYERED, PRINTED
from tests.fakes.solids import Rendering, depth_error, mesh_depths, render_solid


def parts_of(image: NDArray[np.uint8]) -> FrontParts | None:
    return find_front_parts((image[..., :3] / 255).astype(np.float32), (image[..., 3] / 255).astype(np.float32))


def error(rendering: Rendering, parts: FrontParts | None) -> float:
    alpha = (rendering.image[..., 3] / 255).astype(np.float32)
    mesh = inflate(alpha, resolution=64, depth=0.58, front_parts=parts)
    report = measure(mesh)
    assert report.is_watertight and report.components == 1 and report.non_manifold_edges == 0
    return depth_error(rendering, *mesh_depths(mesh.vertices, rendering.front.shape))


def test_arms_before_the_body_are_nearer_the_truth() -> None:
    rendering = render_solid(LAYERED["folded arms"], side=160)

    parts = parts_of(rendering.image)

    assert parts is not None and 0 < parts.overlap.mean() < parts.mask.mean()
    assert error(rendering, parts) < 0.8 * error(rendering, None)


@pytest.mark.parametrize("name", PRINTED)
def test_prints_are_no_parts(name: str) -> None:
    assert parts_of(render_solid(PRINTED[name], side=160).image) is None


def test_an_image_of_one_pixel_has_no_parts() -> None:
    assert parts_of(np.full((1, 1, 4), 255, np.uint8)) is None
