from __future__ import annotations

import numpy as np
import torch

from pipeline.engines.triposr.spec import ISO_DENSITY
from pipeline.engines.triposr.surface import extract_surface, grid_coordinates, to_mesh, to_project_frame
from pipeline.ops.isosurface import extract_isosurface
from tests.engines.triposr.small_field import small_field
from tests.reference.triposr_grid import density_on_grid


def test_the_frame_turns_the_input_view_to_the_front() -> None:
    toward_camera_right_and_up = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1]], np.float32)

    assert to_project_frame(toward_camera_right_and_up).tolist() == [[0, 0, 1], [1, 0, 0], [0, 1, 0]]


def test_grid_coordinates_include_both_ends_of_the_box() -> None:
    assert grid_coordinates(torch.tensor([0, 2, 4]), resolution=5).tolist() == [-1.0, 0.0, 1.0]


def test_the_surface_equals_that_of_the_dense_grid() -> None:
    field, resolution = small_field(), 48
    with torch.inference_mode():
        grid = density_on_grid(field, resolution=resolution, chunk_size=8192)
        expected = extract_isosurface(
            lambda i: grid[i[:, 0, :, None, None], i[:, 1, None, :, None], i[:, 2, None, None, :]],
            resolution=resolution,
            level=ISO_DENSITY,
            step=1,
        )

        found = extract_surface(field, resolution=resolution, chunk_size=8192)

    assert len(expected.faces) > 0
    larger, smaller = to_mesh(expected, resolution=resolution), to_mesh(found, resolution=resolution)
    assert abs(larger.volume() - smaller.volume()) < 1e-3
