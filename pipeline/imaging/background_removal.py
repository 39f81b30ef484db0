"""Background removal. Knows nothing of files or of how the result is used."""

from __future__ import annotations

from typing import Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.errors import UnreadableImage

Rgba = NDArray[np.uint8]
Mask = NDArray[np.uint8]

OPAQUE = 255
SOLID_ALPHA = 128
LEAST_SIDE_PX = 8
"""A subject smaller than this in both directions is refused: too few pixels to derive a shape from."""
WORKING_SIDE_PX = 512
"""GrabCut runs on an image reduced to this longer side: its time grows with the number of pixels."""
GRABCUT_ROUNDS = 4
BORDER_SHARE = 0.02  # width of the border that is assumed to be background, relative to the longer side
MAX_BORDER_PIXELS = 4000  # enough for the clusters of the border's colours
LEAST_SHARE, MOST_SHARE = 0.002, 0.98  # of the image that a subject covers


class BackgroundRemover(Protocol):
    """Separates the subject from its background, for example with a model that has downloaded weights."""

    def __call__(self, rgb: NDArray[np.uint8]) -> Mask:
        """Alpha of the subject: (H, W, 3) uint8 sRGB -> (H, W) uint8."""
        ...


def remove_background(image: Rgba, *, remover: BackgroundRemover | None = None) -> Rgba:
    """Return the image with a transparent background; an image with any transparency is kept unchanged.

    Args:
        image: (H, W, 4) uint8 RGBA, straight alpha.
        remover: computes the alpha of an opaque image; by default `grabcut_foreground`.

    Returns:
        (H, W, 4) uint8 RGBA, straight alpha.

    Raises:
        UnreadableImage: the subject is missing or too small.
    """
    _check_side(*image.shape[:2])
    alpha = image[..., 3]
    if (alpha == OPAQUE).all():
        alpha = (remover or grabcut_foreground)(np.ascontiguousarray(image[..., :3]))
        image = np.dstack([image[..., :3], alpha])
    rows, columns = (
        np.flatnonzero((alpha >= SOLID_ALPHA).any(axis=1)),
        np.flatnonzero((alpha >= SOLID_ALPHA).any(axis=0)),
    )
    if len(rows) == 0:
        raise UnreadableImage("the image holds no subject: every pixel is transparent")
    _check_side(rows[-1] + 1 - rows[0], columns[-1] + 1 - columns[0])
    return np.ascontiguousarray(image)


def _check_side(height: int, width: int) -> None:
    if max(height, width) < LEAST_SIDE_PX:
        raise UnreadableImage(
            f"the subject is {width} × {height} pixels; at least {LEAST_SIDE_PX} pixels are needed in one direction"
        )


def grabcut_foreground(rgb: NDArray[np.uint8]) -> Mask:
    """Alpha of the subject of an opaque image, without a model.

    Colours along the image's border seed the background, and the colours farthest from them seed the subject; GrabCut
    classifies the rest at a reduced size, and the edge is sharpened at full size. The paper takes a rectangle drawn by
    a user instead of the seeds.

    Source: Rother, Kolmogorov, Blake, "GrabCut", ACM TOG 23 (2004), as implemented by OpenCV.

    Args:
        rgb: (H, W, 3) uint8.

    Returns:
        (H, W) uint8.

    Raises:
        UnreadableImage: no part of the image differs enough from its border, or almost all of it does.
    """
    height, width = rgb.shape[:2]
    scale = min(1.0, WORKING_SIDE_PX / max(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    small = np.asarray(cv2.resize(rgb, size, interpolation=cv2.INTER_AREA) if scale < 1 else rgb, np.uint8)
    distance = _distance_from_border_colours(small)
    seeds = _seeds(distance)
    if (seeds == cv2.GC_FGD).sum() < max(4, LEAST_SHARE * seeds.size):
        raise UnreadableImage("the image holds no subject that stands out from its background")
    cv2.setRNGSeed(
        0
    )  # GrabCut initialises its clusters from OpenCV's global generator: the same image gives the same mask
    models = np.zeros((2, 1, 65))
    cv2.grabCut(
        small[..., ::-1].copy(), seeds, (0, 0, 0, 0), models[0], models[1], GRABCUT_ROUNDS, cv2.GC_INIT_WITH_MASK
    )
    solid = ((seeds == cv2.GC_FGD) | (seeds == cv2.GC_PR_FGD)).astype(np.uint8)
    solid = _without_small_components(solid)
    share = solid.mean()
    if not LEAST_SHARE <= share <= MOST_SHARE:
        raise UnreadableImage("the image holds no subject that stands out from its background")
    return _at_full_size(solid, (width, height))


def _distance_from_border_colours(rgb: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Distance of each pixel's colour from the nearest cluster of border colours, in units of its spread.

    (H, W, 3) -> (H, W); infinite if no cluster is large enough.
    """
    lab = np.asarray(cv2.cvtColor(rgb, cv2.COLOR_RGB2LAB), np.float32)
    band = max(1, round(BORDER_SHARE * max(rgb.shape[:2])))
    is_border = np.ones(rgb.shape[:2], bool)
    is_border[band:-band, band:-band] = False
    border = lab[is_border]
    if len(border) > MAX_BORDER_PIXELS:
        border = border[:: len(border) // MAX_BORDER_PIXELS]
    clusters = min(3, len(np.unique(border, axis=0)))
    criteria = (cv2.TERM_CRITERIA_EPS + cv2.TERM_CRITERIA_MAX_ITER, 10, 1.0)
    cv2.setRNGSeed(0)
    _, labels, centres = cv2.kmeans(border, clusters, np.zeros((0, 0), np.int32), criteria, 3, cv2.KMEANS_PP_CENTERS)
    labels = np.asarray(labels).ravel()
    nearest = np.full(lab.shape[:2], np.inf, np.float32)
    for k, centre in enumerate(np.asarray(centres, np.float32)):
        members = border[labels == k]
        # At least 4 levels of Lab, about a just noticeable difference, so that a flat background has a spread too.
        spread = max(4.0, 1.5 * float(np.sqrt(((members - centre) ** 2).sum(axis=1).mean())))
        share = len(members) / len(border)
        if share < 0.1:  # a small cluster may be the subject, where it touches the border
            continue
        nearest = np.minimum(nearest, np.sqrt(((lab - centre) ** 2).sum(axis=2)) / spread)
    return nearest


def _seeds(distance: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Seeds for GrabCut from colour distances, (H, W) -> (H, W): definite only where the colour is unambiguous."""
    seeds = np.where(distance > 2.0, cv2.GC_PR_FGD, cv2.GC_PR_BGD).astype(np.uint8)
    seeds[distance > 5.0] = cv2.GC_FGD
    # Definite background is connected to the border and lies in a neighbourhood of which 70 % is near its colours: a
    # thin part of the subject with a similar colour stays undecided.
    calm = np.asarray(cv2.blur((distance < 1.5).astype(np.float32), (9, 9)))
    background = _touching_border((distance < 2.0) & (calm > 0.7))
    seeds[background] = cv2.GC_BGD
    seeds[[0, -1]], seeds[:, [0, -1]] = cv2.GC_BGD, cv2.GC_BGD
    return seeds


def _touching_border(area: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The parts of an area that are connected to the image's border: (H, W) -> (H, W)."""
    _, labels = cv2.connectedComponents(area.astype(np.uint8), connectivity=4)
    labels = np.asarray(labels)
    border = np.unique(np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]]))
    return area & np.isin(labels, border[border > 0])


def _without_small_components(solid: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Drop components, and fill holes, smaller than 0.2 % of the foreground: (H, W) -> (H, W)."""
    least = 0.002 * solid.sum()
    for inside in (1, 0):
        count, labels, stats, _ = cv2.connectedComponentsWithStats((solid == inside).astype(np.uint8), connectivity=8)
        small = [k for k in range(1, count) if stats[k, cv2.CC_STAT_AREA] < least]
        solid = np.where(np.isin(np.asarray(labels), small), 1 - inside, solid).astype(np.uint8)
    return solid


def _at_full_size(solid: NDArray[np.uint8], size: tuple[int, int]) -> Mask:
    """Enlarge a mask to `size`, (width, height), with an edge about one small pixel wide: (h, w) -> (H, W)."""
    soft = cv2.GaussianBlur(solid.astype(np.float32), (0, 0), 0.7)
    large = np.asarray(cv2.resize(soft, size, interpolation=cv2.INTER_CUBIC), np.float32)
    sharp = np.clip((large - 0.5) * 2 + 0.5, 0, 1)
    return np.round(sharp * 255).astype(np.uint8)
