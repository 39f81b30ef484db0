"""Images of textures as files: PNG keeps every value, JPEG and WebP are small. Equal pixels give equal bytes.

A lossy format gets the lowest quality whose error, over the texels that a surface shows, is small enough; a WebP is
lossless if none is, as its colours have half the resolution. The other texels are made smooth: they are seen by nobody,
and cost as many bytes as the shown ones.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.formats.png import png_bytes
from schemas.formats import TEXTURE_FORMATS, TextureFormat, TextureSpec

LEAST_PSNR_DB = 39.0
"""Peak signal-to-noise ratio of a lossy texture over the texels that are shown: 1 dB above what is asked
of every setting, since decoders differ in rounding."""
QUALITIES = (60, 68, 75, 80, 84, 88, 91, 93, 95, 97, 99)
"""Those that are tried."""
LOSSLESS = 101
"""Of WebP, beyond its highest quality."""
MARGIN_TEXELS = 4
"""Texels around those that are shown which keep their colours: what bilinear filtering and two mipmap levels read."""


@dataclass(frozen=True)
class EncodedImage:
    """An image as a file.

    Attributes:
        content: the file.
        texture_format: its format.
    """

    content: bytes
    texture_format: TextureFormat

    @property
    def spec(self) -> TextureSpec:
        """Its format's MIME type and ending."""
        return TEXTURE_FORMATS[self.texture_format]


def encode_image(
    pixels: NDArray[np.uint8],
    texture_format: TextureFormat,
    *,
    shown: NDArray[np.bool_] | None = None,
    least_psnr_db: float = LEAST_PSNR_DB,
) -> EncodedImage:
    """Encode the image of a texture.

    Args:
        pixels: (H, W), (H, W, 3) or (H, W, 4) uint8: grey, RGB or RGBA.
        texture_format: JPEG has no alpha: an image with alpha becomes a PNG.
        shown: (H, W) which texels a surface shows; None for all.
        least_psnr_db: what a lossy format reaches over those, where its best quality does.
    """
    if texture_format == "png" or (texture_format == "jpeg" and pixels.shape[2:] == (4,)):
        return EncodedImage(png_bytes(pixels), "png")
    encode, qualities = {
        "jpeg": (_jpeg_bytes, QUALITIES),
        "webp": (_webp_bytes, (*QUALITIES, LOSSLESS)),
    }[texture_format]
    if shown is None or not shown.any():
        shown = np.ones(pixels.shape[:2], bool)
    content = _smallest(encode, qualities, _smooth_unseen(pixels, shown), shown, least_psnr_db)
    return EncodedImage(content, texture_format)


def _smallest(
    encode: Callable[[NDArray[np.uint8], int], bytes],
    qualities: Sequence[int],
    pixels: NDArray[np.uint8],
    shown: NDArray[np.bool_],
    least_psnr_db: float,
) -> bytes:
    """The file of the lowest quality that is good enough, else of the highest: halves are tried, as the error falls."""
    low, high = 0, len(qualities) - 1  # the answer lies between them, both included
    files: dict[int, bytes] = {}
    while low < high:
        middle = (low + high) // 2
        files[middle] = encode(pixels, qualities[middle])
        decoded = np.asarray(Image.open(io.BytesIO(files[middle])).convert(Image.fromarray(pixels).mode))
        if psnr_db(pixels[shown], decoded[shown]) >= least_psnr_db:
            high = middle
        else:
            low = middle + 1
    return files[low] if low in files else encode(pixels, qualities[low])


def psnr_db(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> float:
    """Peak signal-to-noise ratio of two equally large arrays of 8-bit values; infinite where they are equal."""
    error = float(np.mean((one.astype(np.float32) - other) ** 2))
    return float("inf") if error == 0 else 10 * np.log10(255**2 / error)


def _jpeg_bytes(pixels: NDArray[np.uint8], quality: int) -> bytes:
    # Full resolution of the chroma: at equal error it needs no more bytes than half the resolution, and small coloured
    # parts keep their colours.
    return _saved(pixels, "JPEG", quality=quality, subsampling="4:4:4", optimize=True, progressive=True)


def _webp_bytes(pixels: NDArray[np.uint8], quality: int) -> bytes:
    # exact: colours under transparent texels are kept, because filtering mixes them in.
    if quality == LOSSLESS:
        return _saved(pixels, "WEBP", lossless=True, method=4, exact=True)
    return _saved(pixels, "WEBP", quality=quality, method=4, exact=True)


def _saved(pixels: NDArray[np.uint8], format_name: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format_name, **options)
    return buffer.getvalue()


def _smooth_unseen(pixels: NDArray[np.uint8], shown: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """The same image, with a smooth transition in the texels that are farther than `MARGIN_TEXELS` from a shown one.

    Each of these gets the mean of the nearest kept texels, at the resolution at which there are some.
    """
    side = 2 * MARGIN_TEXELS + 1
    kept = cv2.dilate(shown.astype(np.uint8), np.ones((side, side), np.uint8)) > 0
    if kept.all():
        return pixels
    levels: list[tuple[NDArray[np.floating], NDArray[np.bool_]]] = [
        (pixels.reshape(*shown.shape, -1).astype(np.float32), kept[..., None])
    ]
    while min(levels[-1][1].shape[:2]) > 1:
        values, is_known = levels[-1]
        share = _halved(is_known.astype(np.float32))
        levels.append((_halved(values * is_known) / np.maximum(share, 1e-6), share > 0))
    filled = levels[-1][0]
    for values, is_known in reversed(levels[:-1]):
        larger = cv2.resize(filled, values.shape[1::-1], interpolation=cv2.INTER_LINEAR).reshape(values.shape)
        filled = np.where(is_known, values, larger)
    return np.clip(filled, 0, 255).round().astype(np.uint8).reshape(pixels.shape)


def _halved(values: NDArray[np.floating]) -> NDArray[np.floating]:
    """Means of 2 x 2 texels: (H, W, C) -> (H / 2, W / 2, C), rounded up."""
    height, width, channels = values.shape
    padded = np.pad(values, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    return padded.reshape((height + 1) // 2, 2, (width + 1) // 2, 2, channels).mean(axis=(1, 3))
