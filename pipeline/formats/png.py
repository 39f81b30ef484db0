"""PNG images. Equal pixels give equal bytes."""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image


def png_bytes(pixels: NDArray[np.uint8]) -> bytes:
    """Encode pixels, (H, W), (H, W, 3) or (H, W, 4) uint8, as grey, RGB or RGBA."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=6)
    return buffer.getvalue()
