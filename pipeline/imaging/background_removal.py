"""Background removal: an image's own cut-out where it has one, else a remover's. Knows nothing of files."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.errors import UnreadableImage
from pipeline.imaging.cutout import Separation, separate

Rgba = NDArray[np.uint8]

SOLID_ALPHA = 128
LEAST_SIDE_PX = 8
"""A subject smaller than this in both directions is refused: too few pixels to derive a shape from."""
LEAST_TRANSPARENT = 0.02
"""Share of transparent pixels from which alpha is a cut-out: rounded corners of a screenshot stay below."""
MOST_IN_CORNERS = 0.08
"""Share up to which transparent pixels are rounded corners if they lie at the corners alone; an app icon's are 5 %."""

LEAST_IN_FRAME, MOST_IN_FRAME = 0.02, 0.9
"""Share of a framed rectangle that a subject in it has: less is a detail of what is shown, more is all of it."""

TRUSTED_CONFIDENCE = 0.65
"""Below it a cut-out carries a warning; see `cutout.confidence` for what was measured."""


class BackgroundRemover(Protocol):
    """Separates the subject from its background, for example with a model that has downloaded weights."""

    def __call__(self, rgb: NDArray[np.uint8]) -> Separation:
        """Alpha of the subject: (H, W, 3) uint8 sRGB -> alpha (H, W) uint8."""
        ...


@dataclass(frozen=True, eq=False)
class Cutout:
    """A subject without its background.

    Attributes:
        image: (H, W, 4) uint8 RGBA, straight alpha.
        was_removed: the background was removed here; the image had none or came without a cut-out otherwise.
        confidence: 0 to 1 where the remover gives one, else None.
        lost_transparency: the image was a cut-out, and its transparency was ignored on request.
    """

    image: Rgba
    was_removed: bool = False
    confidence: float | None = None
    lost_transparency: bool = False


def remove_background(image: Rgba, *, remover: BackgroundRemover | None = None) -> Rgba:
    """The image of `cut_out`."""
    return cut_out(image, remover=remover).image


def cut_out(image: Rgba, *, remover: BackgroundRemover | None = None) -> Cutout:
    """Return the subject with a transparent background; an image that is a cut-out is kept unchanged.

    A rectangle in a transparent frame may be an image that was padded, or a subject such as a book: the background in
    it is removed where the remover finds a subject and is sure of it.

    Args:
        image: (H, W, 4) uint8 RGBA, straight alpha.
        remover: computes the alpha of any other image; by default `cutout.separate`.

    Raises:
        UnreadableImage: the subject is missing or too small.
    """
    _check_side(*image.shape[:2])
    remover = remover or separate
    if is_cut_out(image[..., 3]):
        cutout = _removed_in_frame(image, remover) or Cutout(np.ascontiguousarray(image))
    else:
        cutout = _removed(image, remover)
    alpha = cutout.image[..., 3]
    rows, columns = (np.flatnonzero((alpha >= SOLID_ALPHA).any(axis=axis)) for axis in (1, 0))
    if len(rows) == 0:
        raise UnreadableImage("the image holds no subject: every pixel is transparent")
    _check_side(rows[-1] + 1 - rows[0], columns[-1] + 1 - columns[0])
    return cutout


def keep_whole(image: Rgba) -> Cutout:
    """Return the whole image as the subject, opaque; what is transparent becomes white, as on a page.

    Args:
        image: (H, W, 4) uint8 RGBA, straight alpha.

    Raises:
        UnreadableImage: it is too small.
    """
    _check_side(*image.shape[:2])
    alpha = image[..., 3:].astype(np.float32) / 255
    colours = np.round(image[..., :3] * alpha + 255 * (1 - alpha)).astype(np.uint8)
    opaque = np.full(image.shape[:2], 255, np.uint8)
    return Cutout(np.dstack([colours, opaque]), lost_transparency=is_cut_out(image[..., 3]))


def is_cut_out(alpha: NDArray[np.uint8]) -> bool:
    """Whether an alpha channel (H, W) shows a subject, and not a whole image that is nearly opaque.

    One transparent pixel, alpha 254 everywhere or rounded corners are no cut-out.
    """
    clear = alpha < SOLID_ALPHA
    share = float(clear.mean())
    if share < LEAST_TRANSPARENT:
        return False
    return share > MOST_IN_CORNERS or not _is_in_corners(clear)


def _is_in_corners(clear: NDArray[np.bool_]) -> bool:
    """Whether transparent pixels lie in the four corners alone, each a third of a side long."""
    height, width = clear.shape
    rows, columns = slice(height // 3, height - height // 3), slice(width // 3, width - width // 3)
    return not clear[rows].any() and not clear[:, columns].any()


def _removed_in_frame(image: Rgba, remover: BackgroundRemover) -> Cutout | None:
    """Remove the background of an image that is opaque in a rectangle; None if it is not, or holds no sure subject."""
    clear = image[..., 3] < SOLID_ALPHA
    rows, columns = (np.flatnonzero(~clear.all(axis=axis)) for axis in (1, 0))
    if len(rows) == 0:
        return None
    box = (slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))
    if is_cut_out(image[..., 3][box]):
        return None
    try:
        found = _removed(image[box], remover)
    except UnreadableImage:  # one colour, or one pattern
        return None
    share = float((found.image[..., 3] >= SOLID_ALPHA).mean())
    is_sure = found.confidence is None or found.confidence >= TRUSTED_CONFIDENCE
    if not is_sure or not LEAST_IN_FRAME <= share <= MOST_IN_FRAME:
        return None
    whole = image.copy()
    whole[..., 3] = 0
    whole[box] = found.image
    return replace(found, image=whole)


def _removed(image: Rgba, remover: BackgroundRemover) -> Cutout:
    """Remove the background of an image whose alpha is no cut-out."""
    alpha = image[..., 3]
    clear = alpha < SOLID_ALPHA
    separation = remover(_filled(image, clear))
    found = np.where(clear, 0, separation.alpha)
    return Cutout(np.dstack([image[..., :3], found]).astype(np.uint8), True, separation.confidence)


def _filled(image: Rgba, clear: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Colours with those of the nearest opaque pixel where alpha is clear: (H, W, 4) -> (H, W, 3)."""
    rgb = np.ascontiguousarray(image[..., :3])
    if not clear.any() or clear.all():
        return rgb
    _, labels = cv2.distanceTransformWithLabels(clear.astype(np.uint8), cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL)
    labels = np.asarray(labels, np.int32)
    colours = np.zeros((int(labels.max()) + 1, 3), np.uint8)
    colours[labels[~clear]] = rgb[~clear]
    return np.where(clear[..., None], colours[labels], rgb)


def _check_side(height: int, width: int) -> None:
    if max(height, width) < LEAST_SIDE_PX:
        raise UnreadableImage(
            f"the subject is {width} × {height} pixels; at least {LEAST_SIDE_PX} pixels are needed in one direction"
        )
