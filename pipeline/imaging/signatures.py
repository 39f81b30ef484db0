"""The formats of images, accepted or refused by name, by the beginning of a file: the one list of them.

The check of a request and the decoder both ask it. Imports no image decoder. Knows nothing of requests.
"""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.errors import UnreadableImage

ACCEPTED = "PNG, JPEG, WebP, BMP, GIF, TIFF, AVIF or HEIC"
SIGNATURE_BYTES = 512
"""Of a file that are looked at: text formats may begin with blanks and comments."""


@dataclass(frozen=True)
class ImageFormat:
    """An accepted format.

    Args:
        extension: of its files' names.
        decoder: Pillow's name of it.
    """

    extension: str
    decoder: str


PNG = ImageFormat("png", "PNG")
JPEG = ImageFormat("jpg", "JPEG")
WEBP = ImageFormat("webp", "WEBP")
AVIF = ImageFormat("avif", "AVIF")
HEIC = ImageFormat("heic", "HEIF")
GIF = ImageFormat("gif", "GIF")
BMP = ImageFormat("bmp", "BMP")
TIFF = ImageFormat("tif", "TIFF")

CAMERA_RAW = "a camera's raw file"
VIDEO = "a video"
MODEL = "a 3D model"
WEB_PAGE = "a web page"
EXECUTABLE = "a program"

_ACCEPTED_BEGINNINGS = {
    b"\x89PNG\r\n\x1a\n": PNG,
    b"\xff\xd8\xff": JPEG,
    b"GIF87a": GIF,
    b"GIF89a": GIF,
    b"BM": BMP,
    **dict.fromkeys((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"), TIFF),  # TIFF and BigTIFF, in both byte orders
}
_REFUSED_BEGINNINGS = {
    b"%PDF": "a PDF document",
    b"%!PS": "a PostScript document",
    b"8BPS": "a Photoshop document (PSD)",
    b"gimp xcf": "a GIMP document (XCF)",
    b"\xff\x0a": "a JPEG XL image",
    b"\0\0\0\x0cJXL \r\n\x87\n": "a JPEG XL image",
    b"\0\0\0\x0cjP  \r\n\x87\n": "a JPEG 2000 image",
    b"\xff\x4f\xff\x51": "a JPEG 2000 image",
    b"\x76\x2f\x31\x01": "an OpenEXR image",
    b"#?RADIANCE": "a Radiance HDR image",
    b"DDS ": "a DirectDraw texture (DDS)",
    b"\xabKTX ": "a KTX texture",
    b"\0\0\1\0": "an icon (ICO)",
    b"icns": "an icon (ICNS)",
    b"qoif": "a QOI image",
    b"FUJIFILMCCD-RAW": CAMERA_RAW,
    b"IIRO": CAMERA_RAW,
    b"IIRS": CAMERA_RAW,
    b"IIU\0": CAMERA_RAW,
    b"II\x1a\0\0\0HEAPCCDR": CAMERA_RAW,
    b"\0MRM": CAMERA_RAW,
    b"\x1aE\xdf\xa3": VIDEO,
    b"\0\0\1\xba": VIDEO,
    b"FLV\1": VIDEO,
    b"glTF": MODEL,
    b"Kaydara FBX": MODEL,
    b"BLENDER": MODEL,
    b"ply\n": MODEL,
    b"ply\r\n": MODEL,
    b"solid ": MODEL,
    b"PK\3\4": "an archive (ZIP)",
    b"Rar!": "an archive (RAR)",
    b"7z\xbc\xaf\x27\x1c": "an archive (7z)",
    b"\x1f\x8b": "an archive (gzip)",
    b"MZ": EXECUTABLE,
    b"\x7fELF": EXECUTABLE,
    b"ID3": "a sound file",
    b"fLaC": "a sound file",
    b"OggS": "a sound or video file",
}
_TEXT_BEGINNINGS = {
    b"<svg": "an SVG drawing",
    b"<!doctype svg": "an SVG drawing",
    b"<!doctype html": WEB_PAGE,
    b"<html": WEB_PAGE,
    b"<head": WEB_PAGE,
    b"<body": WEB_PAGE,
    b"<script": WEB_PAGE,
    b"{\\rtf": "a text document (RTF)",
    b"version https://git-lfs": "a Git LFS pointer instead of the file",
    b"{": "a JSON document",
    b"<?xml": "an XML document",
    b"<": "an XML document",
}
"""After blanks, comments and XML's declaration, in small letters."""
_BRANDS = {
    **dict.fromkeys((b"avif", b"avis"), AVIF),
    **dict.fromkeys((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"), HEIC),
}
"""Of ISO 14496-12 files. `mif1`, `msf1` and `miaf` say only that it is an image: the compatible brands say which."""
_IMAGE_BRANDS = (b"mif1", b"msf1", b"miaf")


def recognise(content: bytes | bytearray | memoryview) -> ImageFormat | str | None:
    """An accepted format; the name of a known one that is not, with its article; None for anything else."""
    start = bytes(content[:SIGNATURE_BYTES])
    if start[:4] in (b"RIFF", b"RF64"):
        return {b"WEBP": WEBP, b"AVI ": VIDEO, b"WAVE": "a sound file"}.get(start[8:12])
    if start[4:8] == b"ftyp":
        return _of_iso_file(start)
    if start[:4] in (b"II*\0", b"MM\0*") and start[8:10] == b"CR":
        return CAMERA_RAW
    tables = (_ACCEPTED_BEGINNINGS, _REFUSED_BEGINNINGS)
    found = next((table[beginning] for table in tables for beginning in table if start.startswith(beginning)), None)
    return found or _of_text(start)


def require_accepted(content: bytes | bytearray | memoryview) -> ImageFormat:
    """The format of a file.

    Raises:
        UnreadableImage: the content is empty or of no accepted format; one sentence that names what it is.
    """
    if not content:
        raise UnreadableImage(f"the image is empty; {ACCEPTED} is accepted")
    found = recognise(content)
    if isinstance(found, ImageFormat):
        return found
    raise UnreadableImage(not_an_image(found))


def not_an_image(name: str | None = None) -> str:
    """The sentence for a file of no accepted format, with that format's name where it is known."""
    return f"the file is {name or 'not a readable image'}; {ACCEPTED} is accepted"


def _of_iso_file(start: bytes) -> ImageFormat | str | None:
    """Of the file type box that an ISO 14496-12 file begins with: its major brand, then the compatible ones."""
    end = max(16, min(int.from_bytes(start[:4], "big"), len(start)))
    brand = start[8:12]
    if brand in _BRANDS:
        return _BRANDS[brand]
    if brand == b"crx ":
        return CAMERA_RAW
    compatible = [start[begin : begin + 4] for begin in range(16, end, 4)]
    found = next((_BRANDS[name] for name in compatible if name in _BRANDS), None)
    if found is not None:
        return found
    return "an HEIF image of no readable kind" if brand in _IMAGE_BRANDS else VIDEO


def _of_text(start: bytes) -> str | None:
    text = start.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    while text.startswith((b"<?xml", b"<!--")):
        _, closing, rest = text.partition(b"?>" if text.startswith(b"<?xml") else b"-->")
        if not closing:
            break
        text = rest.lstrip()
    return next((name for beginning, name in _TEXT_BEGINNINGS.items() if text.startswith(beginning)), None)
