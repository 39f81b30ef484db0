"""`Content-Encoding` of requests: gzip and deflate are decoded in steps of bounded size. Knows no limits of bodies."""

from __future__ import annotations

import zlib

from pipeline.errors import InvalidRequest, UnsupportedMediaType

CODINGS = ("gzip", "deflate")
STEP_BYTES = 1 << 18
"""The longest piece that is decoded at once."""
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
        if self._inflate is None or (not self._waiting and self._inflate.eof):
            return b""
        if self._inflate.eof:
            raise InvalidRequest(f"the body continues after the end of its {self._coding} data")
        try:
            decoded = self._inflate.decompress(self._waiting, STEP_BYTES)
        except zlib.error:
            raise InvalidRequest(f"the body is not valid {self._coding} data") from None
        self._waiting = self._inflate.unused_data if self._inflate.eof else self._inflate.unconsumed_tail
        return decoded

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
    coding = header.strip().lower().removeprefix("x-")
    if coding in ("", "identity"):
        return None
    if coding not in CODINGS:
        raise UnsupportedMediaType(f"The content encoding {coding[:60]} is not taken; {' and '.join(CODINGS)} are.")
    return Decoder(coding)


def _has_zlib_header(beginning: bytes) -> bool:
    """Whether deflate data has the header of RFC 1950, as HTTP defines it; some clients send it without."""
    return beginning[0] & 0x0F == zlib.DEFLATED and int.from_bytes(beginning[:2]) % 31 == 0
