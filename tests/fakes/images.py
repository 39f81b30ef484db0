"""Images drawn by tests and benchmarks, and their encoding as files."""

from __future__ import annotations

import base64
import io
import struct
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw


def encode(pixels: NDArray[np.uint8] | Image.Image, format: str = "PNG", **options: Any) -> bytes:
    """Encode an image as a file."""
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def bare_png(width: int, height: int) -> bytes:
    """Return a PNG whose header declares a size, with almost no pixel data after it."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 6, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    )


def disc_as_base64() -> str:
    """Return a PNG as base64: 64 x 64, a disc with noise on it, without a background."""
    y, x = np.mgrid[:64, :64]
    noise = np.stack([(x * y * k + x) % 256 for k in (37, 41, 43)], axis=-1)
    alpha = np.where((x - 31.5) ** 2 + (y - 31.5) ** 2 < 28**2, 255, 0)
    return base64.b64encode(encode(np.dstack([noise, alpha]).astype(np.uint8))).decode()


def draw_figure(side: int = 256, *, background: tuple[int, int, int] | None = None) -> NDArray[np.uint8]:
    """Draw a figure with thin legs and two antennae: (side, side, 4) RGBA, transparent unless a background is given."""
    scale = 4
    image = Image.new("RGBA", (side * scale, side * scale), (0, 0, 0, 0))
    pen = ImageDraw.Draw(image)

    def box(left: float, top: float, right: float, bottom: float) -> tuple[float, ...]:
        return tuple(value * side * scale for value in (left, top, right, bottom))

    line = max(1, round(0.02 * side * scale))
    for x in (0.42, 0.58):
        pen.line(box(x, 0.28, x + (x - 0.5) * 0.9, 0.06), fill=(40, 40, 60, 255), width=line)
        pen.line(box(x, 0.7, x + (x - 0.5) * 0.5, 0.95), fill=(60, 40, 40, 255), width=2 * line)
    pen.ellipse(box(0.3, 0.35, 0.7, 0.8), fill=(200, 60, 50, 255))
    pen.ellipse(box(0.36, 0.18, 0.64, 0.44), fill=(240, 190, 60, 255))
    pen.rectangle(box(0.4, 0.5, 0.6, 0.62), fill=(50, 90, 180, 255))
    figure = np.asarray(image.resize((side, side), Image.Resampling.LANCZOS))
    if background is None:
        return figure
    alpha = figure[..., 3:].astype(np.float32) / 255
    colours = figure[..., :3] * alpha + np.array(background, np.float32) * (1 - alpha)
    return np.dstack([colours.round().astype(np.uint8), np.full((side, side), 255, np.uint8)])


def draw_disc(*, red: int = 200) -> NDArray[np.uint8]:
    """Draw a disc with a colour gradient on a transparent background: (64, 64, 4) RGBA."""
    y, x = np.mgrid[:64, :64]
    view = np.zeros((64, 64, 4), np.uint8)
    view[..., 0] = red
    view[..., 1] = 4 * x
    view[..., 2] = 4 * y
    view[..., 3] = 255 * (np.hypot(x - 32, y - 30) < 24)
    return view


def mask_iou(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> float:
    """Return the intersection over union of two masks."""
    return float((first & second).sum() / (first | second).sum())
