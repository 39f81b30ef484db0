"""Metadata and a missing end: neither decides over pixels that are there."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from pipeline.errors import UnreadableImage
from pipeline.imaging.decode import decode_image
from pipeline.imaging.image_files import completed
from pipeline.imaging.signatures import PNG
from tests.fakes.images import draw_figure, encode

PIXELS = draw_figure(160, background=(200, 200, 210))
PHOTO = Image.fromarray(PIXELS).convert("RGB")
BIG = 3 << 20
FIGURE_HEIC = Path(__file__).parent / "figure.heic"


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def with_chunk(added: bytes, *, before_pixels: bool = True, pixels: NDArray[np.uint8] = PIXELS) -> bytes:
    png = encode(pixels)
    at = png.index(b"IDAT") - 4 if before_pixels else len(png) - 12
    return png[:at] + added + png[at:]


@pytest.mark.parametrize("before_pixels", [True, False])
@pytest.mark.parametrize(
    "added",
    [
        chunk(b"zTXt", b"workflow\0\0" + zlib.compress(bytes(BIG))),
        chunk(b"iTXt", b"workflow\0\1\0\0\0" + zlib.compress(bytes(BIG))),
        chunk(b"tEXt", b"parameters\0" + b"a" * BIG),
        chunk(b"iCCP", b"monitor\0\0" + zlib.compress(bytes(BIG))),
        chunk(b"iCCP", b"monitor\0\0broken"),
        chunk(b"eXIf", b"MM\0*\0\0\xff\xff"),
        chunk(b"eXIf", b"no EXIF"),
        chunk(b"gAMA", b"\0"),
        chunk(b"cHRM", bytes(32)) + chunk(b"gAMA", bytes(4)),
        chunk(b"pHYs", b"\0"),
        chunk(b"acTL", b"\0"),
        chunk(b"tEXt", b"a\0b")[:-4] + b"\0\0\0\0",
        chunk(b"zTXt", b"x") * 300,
    ],
)
def test_a_png_is_read_whatever_its_metadata(added: bytes, before_pixels: bool) -> None:
    assert np.array_equal(decode_image(with_chunk(added, before_pixels=before_pixels)), PIXELS)


@pytest.mark.parametrize(
    "segment",
    [
        b"\xff\xe1\0\x10Exif\0\0MM\0*\0\0\xff\xff",
        b"\xff\xe1\xff\xffExif\0\0MM",  # its length leads beyond the file
        b"\xff\xe2\0\x14ICC_PROFILE\0\1\1XXXX",
        b"\xff\xe2\0\x0aMPF\0\0\0\0\0",
        b"\xff\xed\0\x09Photosh",
        b"\xff\xe0\0\x04JF",
        b"\xff\xee\0\x08Adobe\0",
    ],
)
def test_a_jpeg_is_read_whatever_its_metadata(segment: bytes) -> None:
    jpeg = encode(PHOTO, "JPEG", quality=95)
    assert np.array_equal(decode_image(jpeg[:2] + segment + jpeg[2:]), decode_image(jpeg))


def test_a_webp_is_read_whatever_its_metadata() -> None:
    webp = encode(PIXELS, "WEBP", lossless=True, exif=b"Exif\0\0MM\0*broken", xmp=b"<x/>", icc_profile=b"no profile")
    assert np.array_equal(decode_image(webp), PIXELS)
    assert np.array_equal(decode_image(webp[:-4]), PIXELS)  # the last chunk is metadata


@pytest.mark.parametrize("added", [b"\n", b"\0" * 7, b"</html>" * 20, chunk(b"IEND", b"")])
@pytest.mark.parametrize(
    ("format", "options"),
    [
        ("PNG", {}),
        ("JPEG", {"quality": 95}),
        ("WEBP", {"lossless": True}),
        ("GIF", {}),
        ("BMP", {}),
        ("TIFF", {}),
        ("AVIF", {}),
    ],
)
def test_what_follows_an_image_is_ignored(format: str, options: dict[str, object], added: bytes) -> None:
    content = encode(PHOTO, format, **options)
    assert np.array_equal(decode_image(content + added), decode_image(content))


@pytest.mark.parametrize("announced_bytes", [0, 500, 0xFFFFFFFF])
def test_a_webp_with_a_wrong_length_is_read(announced_bytes: int) -> None:
    webp = encode(PIXELS, "WEBP", lossless=True)
    assert np.array_equal(decode_image(webp[:4] + announced_bytes.to_bytes(4, "little") + webp[8:]), PIXELS)


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0, "restart_marker_rows": 1}])
def test_a_jpeg_without_its_end_is_read_and_a_cut_one_is_not(options: dict[str, object]) -> None:
    jpeg = encode(PHOTO, "JPEG", quality=95, **options)
    whole = decode_image(jpeg).astype(int)
    assert np.array_equal(decode_image(jpeg[:-2]), whole)
    assert np.array_equal(decode_image(jpeg[:-1]), whole)
    for share in (0.9, 0.5, 0.3):
        with pytest.raises(UnreadableImage, match="damaged or truncated"):
            decode_image(jpeg[: int(share * len(jpeg))])


def test_a_png_without_its_end_is_read_and_a_cut_one_is_not() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (100, 40, 3), np.uint8)
    png = encode(noise)
    assert np.array_equal(decode_image(png[:-12])[..., :3], noise)
    assert np.array_equal(decode_image(png[: int(0.99 * len(png))])[:97, :, :3], noise[:97])
    with pytest.raises(UnreadableImage, match="damaged or truncated"):
        decode_image(png[: int(0.9 * len(png))])


CUT = [
    *(("PNG", {}), ("PNG", {"interlace": 1}), ("JPEG", {}), ("JPEG", {"progressive": True}), ("WEBP", {})),
    *(("WEBP", {"lossless": True}), ("GIF", {}), ("BMP", {}), ("TIFF", {}), ("TIFF", {"compression": "tiff_lzw"})),
    *(("TIFF", {"compression": "tiff_adobe_deflate"}), ("TIFF", {"compression": "jpeg"}), ("AVIF", {})),
    ("HEIC", {}),
]


@pytest.mark.parametrize(("format", "options"), CUT, ids=str)
def test_a_cut_file_is_refused_or_has_nearly_all_of_its_pixels(format: str, options: dict[str, object]) -> None:
    noise = np.random.default_rng(0).integers(0, 40, (512, 512, 3), np.uint8)
    photo = Image.fromarray(np.asarray(PHOTO.resize((512, 512))) ^ noise)
    content = FIGURE_HEIC.read_bytes() if format == "HEIC" else encode(photo, format, **options)
    whole = decode_image(content).astype(int)

    for share in (0.01, 0.1, 0.5, 0.9, 0.99):
        try:
            cut = decode_image(content[: int(share * len(content))])
        except UnreadableImage as refusal:
            assert "damaged" in str(refusal)
        else:
            differs = (np.abs(cut - whole) > 64).any(axis=-1)
            assert share >= 0.9 and differs.mean() < 0.02


LINEAR = np.full((4, 4, 3), 55, np.uint8)
GAMA_1 = chunk(b"gAMA", (100_000).to_bytes(4, "big"))


@pytest.mark.parametrize(
    ("added", "grey"),
    [
        (GAMA_1, 128),  # sRGB of 55/255 in linear light
        (chunk(b"gAMA", (45455).to_bytes(4, "big")), 55),
        (GAMA_1 + chunk(b"sRGB", b"\0"), 55),  # sRGB goes before gAMA
        (chunk(b"cICP", bytes((1, 8, 0, 1))) + chunk(b"sRGB", b"\0"), 128),  # and cICP before both
        (chunk(b"cICP", bytes((1, 13, 0, 1))) + GAMA_1, 55),
    ],
)
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "I;16"])
def test_the_colours_of_a_png_follow_the_order_of_its_chunks(added: bytes, grey: int, mode: str) -> None:
    image = Image.fromarray(LINEAR)
    sixteen_bits = Image.fromarray(LINEAR[..., 0].astype(np.uint16) * 257)
    png = encode(image.quantize(2) if mode == "P" else sixteen_bits if mode == "I;16" else image.convert(mode))
    at = png.index(b"IHDR") + 21
    assert np.abs(decode_image(png[:at] + added + png[at:])[..., :3].astype(int) - grey).max() <= 1


def test_wide_primaries_are_converted() -> None:
    red = np.zeros((4, 4, 3), np.uint8)
    red[..., 0], red[..., 1:] = 200, 100
    at = (png := encode(red)).index(b"IHDR") + 21
    decoded = decode_image(png[:at] + chunk(b"cICP", bytes((12, 13, 0, 1))) + png[at:])[0, 0].astype(int)
    assert np.abs(decoded[:3] - (216, 92, 95)).max() <= 3  # Display P3 to sRGB, by the matrices of CSS Color 4


def test_a_large_jpeg_is_decoded_at_a_reduced_size() -> None:
    wide = encode(Image.new("L", (10_000, 6_001), 90), "JPEG")
    assert decode_image(wide).shape == (2458, 4096, 4)


def test_a_header_with_far_too_many_pixels_is_not_completed() -> None:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 60_000, 60_000, 8, 6, 0, 0, 0))
    zeros = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(1 << 24)))
    assert completed(zeros, PNG, max_pixels=60_000_000) is None
    with pytest.raises(UnreadableImage, match="megapixels"):
        decode_image(zeros)


TIFF_PHOTO = PIXELS[..., :3]
FAR = struct.pack("<I", 0x7FFFFFF0)
INSIDE = struct.pack("<I", 300)


def tiff(*added: tuple[int, int, int, bytes], is_packed: bool) -> bytes:
    """A TIFF of `TIFF_PHOTO` with further entries in its directory: tag, type, count and four bytes of the value."""
    height, width, _ = TIFF_PHOTO.shape
    data = zlib.compress(TIFF_PHOTO.tobytes()) if is_packed else TIFF_PHOTO.tobytes()

    def number(value: int) -> bytes:
        return struct.pack("<I", value)

    own = {
        256: width,
        257: height,
        258: 0,
        259: 8 if is_packed else 1,
        262: 2,
        273: 0,
        277: 3,
        278: height,
        279: len(data),
    }
    at = 8 + 2 + 12 * (len(own) + len(added)) + 4
    own |= {258: at, 273: at + 6}
    entries = [(tag, 3 if tag == 258 else 4, 3 if tag == 258 else 1, number(value)) for tag, value in own.items()]
    directory = b"".join(struct.pack("<HHI", *entry[:3]) + entry[3] for entry in sorted([*entries, *added]))
    count = struct.pack("<H", len(entries) + len(added))
    return b"II*\0" + number(8) + count + directory + number(0) + struct.pack("<HHH", 8, 8, 8) + data


@pytest.mark.parametrize("is_packed", [False, True])
@pytest.mark.parametrize(
    "entry",
    [
        (34665, 4, 1, FAR),  # EXIF beyond the file
        (34665, 4, 1, INSIDE),  # EXIF in the pixels
        (34853, 4, 1, struct.pack("<I", 8)),  # GPS that is the directory itself
        (700, 1, 0xFFFFFFF0, INSIDE),  # XMP of 4 GB
        (34675, 7, 5000, FAR),  # profile beyond the file
        (34675, 7, 500, INSIDE),  # profile that is none
        (33723, 99, 50, INSIDE),  # IPTC of an unknown type
        (306, 2, 20, FAR),  # date beyond the file
        (270, 2, 0x7FFFFFFF, INSIDE),  # description of 2 GB
        (274, 2, 4, b"abc\0"),  # orientation in words
        (282, 5, 1, bytes(4)),  # resolution in the header
        (330, 4, 0x0FFFFFFF, INSIDE),  # a million further images
        (50706, 1, 400, FAR),  # version of a raw file, beyond it
    ],
)
def test_a_tiff_is_read_whatever_its_metadata(entry: tuple[int, int, int, bytes], is_packed: bool) -> None:
    assert np.array_equal(decode_image(tiff(entry, is_packed=is_packed))[..., :3], TIFF_PHOTO)


def test_a_raw_file_is_told_from_a_tiff_by_its_version() -> None:
    with pytest.raises(UnreadableImage, match="a camera's raw file"):
        decode_image(tiff((50706, 1, 4, b"\1\4\0\0"), is_packed=False))
