"""Frames as an mp4 that browsers play: H.264, yuv420p, its index in front. The same frames give the same bytes."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from pathlib import Path

import imageio_ffmpeg
import numpy as np
from numpy.typing import NDArray

# Constant quality; nothing in the file that differs from one encoding to the next.
OUTPUT = ["-crf", "20", "-preset", "medium", "-movflags", "+faststart", "-map_metadata", "-1"]
REPEATABLE = ["-fflags", "+bitexact", "-flags:v", "+bitexact", "-threads", "1"]


def encode_mp4(frames: Iterable[NDArray[np.uint8]], *, fps: int, width: int, height: int) -> bytes:
    """Encode frames as they come; one at a time is in memory.

    Args:
        frames: (height, width, 3) uint8 sRGB each.
        width, height: even, as yuv420p wants them.

    Raises:
        ValueError: a side is odd, a frame has another shape, or there is none.
    """
    if width % 2 or height % 2:
        raise ValueError(f"the sides of a video must be even, got {width} × {height}")
    with tempfile.TemporaryDirectory(prefix="image-to-3d-") as folder:
        path = Path(folder) / "video.mp4"
        writer = imageio_ffmpeg.write_frames(
            str(path),
            (width, height),
            fps=fps,
            codec="libx264",
            quality=None,  # type: ignore[arg-type]  # None leaves the choice to -crf
            pix_fmt_in="rgb24",
            pix_fmt_out="yuv420p",
            macro_block_size=2,
            output_params=OUTPUT + REPEATABLE,
        )
        writer.send(None)
        count = 0
        try:
            for frame in frames:
                if frame.shape != (height, width, 3) or frame.dtype != np.uint8:
                    raise ValueError(f"a frame is {frame.shape} {frame.dtype}, not ({height}, {width}, 3) uint8")
                writer.send(np.ascontiguousarray(frame))
                count += 1
        finally:
            writer.close()
        if count == 0:
            raise ValueError("a video needs at least one frame")
        return path.read_bytes()
