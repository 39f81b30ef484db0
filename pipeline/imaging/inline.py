"""Images inside a request, data URIs and base64: decoding to bytes, and a check of the file signature.

Imports no image decoder, so that the web process can refuse unreadable input at once. Knows nothing of requests.
"""

from __future__ import annotations

import base64
import binascii
from urllib.parse import unquote_to_bytes

from pipeline.errors import InvalidRequest, UnreadableImage
from pipeline.net.egress import MAX_BYTES

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
        raise UnreadableImage(f"the image is larger than {MAX_BYTES // 2**20} MiB")
    return content


def _from_data_uri(uri: str) -> bytes:
    head, comma, content = uri.partition(",")
    if not comma:
        raise InvalidRequest("image is a data URI without a comma; data:image/png;base64,… is accepted")
    if head.lower().endswith(";base64"):
        return _from_base64(unquote_to_bytes(content).decode("latin-1"))
    return at_most(unquote_to_bytes(content))


def _from_base64(text: str) -> bytes:
    """Standard or URL-safe base64, with or without line breaks and padding."""
    compact = "".join(text.split()).translate(str.maketrans("-_", "+/")).rstrip("=")
    if len(compact) > (MAX_BYTES * 4) // 3 + 4:
        raise UnreadableImage(f"the image is larger than {MAX_BYTES // 2**20} MiB")
    try:
        return base64.b64decode(compact + "=" * (-len(compact) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise InvalidRequest("image is neither an http(s) URL, nor a data URI, nor base64") from None
