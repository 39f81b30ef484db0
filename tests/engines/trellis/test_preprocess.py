from __future__ import annotations

import numpy as np
import pytest

from pipeline.engines.trellis.preprocess import frame_subject
from pipeline.errors import UnreadableImage


def test_the_subject_fills_five_sixths_of_the_frame_and_the_rest_is_black() -> None:
    view = np.zeros((100, 200, 4), np.uint8)
    view[20:80, 30:90] = (200, 100, 50, 255)

    image = frame_subject(view, size=120)

    lit = np.argwhere(image[..., 0] > 100)  # the filter leaves a faint fringe
    assert image.shape == (120, 120, 3)
    assert np.ptp(lit, axis=0).tolist() == pytest.approx([100, 100], abs=6)
    assert image[60, 60].tolist() == [200, 100, 50]


def test_a_picture_without_a_solid_pixel_is_refused() -> None:
    view = np.full((10, 10, 4), 204, np.uint8)

    with pytest.raises(UnreadableImage, match="no pixel has an alpha above 204"):
        frame_subject(view, size=56)


def test_a_single_pixel_is_refused() -> None:
    view = np.zeros((10, 10, 4), np.uint8)
    view[4, 4] = 255

    with pytest.raises(UnreadableImage, match="a single pixel"):
        frame_subject(view, size=56)


@pytest.mark.parametrize("ratio", [0.5, 0.7, 1.0])
def test_the_subject_fills_the_share_of_the_frame_that_is_asked_for(ratio: float) -> None:
    view = np.zeros((300, 300, 4), np.uint8)
    view[50:250, 100:180] = (200, 100, 50, 255)

    image = frame_subject(view, size=120, ratio=ratio)

    lit = np.argwhere(image[..., 0] > 100)
    assert np.ptp(lit[:, 0]) + 1 == pytest.approx(ratio * 120, abs=2)
