from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageDraw
from scipy import ndimage

from pipeline.engines.preview.mask_grid import LEVEL, NEAREST_CROSSING, MaskGrid, sample_mask


def test_the_outermost_nodes_are_outside_and_a_full_mask_is_inside_elsewhere() -> None:
    grid = sample_mask(np.ones((40, 80), np.float32), resolution=16)

    assert not grid.inside[[0, -1]].any() and not grid.inside[:, [0, -1]].any()
    rows, columns = np.nonzero(grid.inside)
    # The contour runs through the border nodes: their values round to either side of the level.
    assert np.ptp(columns) in (14, 15, 16) and np.ptp(rows) in (6, 7, 8)
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


def spokes(side: int, width_px: float) -> np.ndarray:
    """24 spokes and a hub, antialiased: (side, side) float32."""
    scale, image = 4, Image.new("L", (side * 4, side * 4))
    pen, centre = ImageDraw.Draw(image), side * 2
    for angle in np.arange(24) * np.pi / 12 + 0.05:
        end = (centre + 0.98 * centre * np.cos(angle), centre + 0.98 * centre * np.sin(angle))
        pen.line((centre, centre, *end), fill=255, width=round(width_px * scale))
    pen.ellipse((centre * 0.9, centre * 0.9, centre * 1.1, centre * 1.1), fill=255)
    return np.asarray(image.resize((side, side), Image.Resampling.BOX), np.float32) / 255


@pytest.mark.parametrize(("side", "width_px"), [(300, 1.2), (400, 1), (400, 2), (600, 1.5), (1024, 1), (1024, 3)])
@pytest.mark.parametrize("resolution", [64, 100, 256, 400, 512])
def test_thin_spokes_stay_whole_at_every_size_of_image_and_grid(side: int, width_px: float, resolution: int) -> None:
    grid = sample_mask(spokes(side, width_px), resolution=resolution)

    assert ndimage.label(grid.inside, np.ones((3, 3)))[1] == 1
    rows, columns = np.nonzero(grid.inside)
    assert min(np.ptp(rows), np.ptp(columns)) * grid.cell_m > 0.96


@pytest.mark.parametrize("resolution", [64, 90, 128, 256])
def test_parts_that_are_wide_enough_keep_their_contour(resolution: int) -> None:
    alpha = np.zeros((200, 200), np.float32)
    alpha[20:180, 40:160] = 1

    values = sample_mask(alpha, resolution=resolution).values

    assert values.sum() / resolution**2 == pytest.approx(160 * 120 / 200**2, rel=0.01)


def test_a_mask_of_one_pixel_can_be_sampled() -> None:
    assert sample_mask(np.ones((1, 1), np.float32), resolution=8).inside.any()
