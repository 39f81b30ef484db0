"""Images inside a request, data URIs and base64: decoding to bytes, and a check of the file signature.

Imports no image decoder, so that the web process can refuse unreadable input at once. Knows nothing of requests.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterator

from pipeline.errors import InvalidRequest, UnreadableImage
from pipeline.imaging.signatures import SIGNATURE_BYTES, require_accepted
from pipeline.net.download import MAX_BYTES

MAX_TEXT_CHARS = MAX_BYTES * 3 // 2
"""Of base64 with its line breaks: 4 characters for 3 bytes, and some for the breaks."""
BASE64_CHARS = 1 << 20
UNQUOTED_CHARS = 1 << 18
"""Of a piece that is percent-decoded at once, about a millisecond, for which other threads wait."""
MAX_HEAD_CHARS = 1024
"""Of a data URI's media type and parameters, for the check that keeps no content."""
MAX_MARK_CHARS = 100
"""Of the end of that head in which `;base64` is looked for."""
_BASE64_MARK = re.compile(r";\s*base64\s*$", re.IGNORECASE)
_STANDARD_ALPHABET = str.maketrans("-_", "+/")


def read_inline(source: str) -> bytes:
    """Decode a data URI or bare base64.

    Raises:
        InvalidRequest: the text is neither.
        UnreadableImage: the content is larger than `MAX_BYTES`.
    """
    if source[:5].lower() == "data:":
        return _from_data_uri(source)
    return _from_base64(source)


def check_inline(source: str) -> None:
    """Check a data URI or bare base64 as `read_inline` and `require_accepted` do, without its content in memory.

    Raises:
        InvalidRequest, UnreadableImage: as these.
    """
    begin = 0
    if source[:5].lower() == "data:":
        head, comma, _ = source[:MAX_HEAD_CHARS].partition(",")
        if not comma or (_is_base64(head) and "%" in source):
            require_accepted(read_inline(source))  # escapes, or an error: rare enough to be read as a whole
            return
        if not _is_base64(head):
            _check_unquoted(source, begin=len(head) + 1)
            return
        begin = len(head) + 1
    beginning = b""
    for piece in _base64_pieces(source, begin=begin):
        beginning = beginning or piece[:SIGNATURE_BYTES]
    require_accepted(beginning)


def at_most(content: bytes) -> bytes:
    """Return the content unchanged.

    Raises:
        UnreadableImage: it is larger than `MAX_BYTES`.
    """
    if len(content) > MAX_BYTES:
        raise UnreadableImage(_too_large())
    return content


def _from_data_uri(uri: str) -> bytes:
    begin = uri.find(",") + 1
    if not begin:
        raise InvalidRequest("image is a data URI without a comma; data:image/png;base64,… is accepted")
    if _is_base64(uri[: begin - 1]):
        return _from_base64(_unquote(uri, begin=begin).decode("latin-1"))
    return at_most(_unquote(uri, begin=begin))


def _is_base64(head: str) -> bool:
    """Whether the part of a data URI before its comma says so; blanks do not count.

    Source: https://fetch.spec.whatwg.org/#data-url-processor.
    """
    return _BASE64_MARK.search(head[-MAX_MARK_CHARS:]) is not None


def _check_unquoted(uri: str, *, begin: int) -> None:
    """Check a data URI's percent-encoded content, which ends at once where its first bytes are those of no image."""
    size_bytes = 0
    for piece in _unquoted_pieces(uri, begin=begin):
        if not size_bytes:
            require_accepted(piece)
        size_bytes += len(piece)
        if size_bytes > MAX_BYTES:
            raise UnreadableImage(_too_large())
    if not size_bytes:
        require_accepted(b"")


def _unquote(text: str, *, begin: int) -> bytes:
    """Percent-decoding of a data URI's content, which begins at a character of it.

    Raises:
        InvalidRequest: a percent sign is followed by something else than two hexadecimal digits.
        UnreadableImage: the decoded bytes are too many for an image, in base64 too.
    """
    decoded = bytearray()
    for piece in _unquoted_pieces(text, begin=begin):
        decoded += piece
        if len(decoded) > MAX_TEXT_CHARS:
            raise UnreadableImage(_too_large())
    return bytes(decoded)


def _unquoted_pieces(text: str, *, begin: int) -> Iterator[bytes]:
    """As `percent_decoded`, with a check of the escapes.

    Raises:
        InvalidRequest: a percent sign is followed by something else than two hexadecimal digits.
    """
    for start, end in _cuts(text, begin=begin):
        piece = text[start:end]
        decoded = _decode(piece)
        # Each escape makes three bytes one. What is none is shortened less, except a line break behind the sign.
        shortened = len(piece.encode()) - len(decoded)
        if "%\n" in piece or "%\r" in piece or shortened != 2 * piece.count("%"):
            raise InvalidRequest("image is a data URI with a percent sign that begins no escape")
        yield decoded


def percent_decoded(text: str, *, begin: int = 0) -> Iterator[bytes]:
    """Percent-decoding, in pieces and in C: `urllib.parse.unquote_to_bytes` makes an object for every escape.

    Args:
        text: every percent sign in it is followed by two hexadecimal digits.
        begin: the first character to decode.
    """
    return (_decode(text[start:end]) for start, end in _cuts(text, begin=begin))


def _cuts(text: str, *, begin: int) -> Iterator[tuple[int, int]]:
    """The pieces of a text, none of which ends in an escape of three characters."""
    start = begin
    while start < len(text):
        end = start + UNQUOTED_CHARS
        end -= next((back for back in (1, 2) if text[end - back : end - back + 1] == "%"), 0) if end < len(text) else 0
        yield start, end
        start = end


def _decode(piece: str) -> bytes:
    """Percent-decoding: quoted-printable is the same escape with another sign."""
    return binascii.a2b_qp(piece.encode().replace(b"=", b"%3D").replace(b"%", b"="))


def _from_base64(text: str) -> bytes:
    """Standard or URL-safe base64, with or without line breaks and padding."""
    return b"".join(_base64_pieces(text))


def _base64_pieces(text: str, *, begin: int = 0) -> Iterator[bytes]:
    """The content of base64 from the character `begin`, in pieces.

    Raises:
        InvalidRequest: it is not base64.
        UnreadableImage: it is larger than `MAX_BYTES`.
    """
    if len(text) - begin > MAX_TEXT_CHARS:
        raise UnreadableImage(_too_large())
    end = len(text)
    while end > begin and (text[end - 1] == "=" or text[end - 1].isspace()):
        end -= 1
    size_bytes, left = 0, ""
    for start in range(begin, end, BASE64_CHARS):
        is_last = start + BASE64_CHARS >= end
        piece = left + "".join(text[start : min(start + BASE64_CHARS, end)].split()).translate(_STANDARD_ALPHABET)
        whole = len(piece) if is_last else len(piece) - len(piece) % 4
        piece, left = piece[:whole], piece[whole:]
        try:
            content = base64.b64decode(piece + "=" * (-len(piece) % 4), validate=True)
        except (binascii.Error, ValueError):
            raise InvalidRequest("image is neither an http(s) URL, nor a data URI, nor base64") from None
        size_bytes += len(content)
        if size_bytes > MAX_BYTES:
            raise UnreadableImage(_too_large())
        yield content


def _too_large() -> str:
    return f"the image is larger than {MAX_BYTES // 2**20} MiB"
