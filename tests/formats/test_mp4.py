"""MP4: decoded by ffmpeg, and the boxes in the order that browsers need."""

from __future__ import annotations

import subprocess
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.formats.mp4 import encode_mp4

WIDTH, HEIGHT = 32, 16


def frames(count: int) -> list[NDArray[np.uint8]]:
    """Plain frames, each in a grey of its own."""
    return [np.full((HEIGHT, WIDTH, 3), 40 + 30 * k, np.uint8) for k in range(count)]


@pytest.mark.parametrize("count", [1, 5])
def test_ffmpeg_decodes_every_frame(tmp_path: Path, count: int) -> None:
    path = tmp_path / "a.mp4"
    path.write_bytes(encode_mp4(frames(count), fps=10, width=WIDTH, height=HEIGHT))

    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-i", str(path), "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    done = subprocess.run(command, capture_output=True, check=True, timeout=60)

    decoded = np.frombuffer(done.stdout, np.uint8).reshape(-1, HEIGHT, WIDTH, 3)
    assert len(decoded) == count
    assert np.abs(decoded.astype(int) - np.stack(frames(count))).max() <= 4  # yuv420p and lossy compression
    stream = next(line for line in done.stderr.decode().splitlines() if "Video: h264" in line)
    assert "yuv420p" in stream and f"{WIDTH}x{HEIGHT}" in stream and "10 fps" in stream


def test_the_index_is_in_front_and_equal_frames_give_equal_bytes() -> None:
    first, second = (encode_mp4(iter(frames(3)), fps=10, width=WIDTH, height=HEIGHT) for _ in range(2))

    assert first == second
    assert first.index(b"moov") < first.index(b"mdat")


def test_bad_frames_are_refused_with_what_was_seen_and_what_is_expected() -> None:
    with pytest.raises(ValueError, match="must be even, got 31 × 16 pixels"):
        encode_mp4([], fps=10, width=31, height=16)
    with pytest.raises(ValueError, match="at least one frame, got none"):
        encode_mp4([], fps=10, width=WIDTH, height=HEIGHT)
    good, bad = frames(1)[0], np.zeros((8, 8, 3), np.uint8)
    with pytest.raises(ValueError, match=r"frame 1 is \(8, 8, 3\) uint8; \(16, 32, 3\) uint8 is expected"):
        encode_mp4([good, bad], fps=10, width=WIDTH, height=HEIGHT)
    with pytest.raises(ValueError, match="float64"):
        encode_mp4([good.astype(np.float64)], fps=10, width=WIDTH, height=HEIGHT)
