"""Bytes to pixels: every picture that the contract names, upright, in sRGB, eight bits a channel.

The header is judged before pixels are decoded, so a small file that claims a huge picture costs nothing. Knows nothing
of where the bytes came from or what the picture is for.
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
SIXTEEN_BIT_MODES = ("I;16", "I;16L", "I;16B", "I;16N", "I", "F")


def decode_image(data: bytes) -> NDArray[np.uint8]:
    """Decode a picture.

    Of an animation the first frame; EXIF rotation applied; a colour profile, CMYK, a palette and 16 bits brought to
    8-bit sRGB.

    Returns:
        (H, W, 4) uint8 RGBA, straight alpha; opaque everywhere where the picture has no transparency.

    Raises:
        UnreadableImage: one sentence about what was seen and what is accepted.
    """
    if not data:
        raise UnreadableImage(f"the picture is empty; {ACCEPTED} is accepted")
    with _refusals(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of what is decided here
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
    image.load()
    upright = ImageOps.exif_transpose(image)
    return np.array(_to_rgba(upright if upright is not None else image))


def check_size(width: int, height: int) -> None:
    """Refuse an image that has too many pixels.

    Raises:
        UnreadableImage: it has more than `MAX_MEGAPIXELS`.
    """
    if width * height > MAX_MEGAPIXELS * 1_000_000:
        raise UnreadableImage(
            f"the picture has {width} × {height} pixels; at most {MAX_MEGAPIXELS} megapixels are accepted"
        )


@contextmanager
def _refusals() -> Iterator[None]:
    """Turn whatever a decoder raises about a bad file into one sentence."""
    try:
        yield
    except UnreadableImage:
        raise
    except UnidentifiedImageError:
        raise UnreadableImage(f"the file is no picture that can be read; {ACCEPTED} is accepted") from None
    except Image.DecompressionBombError:
        raise UnreadableImage(f"the picture is larger than {MAX_MEGAPIXELS} megapixels") from None
    except MemoryError:
        raise
    except Exception as error:  # decoders raise anything: OSError, SyntaxError, struct.error, EOFError
        raise UnreadableImage(f"the picture is damaged or cut short ({type(error).__name__}); send it again") from error


def _known_formats() -> tuple[str, ...]:
    """The accepted formats that this installation of Pillow reads."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _to_rgba(image: Image.Image) -> Image.Image:
    """The same picture as 8-bit sRGB with alpha."""
    if image.mode in SIXTEEN_BIT_MODES:
        image = _eight_bits(image)
    profile = image.info.get("icc_profile")
    if profile and image.mode in ("RGB", "RGBA", "CMYK", "L"):
        image = _to_srgb(image, profile)
    return image.convert("RGBA")


def _eight_bits(image: Image.Image) -> Image.Image:
    """A grey picture of more than 8 bits, scaled: Pillow's own conversion clips at 255."""
    values = np.asarray(image).astype(np.float64)
    highest = 1.0 if image.mode == "F" and values.max(initial=0) <= 1.0 else 65535.0
    if image.mode in ("I", "F") and 1.0 < values.max(initial=0) <= 255.0:
        highest = 255.0
    scaled = np.clip(np.nan_to_num(values) / highest, 0, 1)
    return Image.fromarray(np.round(scaled * 255).astype(np.uint8))


def _to_srgb(image: Image.Image, profile: bytes) -> Image.Image:
    """Apply a colour profile; one that cannot be read is ignored, as browsers do."""
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
