"""PNG, JPEG and WebP files without what is not needed for their pixels, and those that end a little too early.

Metadata never decides over pixels: text, EXIF, XMP and profiles may be damaged, too large or cut, and the pixels are
read all the same. Knows nothing of decoding to colours.
"""

from __future__ import annotations

import io
import re
import struct
import zlib
from collections.abc import Iterator

import numpy as np
from PIL import Image

from pipeline.imaging.signatures import JPEG, PNG, WEBP, ImageFormat

MIN_SHARE = 0.98
"""Of a cut image's pixels that must be there: the last rows of a photograph are not what makes it one."""
MAX_PROFILE_BYTES = 8 << 20
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PNG_PIXELS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")
_JPEG_TABLE = re.compile(b"\xff[\xdb\xc4\xc0-\xc2]")
_WEBP_CHUNKS = (b"VP8 ", b"VP8L", b"VP8X", b"ALPH", b"ANIM", b"ANMF", b"ICCP", b"EXIF")
_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
"""Of PNG's colour types."""


def without_metadata(content: bytes, kind: ImageFormat, *, keep_orientation: bool = True) -> bytes:
    """The file with the parts alone that its pixels, its profile and its orientation are read from.

    A PNG's colour is not among them, see `png_colour_chunks`.

    Args:
        keep_orientation: and the profile; False leaves the pixels alone.
    """
    if kind is PNG:
        return _png_of(content, keep_orientation=keep_orientation)
    if kind is JPEG:
        return _jpeg_of(content, keep_orientation=keep_orientation)
    if kind is WEBP:
        return _webp_of(content, keep_orientation=keep_orientation)
    return content


def completed(content: bytes, kind: ImageFormat, *, max_pixels: int) -> bytes | None:
    """A PNG or JPEG that ends too early, with an end; None if less than `MIN_SHARE` of its pixels is there.

    Args:
        max_pixels: of a PNG, whose rows are all in memory for this; None is returned for one with more.
    """
    if kind is PNG:
        return _completed_png(content, max_pixels=max_pixels)
    if kind is JPEG:
        return _completed_jpeg(content)
    return None


def png_colour_chunks(content: bytes) -> dict[bytes, bytes]:
    """The chunks of a PNG before its pixels that say which colours they are: cICP, iCCP (decoded), sRGB, gAMA, cHRM."""
    found: dict[bytes, bytes] = {}
    for name, data, is_whole in _png_chunks(content):
        if name == b"IDAT":
            break
        if name in (b"cICP", b"sRGB", b"gAMA", b"cHRM") and is_whole:
            found.setdefault(name, data)
        elif name == b"iCCP" and is_whole:
            profile = _png_profile(data)
            if profile:
                found.setdefault(name, profile)
    return found


def _png_profile(data: bytes) -> bytes | None:
    _, _, compressed = data.partition(b"\0")
    inflate = zlib.decompressobj()
    try:
        profile = inflate.decompress(compressed[1:], MAX_PROFILE_BYTES)
    except zlib.error:
        return None
    return profile if inflate.eof else None


def _png_chunks(content: bytes) -> Iterator[tuple[bytes, bytes, bool]]:
    """Name, data and whether the check sum is right, of each chunk; the last may be cut."""
    at = len(PNG_SIGNATURE)
    while at + 8 <= len(content):
        length, name = struct.unpack_from(">I4s", content, at)
        data = content[at + 8 : at + 8 + length]
        is_whole = content[at + 8 + length : at + 12 + length] == struct.pack(">I", zlib.crc32(data, zlib.crc32(name)))
        yield name, data, is_whole
        if name == b"IEND":
            return
        at += 12 + length


def _png_chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(data, zlib.crc32(name)))


def _png_of(content: bytes, *, keep_orientation: bool) -> bytes:
    """Damaged chunks of pixels stay damaged: what is wrong with them is the decoder's to say."""
    kept = [PNG_SIGNATURE]
    at, has_orientation = len(PNG_SIGNATURE), not keep_orientation
    for name, data, is_whole in _png_chunks(content):
        end = at + 12 + len(data)
        if name in _PNG_PIXELS:
            kept.append(content[at:end])
        elif name == b"eXIf" and is_whole and not has_orientation:
            kept.append(content[at:end])
            has_orientation = True
        at = end
    return b"".join(kept)


def _completed_png(content: bytes, *, max_pixels: int) -> bytes | None:
    chunks = list(_png_chunks(content))
    if not chunks or chunks[0][0] != b"IHDR" or len(chunks[0][1]) != 13 or not chunks[0][2]:
        return None
    if any(not is_whole for name, _, is_whole in chunks[:-1] if name in _PNG_PIXELS):
        return None  # damaged, not cut
    width, height, depth, colour, _, _, interlace = struct.unpack(">IIBBBBB", chunks[0][1])
    if interlace or colour not in _CHANNELS or width * height > max_pixels:
        return None
    row_bytes = 1 + (width * depth * _CHANNELS[colour] + 7) // 8
    inflate = zlib.decompressobj()
    try:
        rows = inflate.decompress(b"".join(data for name, data, _ in chunks if name == b"IDAT"), row_bytes * height)
    except zlib.error:
        return None
    have = len(rows) // row_bytes
    if have < MIN_SHARE * height or have == 0:
        return None
    # A missing row repeats the one above: filter type 2 (up) and no difference.
    rows = rows[: have * row_bytes] + (b"\2" + bytes(row_bytes - 1)) * (height - have)
    kept = [PNG_SIGNATURE, *(_png_chunk(name, data) for name, data, _ in chunks if name not in (b"IDAT", b"IEND"))]
    return b"".join([*kept, _png_chunk(b"IDAT", zlib.compress(rows, 1)), _png_chunk(b"IEND", b"")])


def _jpeg_of(content: bytes, *, keep_orientation: bool) -> bytes:
    """Keeps the tables, frames and scans, Adobe's colour transform, and the profile and EXIF if wanted.

    A segment of metadata whose length leads nowhere is skipped up to the next marker that begins a table or frame.
    """
    kept, at = [content[:2]], 2
    while at + 4 <= len(content):
        if content[at] != 0xFF:
            at = _next_table(content, at)
            continue
        marker = content[at + 1]
        if marker == 0xFF:
            at += 1
            continue
        end = at + 2 + int.from_bytes(content[at + 2 : at + 4], "big")
        if marker == 0xDA:
            kept.append(content[at:])
            break
        is_metadata = 0xE0 <= marker <= 0xEF or marker == 0xFE
        if is_metadata and content[end : end + 1] != b"\xff":
            at = _next_table(content, at + 2)
            continue
        if not is_metadata or _is_jpeg_colour(content[at:end]) or (keep_orientation and _is_wanted(content[at:end])):
            kept.append(content[at:end])
        at = end
    return b"".join(kept)


def _next_table(content: bytes, begin: int) -> int:
    """Where the next quantisation or Huffman table or frame header begins."""
    found = _JPEG_TABLE.search(content, begin)
    return len(content) if found is None else found.start()


def _is_jpeg_colour(segment: bytes) -> bool:
    return segment[1] == 0xEE and segment[4:9] == b"Adobe" and len(segment) >= 16


def _is_wanted(segment: bytes) -> bool:
    return segment[4:10] == b"Exif\0\0" or segment[4:16] == b"ICC_PROFILE\0"


def _webp_of(content: bytes, *, keep_orientation: bool) -> bytes:
    """Keeps the chunks that the format defines: others, and what follows the file, are ignored by all readers."""
    unwanted = () if keep_orientation else (b"EXIF", b"ICCP")
    kept, at = [b"WEBP"], 12
    while at + 8 <= len(content):
        name, length = struct.unpack_from("<4sI", content, at)
        end = at + 8 + length + length % 2
        if end > len(content) and name in (b"XMP ", b"EXIF", b"ICCP"):
            break
        if name == b"VP8X" and length >= 10:
            gone = 0x04 if keep_orientation else 0x2C  # the flags of XMP, EXIF and the profile
            kept.append(content[at : at + 8] + bytes((content[at + 8] & ~gone,)) + content[at + 9 : end])
        elif name in _WEBP_CHUNKS and name not in unwanted:
            kept.append(content[at:end])
        at = end
    body = b"".join(kept)
    return b"RIFF" + struct.pack("<I", len(body)) + body


def _completed_jpeg(content: bytes) -> bytes | None:
    """With an end marker, if the pixels hardly depend on what might come before it.

    Two different continuations are decoded: where their pixels differ, the file does not say what they are.
    """
    if not _has_all_scans(content):
        return None
    body = content[:-1] if content.endswith(b"\xff") else content
    length = len(body) // 2 + 4096
    continuations = (bytes(length), bytes((0x5B, 0xA7, 0x36, 0xE9)) * (length // 4))
    first, second = (_small_pixels(body + more + b"\xff\xd9") for more in continuations)
    differs = (np.abs(first.astype(np.int16) - second) > 4).any(axis=-1)
    return body + b"\xff\xd9" if 1 - differs.mean() >= MIN_SHARE else None


def _small_pixels(content: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(content), formats=["JPEG"]) as image:
        image.draft("RGB", (256, 256))
        return np.asarray(image.convert("RGB"))


def _has_all_scans(content: bytes) -> bool:
    """Whether the scan headers of a JPEG name every coefficient of every component to its last bit (ITU-T T.81, G).

    Where it has restart markers, behind which any continuation decodes alike, it must be one scan with nearly all of
    them.
    """
    left: dict[int, np.ndarray] = {}
    scans = restart_mcus = mcus = 0
    at = 2
    while at + 4 <= len(content):
        if content[at] != 0xFF or content[at + 1] in (0x00, 0xFF, *range(0xD0, 0xD8)):
            at = content.find(b"\xff", at + 1)
            if at < 0:
                break
            continue
        marker, end = content[at + 1], at + 2 + int.from_bytes(content[at + 2 : at + 4], "big")
        segment = content[at + 4 : end]
        if marker in (0xC0, 0xC1, 0xC2, 0xC9, 0xCA) and len(segment) >= 6:
            left = {segment[6 + 3 * k]: np.full(64, 99) for k in range(segment[5]) if 6 + 3 * k < len(segment)}
            mcus = _mcus(segment)
        elif marker == 0xDD:
            restart_mcus = int.from_bytes(segment[:2], "big")
        elif marker == 0xDA and len(segment) >= 4:
            scans += 1
            if restart_mcus:
                restarts = sum(content.count(bytes((0xFF, number)), end) for number in range(0xD0, 0xD8))
                if scans > 1 or (restarts + 1) * restart_mcus < MIN_SHARE * mcus:
                    return False
            first, last, bits = segment[-3], segment[-2], segment[-1] & 15
            for k in range(segment[0]):
                if 1 + 2 * k < len(segment) and segment[1 + 2 * k] in left:
                    left[segment[1 + 2 * k]][first : last + 1] = bits
        at = end
    return bool(left) and all((bits == 0).all() for bits in left.values())


def _mcus(frame: bytes) -> int:
    """The number of a JPEG's minimum coded units, from its frame header without marker and length."""
    height, width = struct.unpack_from(">HH", frame, 1)
    samplings = frame[7::3] if frame[5] > 1 else b"\x11"
    across = max((sampling >> 4 for sampling in samplings), default=1) or 1
    down = max((sampling & 15 for sampling in samplings), default=1) or 1
    return -(-width // (8 * across)) * -(-height // (8 * down))
