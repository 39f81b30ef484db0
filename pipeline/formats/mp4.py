"""MP4 that browsers play: H.264, yuv420p, index at the front. Equal frames give equal bytes."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from pathlib import Path

import imageio_ffmpeg
import numpy as np
from numpy.typing import NDArray

# Constant quality; `faststart` moves the index (moov) to the front, so that playback starts before the download ends.
OUTPUT = ["-crf", "20", "-preset", "medium", "-movflags", "+faststart", "-map_metadata", "-1"]
# No encoder version, no date, and one thread: x264's output depends on the number of threads.
REPEATABLE = ["-fflags", "+bitexact", "-flags:v", "+bitexact", "-threads", "1"]


def encode_mp4(frames: Iterable[NDArray[np.uint8]], *, fps: int, width: int, height: int) -> bytes:
    """Encode frames one by one; only one is in memory.

    Args:
        frames: (height, width, 3) uint8 sRGB each.
        fps: frames per second.
        width, height: pixels; even, because yuv420p halves the colour resolution.

    Raises:
        ValueError: a side is odd, a frame has another shape or type, or there is no frame.
    """
    if width % 2 or height % 2:
        raise ValueError(f"the sides of a video must be even, got {width} × {height} pixels")
    with tempfile.TemporaryDirectory(prefix="image-to-3d-") as folder:
        path = Path(folder) / "video.mp4"
        writer = imageio_ffmpeg.write_frames(
            str(path),
            (width, height),
            fps=fps,
            codec="libx264",
            quality=None,  # pyright: ignore[reportArgumentType]  # annotated as float; None leaves the choice to -crf
            pix_fmt_in="rgb24",
            pix_fmt_out="yuv420p",
            macro_block_size=2,
            output_params=OUTPUT + REPEATABLE,
            ffmpeg_log_level="error",  # it shares our stderr: a warning of its own would stand beside our refusals
        )
        writer.send(None)
        count = 0
        try:
            for frame in frames:
                if frame.shape != (height, width, 3) or frame.dtype != np.uint8:
                    raise ValueError(
                        f"frame {count} is {frame.shape} {frame.dtype}; ({height}, {width}, 3) uint8 is expected"
                    )
                writer.send(np.ascontiguousarray(frame))
                count += 1
        finally:
            writer.close()
        if count == 0:
            raise ValueError("a video needs at least one frame, got none")
        return path.read_bytes()
