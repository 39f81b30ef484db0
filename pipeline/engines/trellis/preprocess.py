"""Preprocessing of a foreground image to the square image of the encoder, byte for byte as in the release."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.engines.base import ForegroundImage, GenerationOptions
from pipeline.engines.trellis.spec import IMAGE_LARGE, TINY, EncoderSpec
from pipeline.imaging.subject_crop import crop_to_subject, on_black

FOREGROUND_RATIO = 1 / 1.2  # longer side of the bounding box over side of the frame


def frame_subject(view: NDArray[np.uint8], *, size: int, ratio: float = FOREGROUND_RATIO) -> NDArray[np.uint8]:
    """Crop the subject with a margin, resize it and composite it on black.

    Source: microsoft/TRELLIS@6b0d647, trellis/pipelines/trellis_image_to_3d.py, preprocess_image.

    Args:
        view: (H, W, 4) uint8 RGBA, straight alpha.
        size: side of the result in pixels.
        ratio: longer side of the subject over side of the result.

    Returns:
        (size, size, 3) uint8.

    Raises:
        UnreadableImage: no pixel is above `SOLID_ALPHA`, or the subject is a single pixel.
    """
    crop = crop_to_subject(Image.fromarray(view), ratio=ratio)
    return on_black(crop.resize((size, size), Image.Resampling.LANCZOS))


def prepare(views: Sequence[ForegroundImage], options: GenerationOptions, *, is_tiny: bool) -> list[NDArray[np.uint8]]:
    """Frame views for the image encoder, see `pipeline.engines.registry.prepare_views`: 0.8 MB each instead of 48.

    Returns:
        (S, S, 3) each.
    """
    encoder = (TINY if is_tiny else IMAGE_LARGE).encoder
    assert isinstance(encoder, EncoderSpec)
    return frame_views(views, options, size=encoder.image_size)


def frame_views(views: Sequence[ForegroundImage], options: GenerationOptions, *, size: int) -> list[NDArray[np.uint8]]:
    """Frame the views of a generation; one that is framed already, (size, size, 3), stays as it is."""
    ratio = options.foreground_ratio or FOREGROUND_RATIO
    return [view if view.shape == (size, size, 3) else frame_subject(view, size=size, ratio=ratio) for view in views]
