"""Images of textures in their formats: the error, what is kept, the bytes."""

from __future__ import annotations

import io

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from pipeline.formats.texture import LEAST_PSNR_DB, encode_image, psnr_db
from schemas.formats import TEXTURE_FORMATS, TextureFormat

SIDE = 256
LOSSY: tuple[TextureFormat, ...] = ("jpeg", "webp")


def painted(seed: int = 0) -> NDArray[np.uint8]:
    """Blobs of colour with grey grain."""
    rng = np.random.default_rng(seed)
    coarse = cv2.resize(rng.random((12, 12, 3)).astype(np.float32), (SIDE, SIDE), interpolation=cv2.INTER_CUBIC)
    return np.clip(coarse * 255 + rng.normal(0, 6, (SIDE, SIDE, 1)), 0, 255).astype(np.uint8)


def circle() -> NDArray[np.bool_]:
    y, x = np.mgrid[-1 : 1 : SIDE * 1j, -1 : 1 : SIDE * 1j]
    return x**2 + y**2 < 0.5


def decoded(content: bytes) -> NDArray[np.uint8]:
    return np.asarray(Image.open(io.BytesIO(content)))


@pytest.mark.parametrize("texture_format", TEXTURE_FORMATS)
def test_a_file_is_of_its_format_and_equal_for_equal_pixels(texture_format: TextureFormat) -> None:
    image = encode_image(painted(), texture_format, shown=circle())

    assert Image.open(io.BytesIO(image.content)).format == texture_format.upper()
    assert image.spec == TEXTURE_FORMATS[texture_format]
    assert image.content == encode_image(painted(), texture_format, shown=circle()).content


@pytest.mark.parametrize("texture_format", LOSSY)
@pytest.mark.parametrize("least", [34.0, LEAST_PSNR_DB])
def test_the_error_over_shown_texels_is_what_is_asked_for_and_not_much_less(
    texture_format: TextureFormat, least: float
) -> None:
    found = decoded(encode_image(painted(), texture_format, shown=circle(), least_psnr_db=least).content)

    assert least <= psnr_db(found[circle()], painted()[circle()]) < least + 3  # the next lower quality falls below


@pytest.mark.parametrize("texture_format", LOSSY)
def test_texels_that_nobody_sees_cost_little(texture_format: TextureFormat) -> None:
    everywhere, seen = (len(encode_image(painted(), texture_format, shown=mask).content) for mask in (None, circle()))

    assert seen < 0.7 * everywhere  # 39 % of the texels are shown


def test_colours_around_shown_texels_stay_for_filters_and_mipmaps() -> None:
    pixels = np.full((SIDE, SIDE, 3), 200, np.uint8)
    pixels[~circle()] = 30  # a chart in one colour; its neighbours' colours would bleed in
    dilated = cv2.dilate(circle().astype(np.uint8), np.ones((9, 9))) > 0
    pixels[dilated] = 200

    found = decoded(encode_image(pixels, "jpeg", shown=circle()).content)

    near = cv2.dilate(circle().astype(np.uint8), np.ones((7, 7))) > 0
    assert np.abs(found[near].astype(int) - 200).max() <= 12


def test_an_image_with_alpha_becomes_a_png_instead_of_a_jpeg() -> None:
    pixels = np.dstack([painted(), np.where(circle(), 255, 0).astype(np.uint8)])

    image = encode_image(pixels, "jpeg")

    assert image.texture_format == "png" and np.array_equal(decoded(image.content), pixels)


def test_a_webp_keeps_alpha_and_the_colours_below_it() -> None:
    pixels = np.dstack([np.full((SIDE, SIDE, 3), 180, np.uint8), np.where(circle(), 255, 0).astype(np.uint8)])

    found = decoded(encode_image(pixels, "webp").content)

    assert np.array_equal(found[..., 3], pixels[..., 3])
    assert np.abs(found[..., :3].astype(int) - 180).max() <= 3


def test_grey_images_and_textures_without_a_shown_texel_are_written() -> None:
    grey = painted()[..., 0]
    assert decoded(encode_image(grey, "jpeg").content).shape == (SIDE, SIDE)
    assert encode_image(painted(), "webp", shown=np.zeros((SIDE, SIDE), bool)).content


def test_an_error_out_of_reach_gets_the_best_quality() -> None:
    best = encode_image(painted(), "jpeg", least_psnr_db=99.0).content
    assert len(best) > len(encode_image(painted(), "jpeg").content)
    assert psnr_db(decoded(best), painted()) > 42
