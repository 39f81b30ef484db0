"""Image decoding: every format that the contract names, to upright 8-bit sRGB.

The size in the header is checked before pixels are decoded, so a small file that declares a huge image costs nothing.
Knows nothing of where the bytes came from or how the image is used.
"""

from __future__ import annotations

import io
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import numpy as np
from numpy.typing import NDArray
from pi_heif import register_heif_opener
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError

from pipeline.errors import UnreadableImage
from pipeline.imaging.image_files import completed, png_colour_chunks, without_metadata
from pipeline.imaging.png_profile import profile_of
from pipeline.imaging.signatures import CAMERA_RAW, JPEG, PNG, TIFF, ImageFormat, not_an_image, require_accepted

register_heif_opener()

MAX_MEGAPIXELS = 60
MAX_JPEG_MEGAPIXELS = 240
"""A JPEG is decoded at a half, a quarter or an eighth of its size, so that it gives at most `MAX_MEGAPIXELS`."""
MAX_SIDE = 4096
"""A longer side is shrunk to this: no engine sees more, and no texture has more. It bounds the memory of a job."""
SIXTEEN_BIT_MODES = ("I;16", "I;16L", "I;16B", "I;16N", "I", "F")


def decode_image(data: bytes) -> NDArray[np.uint8]:
    """Decode an image, and shrink one with a side of more than `MAX_SIDE`.

    What is damaged or too large in metadata is ignored, and a PNG or JPEG may lack its end, see `completed`. The first
    frame of an animation is used, EXIF rotation is applied, and colour profiles, CMYK, palettes and 16 bits per channel
    are converted to 8-bit sRGB.

    Returns:
        (H, W, 4) uint8 RGBA, straight alpha; opaque if the image has no transparency.

    Raises:
        UnreadableImage: the content is not an accepted image; the message is one sentence.
    """
    kind = require_accepted(data)
    with _refusals(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns about sizes and profiles that this module handles
        content = without_metadata(data, kind)
        try:
            return _decode(content, kind, data)
        except (UnreadableImage, MemoryError, Image.DecompressionBombError):  # final, whatever is left out of the file
            raise
        except Exception:
            bare = without_metadata(data, kind, keep_orientation=False)
            repairs = (
                lambda: bare if bare != content else None,
                lambda: completed(content, kind, max_pixels=MAX_MEGAPIXELS * 1_000_000),
                lambda: completed(bare, kind, max_pixels=MAX_MEGAPIXELS * 1_000_000),
            )
            for repair in repairs:
                with suppress(*_DECODER_ERRORS):
                    repaired = repair()
                    if repaired is not None:
                        return _decode(repaired, kind, data)
            raise


_DECODER_ERRORS = (OSError, SyntaxError, ValueError, TypeError, KeyError, IndexError, EOFError, struct.error)


def _decode(content: bytes, kind: ImageFormat, original: bytes) -> NDArray[np.uint8]:
    """Decode a file; `original` is what was sent, from which a PNG's colour is read."""
    with _open(content, kind) as image:
        if kind is TIFF and _is_camera_raw(image):
            raise UnreadableImage(not_an_image(CAMERA_RAW))
        check_size(*image.size, is_jpeg=kind is JPEG)
        image.seek(0)
        if kind is PNG:
            image.info["icc_profile"] = profile_of(png_colour_chunks(original))
        return rgba_of(image)


def _open(content: bytes, kind: ImageFormat) -> Image.Image:
    if kind.decoder not in Image.OPEN:
        Image.init()
    if kind is JPEG:  # `Image.open` refuses its size, which is not the one that is decoded
        return Image.OPEN["JPEG"][0](io.BytesIO(content), "")
    return Image.open(io.BytesIO(content), formats=[kind.decoder])


def _is_camera_raw(image: Image.Image) -> bool:
    """A TIFF whose first image is a preview of a camera's raw data, or that has a DNG version."""
    tags = getattr(image, "tag_v2", {})
    return 50706 in tags or (tags.get(254, 0) & 1 == 1 and 330 in tags)


def rgba_of(image: Image.Image) -> NDArray[np.uint8]:
    """The pixels of an image that Pillow has opened, upright and in 8-bit sRGB.

    Returns:
        (H, W, 4) uint8 RGBA, straight alpha; opaque everywhere where the image has no transparency.

    Raises:
        UnreadableImage: it has too many pixels.
    """
    is_jpeg = image.format == "JPEG"
    check_size(*image.size, is_jpeg=is_jpeg)
    if is_jpeg:
        divisor = _divisor(*image.size)
        image.draft(image.mode, (image.width // divisor, image.height // divisor))
    image.load()
    try:
        upright = ImageOps.exif_transpose(image)
    except _DECODER_ERRORS:  # of damaged EXIF
        upright = image
    is_inverted = getattr(image, "tag_v2", {}).get(262) == 0  # a TIFF whose zero is white
    rgba = _to_rgba(upright if upright is not None else image, is_inverted=is_inverted)
    if image.format == "BMP" and rgba.getchannel("A").getextrema() == (0, 0):
        rgba.putalpha(255)  # many programs leave zeros where alpha belongs; browsers show such a file opaque
    return np.array(_shrunk(rgba))


def check_size(width: int, height: int, *, is_jpeg: bool = False) -> None:
    """Refuse an image that has too many pixels.

    Raises:
        UnreadableImage: it has more than `MAX_MEGAPIXELS`, or as a JPEG more than `MAX_JPEG_MEGAPIXELS`.
    """
    if width * height > (MAX_JPEG_MEGAPIXELS if is_jpeg else MAX_MEGAPIXELS) * 1_000_000:
        raise UnreadableImage(f"the image is {width} × {height} px; at most {_LIMITS} are accepted")


_LIMITS = f"{MAX_MEGAPIXELS} megapixels, as JPEG {MAX_JPEG_MEGAPIXELS},"


def _divisor(width: int, height: int) -> int:
    """By how much a JPEG is decoded smaller: to no less than `MAX_SIDE`, unless it would be over `MAX_MEGAPIXELS`."""
    for divisor in (1, 2, 4, 8):
        fits = width * height <= MAX_MEGAPIXELS * 1_000_000 * divisor**2
        if fits and max(width, height) < 2 * divisor * MAX_SIDE:
            return divisor
    return 8


@contextmanager
def _refusals() -> Iterator[None]:
    """Translate every exception that a decoder raises for a bad file into `UnreadableImage`."""
    try:
        yield
    except UnreadableImage:
        raise
    except UnidentifiedImageError:
        raise UnreadableImage(
            "the image's header cannot be read: the file is damaged, or of a rare kind; save it as a PNG and send that"
        ) from None
    except Image.DecompressionBombError:
        raise UnreadableImage(f"the image is too large; at most {_LIMITS} are accepted") from None
    except MemoryError:
        raise
    except Exception as error:  # decoders raise anything: OSError, SyntaxError, struct.error, EOFError
        raise UnreadableImage(f"the image is damaged or truncated ({type(error).__name__}); send it again") from error


def _shrunk(image: Image.Image) -> Image.Image:
    """An RGBA image with no side of more than `MAX_SIDE`; transparent pixels lend no colour to their neighbours."""
    if max(image.size) <= MAX_SIDE:
        return image
    is_opaque = image.getchannel("A").getextrema() == (255, 255)
    image = image.convert("RGB" if is_opaque else "RGBa")
    image.thumbnail((MAX_SIDE, MAX_SIDE), Image.Resampling.BOX, reducing_gap=2.0)
    return image.convert("RGBA")


def _to_rgba(image: Image.Image, *, is_inverted: bool) -> Image.Image:
    """Convert to 8-bit sRGB with alpha.

    Args:
        is_inverted: zero is white in the file; Pillow has inverted samples of up to 8 bits alone.
    """
    profile = image.info.get("icc_profile")
    if image.mode in SIXTEEN_BIT_MODES:
        image = _eight_bits(image, is_inverted=is_inverted)
    if profile and profile[16:20] == b"RGB " and image.mode in ("P", "L", "LA"):
        image = image.convert("RGBA")
    if profile and image.mode in ("RGB", "RGBA", "CMYK", "L", "LA"):
        image = _to_srgb(image, profile)
    return image.convert("RGBA")


def _eight_bits(image: Image.Image, *, is_inverted: bool) -> Image.Image:
    """Scale a grey image of more than 8 bits to 8: Pillow's own conversion clips at 255, and loses transparency.

    Returns:
        An image of the mode L; LA where the file names a transparent grey.
    """
    samples = np.asarray(image)
    values = samples.astype(np.float64)
    highest = 1.0 if image.mode == "F" and values.max(initial=0) <= 1.0 else 65535.0
    if image.mode in ("I", "F") and 1.0 < values.max(initial=0) <= 255.0:
        highest = 255.0
    scaled = np.clip(np.nan_to_num(values) / highest, 0, 1)
    scaled = 1 - scaled if is_inverted else scaled
    grey = Image.fromarray(np.round(scaled * 255).astype(np.uint8))
    if isinstance(transparent := image.info.get("transparency"), int):
        grey.putalpha(Image.fromarray(np.where(samples == transparent, 0, 255).astype(np.uint8)))
    return grey


def _to_srgb(image: Image.Image, profile: bytes) -> Image.Image:
    """Convert from a colour profile to sRGB; an unreadable profile is ignored, as in browsers."""
    alpha = image.getchannel("A") if image.mode in ("RGBA", "LA") else None
    colours = image if alpha is None else image.convert(image.mode.removesuffix("A"))
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        converted = ImageCms.profileToProfile(colours, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
    except (ImageCms.PyCMSError, OSError, ValueError):
        return image
    if converted is None:
        return image
    if alpha is not None:
        converted.putalpha(alpha)
    return converted
