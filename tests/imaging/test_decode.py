"""Image decoding: every accepted format, and one sentence for everything else."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms, features

from pipeline.errors import UnreadableImage
from pipeline.imaging.decode import decode_image
from pipeline.stages.intake import foreground_images
from tests.fakes.images import bare_png, draw_figure, encode

FIGURE = draw_figure(64)
OPAQUE = draw_figure(64, background=(200, 200, 210))


BGRA_MASKS = (0xFF0000, 0xFF00, 0xFF, 0xFF000000)


def png_chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def grey_profile() -> bytes:
    """An ICC profile of grey in linear light."""
    tags = {b"wtpt": b"XYZ \0\0\0\0" + struct.pack(">3i", 63190, 65536, 54061), b"kTRC": b"curv" + bytes(8)}
    begin = 128 + 4 + 12 * len(tags)
    table = struct.pack(">I4sII4sII", 2, b"wtpt", begin, 20, b"kTRC", begin + 20, 12)
    head = struct.pack(">I4sI4s4s4s12x4s28x", begin + 32, b"", 0x02200000, b"mntr", b"GRAY", b"XYZ ", b"acsp")
    return (head + struct.pack(">3i", 63190, 65536, 54061)).ljust(128, b"\0") + table + b"".join(tags.values())


def refusal_of(data: bytes) -> str:
    with pytest.raises(UnreadableImage) as refused:
        decode_image(data)
    return str(refused.value)


@pytest.mark.parametrize("format", ["PNG", "WEBP", "TIFF", "AVIF"])
def test_formats_with_alpha_keep_it(format: str) -> None:
    if format == "AVIF" and not features.check("avif"):
        pytest.skip("this Pillow reads no AVIF")
    options = {"WEBP": {"lossless": True, "exact": True}, "AVIF": {"quality": 100}}.get(format, {})
    decoded = decode_image(encode(FIGURE, format, **options))
    assert decoded.shape == (64, 64, 4)
    assert np.abs(decoded[..., 3].astype(int) - FIGURE[..., 3]).max() <= 2


@pytest.mark.parametrize(("format", "tolerance"), [("PNG", 0), ("BMP", 0), ("JPEG", 40), ("GIF", 40)])
def test_opaque_images_decode_to_their_colours(format: str, tolerance: int) -> None:
    options = {"JPEG": {"quality": 95}}.get(format, {})
    decoded = decode_image(encode(Image.fromarray(OPAQUE).convert("RGB"), format, **options))
    assert (decoded[..., 3] == 255).all()
    assert np.percentile(np.abs(decoded[..., :3].astype(int) - OPAQUE[..., :3]), 99) <= tolerance


def test_exif_rotation_is_applied() -> None:
    wide = Image.fromarray(OPAQUE[:32]).convert("RGB")
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned to the right
    decoded = decode_image(encode(wide, "JPEG", exif=exif, quality=95))
    assert decoded.shape[:2] == (64, 32)
    turned = np.asarray(wide.rotate(-90, expand=True))
    assert np.percentile(np.abs(decoded[..., :3].astype(int) - turned), 99) <= 40


def test_sixteen_bits_are_scaled_not_clipped() -> None:
    ramp = np.linspace(0, 65535, 256).astype(np.uint16)[None].repeat(16, axis=0)
    for format in ("PNG", "TIFF"):
        decoded = decode_image(encode(Image.fromarray(ramp), format))
        assert np.abs(decoded[0, :, 0].astype(int) - np.arange(256)).max() <= 1


def test_the_transparent_grey_of_sixteen_bits_is_kept() -> None:
    ramp = np.linspace(0, 65535, 256).astype(np.uint16)[None].repeat(16, axis=0)
    png = encode(Image.fromarray(ramp))
    at = png.index(b"IDAT") - 4
    decoded = decode_image(png[:at] + png_chunk(b"tRNS", int(ramp[0, 9]).to_bytes(2, "big")) + png[at:])
    assert decoded[0, :, 3].tolist() == [0 if column == 9 else 255 for column in range(256)]


def test_a_tiff_whose_zero_is_white_is_inverted() -> None:
    grey = Image.new("I;16", (8, 8), 50 * 257)
    tiff = encode(grey, "TIFF", tiffinfo={262: 0})
    assert Image.open(io.BytesIO(tiff)).tag_v2[262] == 0  # pyright: ignore[reportAttributeAccessIssue]
    assert (decode_image(tiff)[..., 0] == 205).all()


@pytest.mark.parametrize("mode", ["L", "LA", "I;16"])
@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_a_profile_of_grey_in_linear_light_is_applied(mode: str, format: str) -> None:
    image = Image.new("I;16", (8, 8), 55 * 257) if mode == "I;16" else Image.new("L", (8, 8), 55).convert(mode)
    decoded = decode_image(encode(image, format, icc_profile=grey_profile()))
    assert np.abs(decoded[..., :3].astype(int) - 128).max() <= 1  # sRGB of 55/255 in linear light


@pytest.mark.parametrize(("alpha", "expected"), [(0, 255), (90, 90)])
def test_a_bmp_whose_alpha_is_zero_everywhere_is_opaque(alpha: int, expected: int) -> None:
    head = struct.pack("<IiiHHIIiiII4I4s48x", 108, 4, -4, 1, 32, 3, 0, 0, 0, 0, 0, *BGRA_MASKS, b"BGRs")
    bmp = b"BM" + struct.pack("<IHHI", 186, 0, 0, 122) + head + bytes((30, 20, 10, alpha)) * 16
    assert (decode_image(bmp) == (10, 20, 30, expected)).all()


def test_cmyk_palette_and_grey_with_alpha_are_read() -> None:
    cmyk = decode_image(encode(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG", quality=95))
    assert cmyk[4, 4, 0] > 200 and cmyk[4, 4, 1] < 60
    palette = Image.fromarray(FIGURE).convert("RGB").quantize(8)
    index = palette.getpixel((0, 0))
    assert decode_image(encode(palette, transparency=index))[0, 0, 3] == 0
    grey = Image.fromarray(FIGURE).convert("LA")
    assert np.array_equal(decode_image(encode(grey))[..., 3], FIGURE[..., 3])


def test_the_first_frame_of_an_animation_is_used() -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "lime", "blue")]
    for format in ("GIF", "PNG", "WEBP"):
        data = encode(frames[0], format, save_all=True, append_images=frames[1:], duration=10)
        assert decode_image(data)[4, 4, 0] > 240


def test_a_colour_profile_is_applied_and_a_broken_one_ignored() -> None:
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    decoded = decode_image(encode(OPAQUE, icc_profile=lab))
    assert np.abs(decoded.astype(int) - OPAQUE).max() <= 2
    assert np.array_equal(decode_image(encode(OPAQUE, icc_profile=b"no profile")), OPAQUE)


def test_a_huge_header_is_refused_before_its_pixels_are_decoded() -> None:
    assert refusal_of(bare_png(60000, 60000)) == (
        "the image is too large; at most 60 megapixels, as JPEG 240, are accepted"
    )
    assert refusal_of(bare_png(10000, 6001)) == (
        "the image is 10000 × 6001 px; at most 60 megapixels, as JPEG 240, are accepted"
    )


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "the image is empty"),
        (b"just text, named .png", "is not a readable image"),
        (b"%PDF-1.7 nothing", "is a PDF document; PNG"),
        (encode(OPAQUE)[:900], "damaged or truncated"),
        (encode(Image.fromarray(OPAQUE).convert("RGB"), "JPEG")[:700], "damaged or truncated"),
        (bare_png(20, 20), "damaged or truncated"),
        (
            encode(Image.fromarray(OPAQUE), "TIFF")[:8] + bytes(40),
            "cannot be read: the file is damaged, or of a rare kind",
        ),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "is an SVG drawing; PNG"),
    ],
)
def test_a_bad_file_is_refused_in_one_sentence(data: bytes, words: str) -> None:
    message = refusal_of(data)
    assert words in message and "\n" not in message


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_a_mutated_file_gives_an_image_or_one_sentence(data: st.DataObject) -> None:
    format = data.draw(st.sampled_from(["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP"]))
    content = bytearray(encode(Image.fromarray(OPAQUE[:24, :24]).convert("RGB"), format))
    for _ in range(data.draw(st.integers(1, 6))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    try:
        decoded = decode_image(bytes(content))
    except UnreadableImage as refused:
        assert "\n" not in str(refused)
    else:
        assert decoded.dtype == np.uint8 and decoded.shape[2] == 4


def test_a_heic_of_a_phone_is_read_by_its_content() -> None:
    content = (Path(__file__).parent / "figure.heic").read_bytes()

    image = decode_image(content)

    assert image.shape == (320, 256, 4)
    colours = {
        name: image[row, column, :3].astype(int)
        for name, row, column in (
            ("red", 160, 128),
            ("green", 260, 105),
            ("yellow", 260, 150),
            ("blue", 70, 60),
            ("ground", 300, 10),
        )
    }
    for name, expected in (
        ("red", (200, 30, 40)),
        ("green", (40, 160, 60)),
        ("yellow", (240, 210, 30)),
        ("blue", (30, 60, 210)),
        ("ground", (245, 245, 245)),
    ):
        assert np.abs(colours[name] - expected).max() <= 8, name
    (figure,) = foreground_images([image], multi_image=False)
    assert 0.2 < (figure[..., 3] >= 128).mean() < 0.5
