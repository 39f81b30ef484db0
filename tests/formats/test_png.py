"""PNG: read back by Pillow, pixel for pixel."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from pipeline.formats.png import png_bytes


@pytest.mark.parametrize(
    ("shape", "mode"), [((5, 7), "L"), ((5, 7, 3), "RGB"), ((5, 7, 4), "RGBA"), ((1, 1, 3), "RGB")]
)
def test_pillow_reads_back_the_pixels(shape: tuple[int, ...], mode: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)

    data = png_bytes(pixels)

    image = Image.open(io.BytesIO(data))
    assert image.format == "PNG" and image.mode == mode
    assert np.array_equal(np.asarray(image), pixels)
    assert png_bytes(pixels) == data
