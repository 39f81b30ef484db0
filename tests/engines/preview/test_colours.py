from __future__ import annotations

import numpy as np
import pytest

from pipeline.engines.preview.colours import ProjectedViews, Projector, along, depth_cell, depth_map


def projector(azimuth_rad: float, colour: tuple[int, int, int], depths: np.ndarray | None = None) -> Projector:
    return Projector(azimuth_rad, np.full((4, 4, 3), colour, np.uint8), 4.0, (2.0, 2.0), depths)


RED, BLUE = (255, 0, 0), (0, 0, 255)
FRONT = np.array([[0, 0, 1]], np.float32)


def test_a_camera_at_azimuth_zero_looks_from_plus_z_and_a_quarter_turn_is_plus_x() -> None:
    front, right = projector(0.0, RED), projector(np.pi / 2, RED)

    np.testing.assert_allclose(front.toward_camera, [0, 0, 1], atol=1e-7)
    np.testing.assert_allclose(front.rightward, [1, 0, 0], atol=1e-7)
    np.testing.assert_allclose(right.toward_camera, [1, 0, 0], atol=1e-7)
    np.testing.assert_allclose(right.rightward, [0, 0, -1], atol=1e-7)


def test_a_point_takes_the_colour_of_the_view_that_it_faces() -> None:
    views = ProjectedViews((projector(0.0, RED), projector(np.pi, BLUE)))

    found = views.colours_at(np.zeros((2, 3), np.float32), np.concatenate([FRONT, -FRONT]))

    np.testing.assert_allclose(found, [[1, 0, 0], [0, 0, 1]], atol=1e-6)


def test_the_image_is_projected_without_mirroring() -> None:
    image = np.zeros((2, 2, 3), np.uint8)
    image[0, 1] = 255  # top right
    view = Projector(0.0, image, 2.0, (1.0, 1.0))

    found = view.sample(np.array([[0.25, 0.25, 0], [-0.25, 0.25, 0], [0.25, -0.25, 0]], np.float32))

    np.testing.assert_allclose(found[:, 0], [1, 0, 0], atol=1e-6)


def test_an_occluded_point_takes_the_colour_of_another_view() -> None:
    occluded = np.full((8, 8), 0.4, np.float32)  # a surface in front of the point
    side = np.array([[0.6, 0, 0.8]], np.float32)
    views = ProjectedViews((projector(0.0, RED, occluded), projector(np.pi / 2, BLUE)))

    found = views.colours_at(np.array([[0, 0, -0.3]], np.float32), side)

    np.testing.assert_allclose(found, [[0, 0, 1]], atol=1e-3)


@pytest.mark.parametrize("count", [0, 1, 7])
def test_dot_products_do_not_depend_on_the_number_of_vectors(count: int) -> None:
    vectors = np.random.default_rng(0).normal(size=(7, 3)).astype(np.float32)
    direction = np.array([0.3, -0.2, 0.9], np.float32)

    found = along(vectors[:count], direction)

    assert np.array_equal(found, along(vectors, direction)[:count])
    np.testing.assert_allclose(found, vectors[:count].astype(np.float64) @ direction.astype(np.float64), atol=1e-6)


def test_cells_cover_the_unit_square_and_positions_outside_are_clamped() -> None:
    assert depth_cell(np.array([-0.5, -0.01, 0.0, 0.49, 0.5, 2.0, -2.0]), 4).tolist() == [0, 1, 2, 3, 3, 3, 0]


def test_the_depth_map_keeps_the_nearest_vertex_of_each_cell() -> None:
    vertices = np.array([[0.1, 0.1, 0.2], [0.1, 0.1, -0.4], [-0.4, -0.4, 0.3]], np.float32)

    depths = depth_map(vertices, projector(0.0, RED), cells=2)

    np.testing.assert_allclose(depths, [[0.3, -np.inf], [-np.inf, 0.2]])
