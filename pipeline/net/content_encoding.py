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

UNREAD_ENCODINGS = frozenset(
    {"aes128gcm", "bzip2", "compress", "dcb", "dcz", "exi", "lzma", "pack200-gzip", "x-compress", "xz"}
)
"""The registered encodings, and some that servers use, that are not read here. Any other name is no encoding: stored
objects have `aws-chunked`, `utf-8`, `base64` or a media type in that header, and browsers ignore it.
Source: IANA HTTP Content Coding Registry."""


class UnknownEncoding(ValueError):
    """A content encoding that is not read; the message is its name."""


class BadEncoding(ValueError):
    """The body is not what its content encoding says, or ends too early."""


class TooLong(ValueError):
    """The decoded body is longer than the bound."""


def decode_content(content: bytes, encodings: str, *, max_bytes: int) -> bytes:
    """A body without the encodings that its `Content-Encoding` header lists.

    A body that does not begin as its encoding demands is returned as it is: the header of a stored object is often
    wrong, and the content itself decides. So a name that is no encoding counts for nothing.

    Raises:
        UnknownEncoding: an encoding is one of `UNREAD_ENCODINGS`, or there are too many.
        BadEncoding: the body is damaged.
        TooLong: the result, or one step of it, is longer than `max_bytes`.
    """
    for name in reversed(content_encodings(encodings)):
        if name in UNREAD_ENCODINGS:
            raise UnknownEncoding(name)
        content = _DECODERS[name](content, max_bytes)
        if len(content) > max_bytes:
            raise TooLong
    return content


def content_encodings(header: str) -> list[str]:
    """The encodings that a `Content-Encoding` header lists, in its order, without what is none.

    Raises:
        UnknownEncoding: there are more than `MAX_ENCODINGS`.
    """
    names = [part.strip().lower() for part in header.split(",")]
    found = [name for name in names if name in _DECODERS or name in UNREAD_ENCODINGS]
    if len(found) > MAX_ENCODINGS:
        raise UnknownEncoding(f"{len(found)} encodings on top of each other")
    return found


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
    if is_zlib:
        return _inflate(content, max_bytes, wbits=zlib.MAX_WBITS)[0]
    try:
        zlib.decompressobj(-zlib.MAX_WBITS).decompress(content, 1)
    except zlib.error:  # before the first byte
        return content
    return _inflate(content, max_bytes, wbits=-zlib.MAX_WBITS)[0]


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

    try:
        brotli.Decompressor().process(content, output_buffer_limit=1)
    except brotli.error:  # before the first byte
        return content
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
