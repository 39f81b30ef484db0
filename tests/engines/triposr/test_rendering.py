from __future__ import annotations

import numpy as np
import pytest
import torch

from pipeline.engines.triposr.field import TriplaneField
from pipeline.engines.triposr.rendering import Occupancy, rays_intersect_bbox, render_rays, turntable_frames
from pipeline.render.orbit import level_orbit, pixel_rays
from tests.engines.triposr.small_field import small_field


@pytest.fixture(scope="module")
def field() -> TriplaneField:
    return small_field()


def test_a_ray_through_the_box_enters_and_leaves_at_its_faces_and_a_miss_has_no_length() -> None:
    origins = torch.tensor([[2.0, 0.0, 0.0], [2.0, 3.0, 0.0]])
    directions = torch.tensor([[-1.0, 0.0, 0.0], [-1.0, 0.0, 0.0]])

    enter, leave, hit = rays_intersect_bbox(origins, directions, radius=1.0)

    assert hit.tolist() == [True, False]
    torch.testing.assert_close(enter[:, 0], torch.tensor([2 - 0.999, 0.0]))
    torch.testing.assert_close(leave[:, 0], torch.tensor([2 + 0.999, 0.0]))


def test_a_ray_that_misses_the_box_is_white_and_no_rays_give_no_colours(field: TriplaneField) -> None:
    origins, directions = torch.tensor([[2.0, 3.0, 0.0]]), torch.tensor([[-1.0, 0.0, 0.0]])

    with torch.inference_mode():
        assert render_rays(field, origins, directions, chunk_size=100).tolist() == [[1.0, 1.0, 1.0]]
        assert render_rays(field, origins[:0], directions[:0], chunk_size=100).shape == (0, 3)


def test_skipping_invisible_samples_changes_an_image_by_less_than_two_8_bit_levels(field: TriplaneField) -> None:
    (camera,) = level_orbit(1, elevation_deg=10, distance=1.9, fovy_deg=40, height=16, width=16)
    rays = [
        torch.from_numpy(part.astype(np.float32)).reshape(-1, 3) for part in pixel_rays(camera, height=16, width=16)
    ]
    with torch.inference_mode():
        exact = render_rays(field, *rays, chunk_size=8192)
        occupancy = Occupancy(field, chunk_size=8192)
        quick = render_rays(field, *rays, chunk_size=8192, occupancy=occupancy, min_transmittance=1e-3)

    assert float((exact - quick).abs().max()) < 1.5 / 255


def test_a_turntable_does_not_depend_on_the_chunk_size(field: TriplaneField) -> None:
    with torch.inference_mode():
        first, second = (
            np.stack(list(turntable_frames(field, frames=2, size=12, chunk_size=size))) for size in (1, 12_000)
        )

    assert np.array_equal(first, second)
    assert first.std() > 0
