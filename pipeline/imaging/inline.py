"""Images inside a request, data URIs and base64: decoding to bytes, and a check of the file signature.

Imports no image decoder, so that the web process can refuse unreadable input at once. Knows nothing of requests.
"""

from __future__ import annotations

import base64
import binascii
import re

from pipeline.errors import InvalidRequest, UnreadableImage
from pipeline.net.download import MAX_BYTES

MAX_TEXT_CHARS = MAX_BYTES * 3 // 2
"""Of base64 with its line breaks: 4 characters for 3 bytes, and some for the breaks."""
UNQUOTED_CHARS = 1 << 20
_BAD_ESCAPE = re.compile("%(?![0-9A-Fa-f]{2})")
_STANDARD_ALPHABET = str.maketrans("-_", "+/")

ACCEPTED = "PNG, JPEG, WebP, BMP, GIF, TIFF or AVIF"
_BEGINNINGS = (
    b"\x89PNG\r\n\x1a\n",
    b"\xff\xd8\xff",  # JPEG
    b"GIF87a",
    b"GIF89a",
    b"BM",
    *(b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"),  # TIFF and BigTIFF, in both byte orders
)


def read_inline(source: str) -> bytes:
    """Decode a data URI or bare base64.

    Raises:
        InvalidRequest: the text is neither.
        UnreadableImage: the content is larger than `MAX_BYTES`.
    """
    if source[:5].lower() == "data:":
        return _from_data_uri(source)
    return _from_base64(source)


def check_beginning(content: bytes) -> None:
    """Check the file signature.

    Raises:
        UnreadableImage: the content is empty or has no accepted format's signature.
    """
    if not content:
        raise UnreadableImage(f"the image is empty; {ACCEPTED} is accepted")
    is_webp = content[:4] == b"RIFF" and content[8:12] == b"WEBP"
    is_avif_or_heif = content[4:8] == b"ftyp"
    if not (content.startswith(_BEGINNINGS) or is_webp or is_avif_or_heif):
        raise UnreadableImage(f"the file is not a readable image; {ACCEPTED} is accepted")


def at_most(content: bytes) -> bytes:
    """Return the content unchanged.

    Raises:
        UnreadableImage: it is larger than `MAX_BYTES`.
    """
    if len(content) > MAX_BYTES:
        raise UnreadableImage(_too_large())
    return content


def _from_data_uri(uri: str) -> bytes:
    head, comma, content = uri.partition(",")
    if not comma:
        raise InvalidRequest("image is a data URI without a comma; data:image/png;base64,… is accepted")
    if head.lower().endswith(";base64"):
        return _from_base64(_unquote(content).decode("latin-1"))
    return at_most(_unquote(content))


def _unquote(text: str) -> bytes:
    """Percent-decoding, in pieces and in C: `urllib.parse.unquote_to_bytes` makes an object for every escape.

    Raises:
        InvalidRequest: a percent sign is followed by something else than two hexadecimal digits.
        UnreadableImage: the decoded bytes are too many for an image, in base64 too.
    """
    if _BAD_ESCAPE.search(text):
        raise InvalidRequest("image is a data URI with a percent sign that begins no escape")
    decoded = bytearray()
    start = 0
    while start < len(text):
        end = start + UNQUOTED_CHARS
        # An escape of three characters is not cut: the piece ends before it.
        end -= next((back for back in (1, 2) if text[end - back : end - back + 1] == "%"), 0) if end < len(text) else 0
        # Quoted-printable is the same escape with another sign.
        decoded += binascii.a2b_qp(text[start:end].encode().replace(b"=", b"%3D").replace(b"%", b"="))
        if len(decoded) > MAX_TEXT_CHARS:
            raise UnreadableImage(_too_large())
        start = end
    return bytes(decoded)


def _from_base64(text: str) -> bytes:
    """Standard or URL-safe base64, with or without line breaks and padding."""
    if len(text) > MAX_TEXT_CHARS:
        raise UnreadableImage(_too_large())
    compact = "".join(text.split()).translate(_STANDARD_ALPHABET).rstrip("=")
    if len(compact) > (MAX_BYTES * 4) // 3 + 4:
        raise UnreadableImage(_too_large())
    try:
        return base64.b64decode(compact + "=" * (-len(compact) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise InvalidRequest("image is neither an http(s) URL, nor a data URI, nor base64") from None


def _too_large() -> str:
    return f"the image is larger than {MAX_BYTES // 2**20} MiB"
