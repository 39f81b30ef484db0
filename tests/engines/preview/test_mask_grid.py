from __future__ import annotations

import numpy as np
import pytest

from pipeline.engines.preview.mask_grid import LEVEL, NEAREST_CROSSING, MaskGrid, sample_mask


def test_the_outermost_nodes_are_outside_and_a_full_mask_is_inside_elsewhere() -> None:
    grid = sample_mask(np.ones((40, 80), np.float32), resolution=16)

    assert not grid.inside[[0, -1]].any() and not grid.inside[:, [0, -1]].any()
    rows, columns = np.nonzero(grid.inside)
    assert np.ptp(columns) in (15, 16) and np.ptp(rows) in (7, 8)  # the contour runs through the border nodes
    assert grid.cell_m == 1 / 16


def test_the_first_row_of_the_grid_is_the_bottom_of_the_mask() -> None:
    alpha = np.zeros((40, 40), np.float32)
    alpha[30:] = 1

    rows, _ = np.nonzero(sample_mask(alpha, resolution=20).inside)

    assert rows.max() < 10


@pytest.mark.parametrize(("inner", "outer", "expected"), [(1.0, 0.0, 0.5), (0.9, 0.1, 0.5), (0.6, 0.4, 0.5)])
def test_the_contour_is_where_the_linear_interpolation_reaches_the_level(
    inner: float, outer: float, expected: float
) -> None:
    grid = MaskGrid(np.zeros((2, 2)), 1.0, (0.0, 0.0))

    found = grid.crossing(np.array([inner]), np.array([outer]))

    assert found[0] == pytest.approx(expected)
    assert inner + found[0] * (outer - inner) == pytest.approx(LEVEL)


def test_the_contour_stays_away_from_the_nodes() -> None:
    grid = MaskGrid(np.zeros((2, 2)), 1.0, (0.0, 0.0))

    found = grid.crossing(np.array([LEVEL + 1e-6, 1.0]), np.array([0.0, LEVEL - 1e-6]))

    assert found.tolist() == pytest.approx([NEAREST_CROSSING, 1 - NEAREST_CROSSING])


def test_a_mask_of_one_pixel_can_be_sampled() -> None:
    assert sample_mask(np.ones((1, 1), np.float32), resolution=8).inside.any()
