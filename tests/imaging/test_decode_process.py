"""Images that hold or take down a decoder do so in another process, and the caller gets a sentence."""

from __future__ import annotations

import io
import os
import signal
import struct
import threading
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.errors import Cancelled, DecoderLost, UnreadableImage
from pipeline.imaging.decode import MAX_SIDE, decode_image
from pipeline.imaging.decode_process import DecodeProcess


def encoded(image: Image.Image, form: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


SMALL = encoded(Image.fromarray(np.arange(64 * 48 * 4, dtype=np.uint32).astype(np.uint8).reshape(48, 64, 4)), "PNG")


def many_scans(scans: int, *, side: int) -> bytes:
    """A progressive JPEG whose last refinement scan is repeated: each goes over all coefficients of the image."""
    content = encoded(Image.new("L", (side, side), 90), "JPEG", progressive=True)
    last = content.rindex(b"\xff\xda")
    return content[:last] + content[last:-2] * scans + content[-2:]


def png_of_zeros(side: int) -> bytes:
    """A few kilobytes that hold `side`² pixels of 16-bit grey."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = struct.pack(">IIBBBBB", side, side, 16, 0, 0, 0, 0)
    rows = zlib.compress(bytes((1 + 2 * side) * side), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


@pytest.fixture(scope="module")
def decoder() -> Iterator[DecodeProcess]:
    decoder = DecodeProcess(cpu_s=1, memory_bytes=256 << 20)
    yield decoder
    decoder.close()


def test_another_process_decodes_to_the_same_pixels(decoder: DecodeProcess) -> None:
    for _ in range(2):
        decoded = decoder.decode(SMALL)
        assert (decoded == decode_image(SMALL)).all()
        decoded[0, 0] = 7  # stages may write into it


def test_the_refusals_are_those_of_the_decoder(decoder: DecodeProcess) -> None:
    for bad in (b"", b"nonsense", SMALL[:-40], SMALL[:80]):
        with pytest.raises(UnreadableImage) as here:
            decode_image(bad)
        with pytest.raises(UnreadableImage) as there:
            decoder.decode(bad)
        assert str(there.value) == str(here.value)


def test_an_image_that_takes_too_long_is_the_callers_error(decoder: DecodeProcess) -> None:
    bomb = many_scans(4000, side=2000)
    assert len(bomb) < 4_000_000

    with pytest.raises(UnreadableImage, match=r"^the image takes more than 1 s of computing time to decode"):
        decoder.decode(bomb)

    assert decoder.decode(SMALL).shape == (48, 64, 4)


def test_an_image_that_takes_too_much_memory_is_the_callers_error(decoder: DecodeProcess) -> None:
    with pytest.raises(UnreadableImage, match=r"^the image needs more than 256 MiB of memory to decode$"):
        decoder.decode(png_of_zeros(6000))

    assert decoder.decode(SMALL).shape == (48, 64, 4)


def test_a_cancellation_reaches_a_decoder_at_once() -> None:
    decoder, is_cancelled = DecodeProcess(cpu_s=60), threading.Event()
    decoder.decode(SMALL)
    threading.Timer(0.3, is_cancelled.set).start()
    cpu_before = time.process_time()

    with pytest.raises(Cancelled):
        decoder.decode(many_scans(4000, side=2000), is_cancelled=is_cancelled.is_set)

    assert time.process_time() - cpu_before < 1  # nothing of it ran here
    assert decoder.decode(SMALL).shape == (48, 64, 4)
    decoder.close()


@pytest.mark.parametrize(("number", "words"), [(signal.SIGSEGV, "its decoder crashed"), (signal.SIGKILL, "was ended")])
def test_a_crash_is_the_images_fault_and_a_kill_is_ours(number: signal.Signals, words: str) -> None:
    decoder = DecodeProcess(cpu_s=60)
    has_ended = threading.Event()

    def end_the_forks() -> None:
        while not has_ended.is_set():
            for child in _forks_of(decoder):
                os.kill(child, number)
            time.sleep(0.02)

    thread = threading.Thread(target=end_the_forks)
    thread.start()
    try:
        with pytest.raises((UnreadableImage, DecoderLost), match=words) as failed:
            decoder.decode(many_scans(4000, side=2000))
    finally:
        has_ended.set()
        thread.join()
        decoder.close()
    assert failed.value.retryable is (number is signal.SIGKILL)


def _forks_of(decoder: DecodeProcess) -> list[int]:
    process = decoder._process
    if process is None:
        return []
    try:
        return [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]
    except FileNotFoundError:
        return []


def test_the_decoder_knows_no_secret_of_the_service(decoder: DecodeProcess) -> None:
    decoder.decode(SMALL)
    assert decoder._process is not None

    environment = Path(f"/proc/{decoder._process.pid}/environ").read_bytes()

    assert set(environment.strip(b"\0").split(b"\0")) == {b"OPENBLAS_NUM_THREADS=1", b"OMP_NUM_THREADS=1"}


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_a_large_image_is_shrunk_to_what_a_job_uses(mode: str) -> None:
    image = Image.new(mode, (MAX_SIDE + 904, 50), (200, 10, 30, 255)[: len(mode)])
    if mode == "RGBA":
        image.paste((0, 255, 0, 0), (0, 0, 2500, 50))  # transparent, of another colour

    decoded = decode_image(encoded(image, "PNG"))

    assert decoded.shape == (41, MAX_SIDE, 4)
    opaque = decoded[..., 3] > 100
    assert (decoded[opaque][:, :3] == (200, 10, 30)).all()
    assert opaque.all() == (mode == "RGB")
