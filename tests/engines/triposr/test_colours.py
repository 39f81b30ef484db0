from __future__ import annotations

import numpy as np
import pytest
import torch

from pipeline.engines.triposr.engine import colours_of
from pipeline.engines.triposr.field import TriplaneField
from pipeline.engines.triposr.surface import to_project_frame
from tests.engines.triposr.small_field import small_field


@pytest.fixture(scope="module")
def field() -> TriplaneField:
    return small_field()


def test_the_colour_of_a_texel_does_not_depend_on_the_number_of_points(field: TriplaneField) -> None:
    source = colours_of(field)
    points = np.random.default_rng(0).uniform(-0.5, 0.5, (3_000, 3)).astype(np.float32)

    whole = np.round(source.colours_at(points, points) * 255)
    parts = [source.colours_at(points[start : start + 700], points) for start in range(0, 3_000, 700)]

    assert np.array_equal(np.round(np.concatenate(parts) * 255), whole)


@pytest.mark.parametrize("count", [0, 1, 500])
def test_colours_equal_those_of_the_field(field: TriplaneField, count: int) -> None:
    points = np.random.default_rng(0).uniform(-1, 1, (count, 3)).astype(np.float32)
    with torch.inference_mode():
        expected = field.at(torch.from_numpy(points), chunk_size=100).color.numpy()

    found = colours_of(field).colours_at(to_project_frame(points) / (2 * field.renderer.radius), points)

    np.testing.assert_allclose(found, expected, atol=2e-6)  # float32 products there, float64 here
