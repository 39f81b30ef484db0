"""Undoes HTTP content encodings, within a bound on the result. Knows nothing of requests.

A compressed body of 20 KB may hold 20 MB of zeros, and two encodings on top of each other multiply. So every step stops
as soon as its output is longer than the caller accepts.

Source: RFC 9110 section 8.4; RFC 1950 to 1952 (deflate, gzip), RFC 7932 (br), RFC 8878 (zstd).
"""

from __future__ import annotations

import io
import zlib
from collections.abc import Callable

MAX_ENCODINGS = 4
GZIP_MAGIC = b"\x1f\x8b"
ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"

NOT_ENCODINGS = frozenset({"", "identity", "none", "utf-8", "aws-chunked", "binary"})
"""What stands in the header of objects that are not encoded at all: uploads of S3 clients keep `aws-chunked` there."""


class UnknownEncoding(ValueError):
    """A content encoding that is not read; the message is its name."""


class BadEncoding(ValueError):
    """The body is not what its content encoding says, or ends too early."""


class TooLong(ValueError):
    """The decoded body is longer than the bound."""


def decode_content(content: bytes, encodings: str, *, max_bytes: int) -> bytes:
    """A body without the encodings that its `Content-Encoding` header lists.

    A body that does not begin as its encoding demands is returned as it is: the header of a stored object is often
    wrong, and the content itself decides.

    Raises:
        UnknownEncoding: an encoding is not one of gzip, deflate, br and zstd.
        BadEncoding: the body is damaged.
        TooLong: the result, or one step of it, is longer than `max_bytes`.
    """
    names = [name for part in encodings.split(",") if (name := part.strip().lower()) not in NOT_ENCODINGS]
    if len(names) > MAX_ENCODINGS:
        raise UnknownEncoding(f"{len(names)} encodings on top of each other")
    for name in reversed(names):
        decode = _DECODERS.get(name)
        if decode is None:
            raise UnknownEncoding(name[:20] if name.isascii() and name.isprintable() else "of another name")
        content = decode(content, max_bytes)
        if len(content) > max_bytes:
            raise TooLong
    return content


def _gzip(content: bytes, max_bytes: int) -> bytes:
    if not content.startswith(GZIP_MAGIC):
        return content
    decoded = bytearray()
    while content.startswith(GZIP_MAGIC) and len(decoded) <= max_bytes:  # a gzip file may have several members
        member, content = _inflate(content, max_bytes - len(decoded), wbits=zlib.MAX_WBITS | 16)
        decoded += member
    return bytes(decoded)


def _deflate(content: bytes, max_bytes: int) -> bytes:
    """The zlib format or, as some servers send it, bare deflate data."""
    is_zlib = len(content) > 1 and content[0] & 0x0F == 8 and int.from_bytes(content[:2]) % 31 == 0
    return _inflate(content, max_bytes, wbits=zlib.MAX_WBITS if is_zlib else -zlib.MAX_WBITS)[0]


def _inflate(content: bytes, max_bytes: int, *, wbits: int) -> tuple[bytes, bytes]:
    """The decoded data, at most one byte more than `max_bytes`, and what follows the end of the encoded data."""
    decoder = zlib.decompressobj(wbits)
    try:
        decoded = decoder.decompress(content, max_bytes + 1)
    except zlib.error as error:
        raise BadEncoding from error
    if len(decoded) <= max_bytes and not decoder.eof:
        raise BadEncoding
    return decoded, decoder.unused_data


def _brotli(content: bytes, max_bytes: int) -> bytes:
    import brotli

    decoder = brotli.Decompressor()
    decoded = bytearray()
    try:
        decoded += decoder.process(content, output_buffer_limit=max_bytes + 1)
        while len(decoded) <= max_bytes and not decoder.is_finished():
            piece = decoder.process(b"", output_buffer_limit=max_bytes + 1)
            if not piece:
                raise BadEncoding
            decoded += piece
    except brotli.error as error:
        raise BadEncoding from error
    return bytes(decoded)


def _zstd(content: bytes, max_bytes: int) -> bytes:
    import zstandard

    if not content.startswith(ZSTD_MAGIC):
        return content
    reader = zstandard.ZstdDecompressor(max_window_size=8 << 20).stream_reader(
        io.BytesIO(content), read_across_frames=True
    )
    try:
        return reader.read(max_bytes + 1)
    except zstandard.ZstdError as error:
        raise BadEncoding from error


_DECODERS: dict[str, Callable[[bytes, int], bytes]] = {
    "gzip": _gzip,
    "x-gzip": _gzip,
    "deflate": _deflate,
    "br": _brotli,
    "zstd": _zstd,
}
ACCEPTED_ENCODINGS = "identity, gzip;q=0.5, deflate;q=0.5, br;q=0.5, zstd;q=0.5"
"""The header `Accept-Encoding`: images are compressed already, so that none is preferred."""
