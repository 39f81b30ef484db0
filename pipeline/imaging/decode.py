"""Image decoding: every format that the contract names, to upright 8-bit sRGB.

The size in the header is checked before pixels are decoded, so a small file that declares a huge image costs nothing.
Knows nothing of where the bytes came from or how the image is used.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError

from pipeline.errors import UnreadableImage
from pipeline.imaging.inline import ACCEPTED

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "AVIF", "HEIF")
MAX_MEGAPIXELS = 50
MAX_SIDE = 4096
"""A longer side is shrunk to this: no engine sees more, and no texture has more. It bounds the memory of a job."""
SIXTEEN_BIT_MODES = ("I;16", "I;16L", "I;16B", "I;16N", "I", "F")


def decode_image(data: bytes) -> NDArray[np.uint8]:
    """Decode an image, and shrink one with a side of more than `MAX_SIDE`.

    The first frame of an animation is used, EXIF rotation is applied, and colour profiles, CMYK, palettes and 16 bits
    per channel are converted to 8-bit sRGB.

    Returns:
        (H, W, 4) uint8 RGBA, straight alpha; opaque if the image has no transparency.

    Raises:
        UnreadableImage: the content is not an accepted image; the message is one sentence.
    """
    if not data:
        raise UnreadableImage(f"the image is empty; {ACCEPTED} is accepted")
    with _refusals(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns about sizes and profiles that this module handles
        with Image.open(io.BytesIO(data), formats=_known_formats()) as image:
            check_size(*image.size)
            image.seek(0)
            return rgba_of(image)


def rgba_of(image: Image.Image) -> NDArray[np.uint8]:
    """The pixels of an image that Pillow has opened, upright and in 8-bit sRGB.

    Returns:
        (H, W, 4) uint8 RGBA, straight alpha; opaque everywhere where the image has no transparency.

    Raises:
        UnreadableImage: it has too many pixels.
    """
    check_size(*image.size)
    image.draft(image.mode, (MAX_SIDE, MAX_SIDE))  # a JPEG is decoded at a half, a quarter or an eighth at once
    image.load()
    upright = ImageOps.exif_transpose(image)
    return np.array(_shrunk(_to_rgba(upright if upright is not None else image)))


def check_size(width: int, height: int) -> None:
    """Refuse an image that has too many pixels.

    Raises:
        UnreadableImage: it has more than `MAX_MEGAPIXELS`.
    """
    if width * height > MAX_MEGAPIXELS * 1_000_000:
        raise UnreadableImage(f"the image is {width} × {height} px; at most {MAX_MEGAPIXELS} megapixels are accepted")


@contextmanager
def _refusals() -> Iterator[None]:
    """Translate every exception that a decoder raises for a bad file into `UnreadableImage`."""
    try:
        yield
    except UnreadableImage:
        raise
    except UnidentifiedImageError:
        raise UnreadableImage(f"the file is not a readable image; {ACCEPTED} is accepted") from None
    except Image.DecompressionBombError:
        raise UnreadableImage(f"the image is larger than {MAX_MEGAPIXELS} megapixels") from None
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


def _known_formats() -> tuple[str, ...]:
    """The accepted formats that the installed Pillow can decode."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _to_rgba(image: Image.Image) -> Image.Image:
    """Convert to 8-bit sRGB with alpha."""
    if image.mode in SIXTEEN_BIT_MODES:
        image = _eight_bits(image)
    profile = image.info.get("icc_profile")
    if profile and image.mode in ("RGB", "RGBA", "CMYK", "L"):
        image = _to_srgb(image, profile)
    return image.convert("RGBA")


def _eight_bits(image: Image.Image) -> Image.Image:
    """Scale a grey image of more than 8 bits to 8: Pillow's own conversion clips at 255."""
    values = np.asarray(image).astype(np.float64)
    highest = 1.0 if image.mode == "F" and values.max(initial=0) <= 1.0 else 65535.0
    if image.mode in ("I", "F") and 1.0 < values.max(initial=0) <= 255.0:
        highest = 255.0
    scaled = np.clip(np.nan_to_num(values) / highest, 0, 1)
    return Image.fromarray(np.round(scaled * 255).astype(np.uint8))


def _to_srgb(image: Image.Image, profile: bytes) -> Image.Image:
    """Convert from a colour profile to sRGB; an unreadable profile is ignored, as in browsers."""
    alpha = image.getchannel("A") if image.mode == "RGBA" else None
    colours = image.convert("RGB") if image.mode == "RGBA" else image
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
