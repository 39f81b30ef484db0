from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageDraw
from scipy import ndimage

from pipeline.engines.preview.mask_grid import sample_mask
from pipeline.engines.preview.subject_image import crop_subject, have_common_frame, sample_bilinear
from pipeline.imaging.decode import MAX_SIDE


def view_of(rows: slice, columns: slice, *, side: int = 20, colour: int = 200) -> np.ndarray:
    view = np.zeros((side, side, 4), np.uint8)
    view[rows, columns] = (colour, colour, colour, 255)
    return view


def test_a_view_is_cropped_to_its_subject() -> None:
    image = crop_subject(view_of(slice(4, 10), slice(5, 8)), max_side_px=100, is_axis_known=False)

    assert image.alpha.shape == (6, 3)
    assert image.centre_px == (1.5, 3.0)
    assert image.unit_px == 6.0


def test_a_known_axis_is_in_the_middle_of_the_frame() -> None:
    image = crop_subject(view_of(slice(4, 10), slice(5, 8)), max_side_px=100, is_axis_known=True)

    assert image.centre_px == (10 - 5, 10 - 4)
    assert image.unit_px == 20.0


def test_a_large_subject_is_shrunk_with_its_lengths() -> None:
    image = crop_subject(view_of(slice(0, 20), slice(0, 10)), max_side_px=10, is_axis_known=False)

    assert image.alpha.shape == (10, 5)
    assert (image.centre_px, image.unit_px) == ((2.5, 5.0), 10.0)


def test_pixels_mixed_with_the_background_take_the_colour_of_the_nearest_pure_pixel() -> None:
    view = view_of(slice(4, 10), slice(4, 10))
    view[4:10, 9] = (0, 0, 0, 130)

    image = crop_subject(view, max_side_px=100, is_axis_known=False)

    np.testing.assert_allclose(image.colours, 200 / 255, atol=1e-6)


def test_views_have_a_common_frame_if_size_and_height_agree() -> None:
    tall, short = view_of(slice(0, 20), slice(5, 8)), view_of(slice(5, 10), slice(5, 8))

    assert have_common_frame([tall, tall[:, ::-1]])
    assert not have_common_frame([tall])
    assert not have_common_frame([tall, short])
    assert not have_common_frame([tall, view_of(slice(0, 20), slice(5, 8), side=24)])


@pytest.mark.parametrize("channels", [(), (3,)])
def test_bilinear_samples_equal_the_reference_implementation_in_float64(channels: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    image = rng.random((5, 7, *channels)).astype(np.float32)
    x, y = rng.uniform(-1, 8, 30), rng.uniform(-1, 6, 30)

    found = sample_bilinear(image, x, y)

    for row in range(30):
        u, v = np.clip(x[row] - 0.5, 0, 6), np.clip(y[row] - 0.5, 0, 4)
        expected = sum(
            max(0.0, 1 - abs(u - column)) * max(0.0, 1 - abs(v - line)) * image[line, column].astype(np.float64)
            for column in range(7)
            for line in range(5)
        )
        np.testing.assert_allclose(found[row], expected, atol=1e-5)


def test_an_image_of_one_pixel_is_constant_and_no_positions_give_no_samples() -> None:
    image = np.full((1, 1), 0.25, np.float32)

    assert sample_bilinear(image, np.array([-3.0, 0.5, 9.0]), np.zeros(3)).tolist() == [0.25] * 3
    assert sample_bilinear(image, np.zeros(0), np.zeros(0)).shape == (0,)


@pytest.mark.parametrize("resolution", [64, 256, 512])
def test_lines_of_a_pixel_in_the_largest_image_reach_the_grid(resolution: int) -> None:
    """Shrunk to a quarter, such a line covers a quarter of a pixel, and less where it slants."""
    mask = Image.new("L", (MAX_SIDE, MAX_SIDE))
    pen, centre = ImageDraw.Draw(mask), MAX_SIDE / 2
    for angle in np.arange(24) * np.pi / 12 + 0.05:
        end = (centre + 0.98 * centre * np.cos(angle), centre + 0.98 * centre * np.sin(angle))
        pen.line((centre, centre, *end), fill=255, width=1)
    pen.ellipse((centre * 0.9, centre * 0.9, centre * 1.1, centre * 1.1), fill=255)
    view = np.full((MAX_SIDE, MAX_SIDE, 4), 90, np.uint8)
    view[..., 3] = np.asarray(mask)

    grid = sample_mask(crop_subject(view, max_side_px=1024, is_axis_known=False).alpha, resolution=resolution)

    assert ndimage.label(grid.inside, np.ones((3, 3)))[1] == 1
    rows, columns = np.nonzero(grid.inside)
    assert min(np.ptp(rows), np.ptp(columns)) * grid.cell_m > 0.96


def test_the_edge_of_a_wide_part_is_not_widened_when_the_image_is_shrunk() -> None:
    view = np.full((4000, 4000, 4), 90, np.uint8)
    view[..., 3] = 255 * (np.hypot(*(np.mgrid[:4000, :4000] - 1999.5)) < 1990)

    alpha = crop_subject(view, max_side_px=1000, is_axis_known=False).alpha

    assert alpha.sum() == pytest.approx(np.pi * 500**2, rel=2e-3)
