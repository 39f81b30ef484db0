"""`Content-Encoding` of requests: gzip and deflate are decoded in steps of bounded size. Knows no limits of bodies."""

from __future__ import annotations

import zlib

from pipeline.errors import InvalidRequest, UnsupportedMediaType
from pipeline.net.content_encoding import UnknownEncoding, content_encodings

CODINGS = ("gzip", "deflate")
STEP_BYTES = 1 << 18
"""The longest piece that is decoded at once."""
MAX_MEMBERS = 64
"""Of one gzip body: each costs far more than its 20 bytes."""
_GZIP_BITS = 16 + zlib.MAX_WBITS


class Decoder:
    """Decodes one body.

    Args:
        coding: one of `CODINGS`.
    """

    def __init__(self, coding: str) -> None:
        self._coding = coding
        self._inflate = zlib.decompressobj(_GZIP_BITS) if coding == "gzip" else None
        self._waiting = b""
        self._members = 1

    def feed(self, piece: bytes) -> None:
        """Take the next encoded bytes."""
        self._waiting += piece
        if self._inflate is None and len(self._waiting) >= 2:
            self._inflate = zlib.decompressobj(zlib.MAX_WBITS if _has_zlib_header(self._waiting) else -zlib.MAX_WBITS)

    def step(self) -> bytes:
        """The next decoded bytes, at most `STEP_BYTES`; none where more encoded ones are needed.

        Raises:
            InvalidRequest: the body is not encoded as it says, or continues after its end.
        """
        while self._inflate is not None and not (self._inflate.eof and not self._begin_next_member()):
            try:
                decoded = self._inflate.decompress(self._waiting, STEP_BYTES)
            except zlib.error:
                raise InvalidRequest(f"the body is not valid {self._coding} data") from None
            self._waiting = self._inflate.unused_data if self._inflate.eof else self._inflate.unconsumed_tail
            if decoded or not self._inflate.eof:
                return decoded
        return b""

    def _begin_next_member(self) -> bool:
        """Whether something follows the end that was reached: a further member (RFC 1952, section 2.2).

        Raises:
            InvalidRequest: the format has no further members, or they are very many.
        """
        self._waiting = self._waiting.lstrip(b"\0")  # some programs pad with zeros, which gzip itself ignores
        if not self._waiting:
            return False
        self._members += 1
        if self._coding != "gzip" or self._members > MAX_MEMBERS:
            raise InvalidRequest(f"the body continues after the end of its {self._coding} data")
        self._inflate = zlib.decompressobj(_GZIP_BITS)
        return True

    def finish(self) -> None:
        """Check that the body is complete.

        Raises:
            InvalidRequest: it is not.
        """
        if self._inflate is None or not self._inflate.eof:
            raise InvalidRequest(f"the body is not valid {self._coding} data: its end is missing")
        self.step()


def decoder_of(header: str) -> Decoder | None:
    """The decoder that a `Content-Encoding` asks for; None for a body that is sent as it is.

    Raises:
        UnsupportedMediaType: another coding, or more than one.
    """
    taken = f"{' and '.join(CODINGS)} are, one at a time"
    try:
        codings = [coding.removeprefix("x-") for coding in content_encodings(header)]
    except UnknownEncoding as error:
        raise UnsupportedMediaType(f"{error} are not taken; {taken}.") from None
    if not codings:
        return None
    if len(codings) > 1 or codings[0] not in CODINGS:
        raise UnsupportedMediaType(f"The content encoding {', '.join(codings)} is not taken; {taken}.")
    return Decoder(codings[0])


def _has_zlib_header(beginning: bytes) -> bool:
    """Whether deflate data has the header of RFC 1950, as HTTP defines it; some clients send it without."""
    return beginning[0] & 0x0F == zlib.DEFLATED and int.from_bytes(beginning[:2]) % 31 == 0
