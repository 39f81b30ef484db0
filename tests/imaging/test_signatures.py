"""The one list of formats: what is accepted is decoded, what is refused is named."""

from __future__ import annotations

import pytest

from pipeline.errors import UnreadableImage
from pipeline.imaging.decode import decode_image
from pipeline.imaging.signatures import ACCEPTED, AVIF, HEIC, recognise, require_accepted


@pytest.mark.parametrize(
    ("content", "name"),
    [
        (b"\xef\xbb\xbf\n <?xml version='1.0'?>\n<!-- made by hand -->\n<svg/>", "an SVG drawing"),
        (b"<!DOCTYPE html><html>", "a web page"),
        (b"%PDF-1.7", "a PDF document"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "a Git LFS pointer instead of the file"),
        (b"8BPS\0\1", "a Photoshop document (PSD)"),
        (b"\xff\x0a\0\0", "a JPEG XL image"),
        (b"\0\0\0\x0cJXL \r\n\x87\n", "a JPEG XL image"),
        (b"\0\0\0\x0cjP  \r\n\x87\n", "a JPEG 2000 image"),
        (b"II*\0\x10\0\0\0CR\2\0", "a camera's raw file"),
        (b"\0\0\0\x18ftypcrx \0\0\0\1", "a camera's raw file"),
        (b"\0\0\0\x14ftypqt  \0\0\2\0qt  ", "a video"),
        (b"\0\0\0\x18ftypisom\0\0\2\0isommp42", "a video"),
        (b"RIFF\0\0\0\0AVI LIST", "a video"),
        (b"glTF\2\0\0\0", "a 3D model"),
        (b"PK\3\4", "an archive (ZIP)"),
    ],
)
def test_a_known_format_is_refused_by_its_name_before_and_in_the_decoder(content: bytes, name: str) -> None:
    for refuse in (require_accepted, decode_image):
        with pytest.raises(UnreadableImage) as refused:
            refuse(content)
        assert str(refused.value) == f"the file is {name}; {ACCEPTED} is accepted"


def test_a_general_brand_is_told_by_the_compatible_ones() -> None:
    assert recognise(b"\0\0\0\x1cftypmif1\0\0\0\0mif1avifmiaf") is AVIF
    assert recognise(b"\0\0\0\x1cftypmif1\0\0\0\0mif1heicmiaf") is HEIC
    assert recognise(b"\0\0\0\x14ftypmif1\0\0\0\0mif1") == "an HEIF image of no readable kind"
