"""Which parts of a mask are the subject: thin and detached parts stay, things of the ground go."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.imaging.cutout.ground import Area, Field, Rgb

LEAST_PART = 0.002  # of the mask; smaller components and holes are noise
NEAR_SHARE = 0.025  # of the longer side: a part within this distance of the main part belongs to it
FLAT_LEVELS = 3.2  # standard deviation of the colour of a thing without shading, on top of the image's noise
LEAST_FLAT = 0.0006  # of the image
FLAT_GRADIENT = 2.2  # levels per pixel inside a flat thing, on top of the image's noise
OPEN_SHARE = 0.22  # of a flat thing's outline that lies against the ground
CLUTTER_COUNT = 2
"""So many dropped things beside the subject show that the ground is cluttered; then flat things at its rim go too."""


@dataclass(frozen=True, eq=False)
class Parts:
    """A cleaned mask.

    Attributes:
        mask: (h, w) the subject.
        dropped: how many larger components were judged not to be parts of the subject.
        dropped_share: their area relative to the subject's.
    """

    mask: Area
    dropped: int
    dropped_share: float


def subject_parts(mask: Area, image: Rgb, edges: Field, noise: float) -> Parts:
    """Keep the main component, what belongs to it, and nothing else.

    The main component is the largest, weighted by how central it is. Another one belongs to it where it lies close,
    or where its colours are the main component's and its height overlaps it.
    """
    mask = without_small_components(mask)
    flat = _flat_things(mask, image, edges, noise)
    kept, dropped, area = _related(mask, image, flat)
    if dropped >= CLUTTER_COUNT and flat.any():
        core = cv2.morphologyEx((kept & ~flat).astype(np.uint8), cv2.MORPH_OPEN, np.ones((3, 3), np.uint8)) > 0
        # Opening loses thin parts: those that touch what is left come back.
        core |= kept & ~flat & (cv2.dilate(core.astype(np.uint8), np.ones((5, 5), np.uint8)) > 0)
        if core.sum() > 0.3 * kept.sum():
            kept, more, more_area = _related(without_small_components(core), image, flat)
            dropped, area = dropped + more, area + more_area
    return Parts(kept, dropped, area / max(1, int(kept.sum())))


def without_small_components(mask: Area) -> Area:
    """Drop components, and fill holes, smaller than 0.2 % of the foreground: (h, w) -> (h, w)."""
    solid, least = mask.astype(np.uint8), LEAST_PART * mask.sum()
    for inside in (1, 0):
        _, labels, stats, _ = cv2.connectedComponentsWithStats((solid == inside).astype(np.uint8), connectivity=8)
        small = np.flatnonzero(np.asarray(stats)[:, cv2.CC_STAT_AREA] < least)
        solid = np.where(np.isin(np.asarray(labels), small[small > 0]), 1 - inside, solid).astype(np.uint8)
    return solid > 0


def _related(mask: Area, image: Rgb, flat: Area) -> tuple[Area, int, int]:
    """The main component with its parts, the number of others, and their area."""
    height, width = mask.shape
    # Lines of one or two pixels, such as the edge of a table, join components that have nothing to do with each other.
    count, labels, stats, centres = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    labels = np.asarray(labels)
    if count <= 2:
        return mask, 0, 0
    areas = np.asarray(stats)[1:, cv2.CC_STAT_AREA].astype(float)
    offset = (np.asarray(centres)[1:] - (width / 2, height / 2)) / (width / 2, height / 2)
    main = 1 + int((areas * np.exp(-1.5 * (offset**2).sum(axis=1))).argmax())
    reach = _distance_to(labels == main)
    colours = _histogram(image[labels == main])
    kept, dropped, dropped_area = labels == main, 0, 0
    for number in range(1, count):
        if number == main:
            continue
        part = labels == number
        if flat[part].mean() > 0.6:
            dropped, dropped_area = dropped + 1, dropped_area + int(areas[number - 1])
            continue
        alike = float(np.minimum(colours, _histogram(image[part])).sum())
        gap = float(reach[part].min()) / max(height, width)
        size = areas[number - 1] / areas[main - 1]
        if gap < NEAR_SHARE and alike > 0.12 or alike > 0.35 and gap < 4 * NEAR_SHARE or alike > 0.6 and size > 0.02:
            kept = kept | part
        else:
            dropped, dropped_area = dropped + 1, dropped_area + int(areas[number - 1])
    return kept, dropped, dropped_area


def _distance_to(area: Area) -> Field:
    return np.asarray(cv2.distanceTransform((~area).astype(np.uint8), cv2.DIST_L2, 3), np.float32)


def _histogram(pixels: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Shares of 512 colours: (N, 3) -> (512,)."""
    bins = (pixels.astype(np.int32) >> 5) @ np.array([64, 8, 1])
    return np.bincount(bins, minlength=512) / max(1, len(pixels))


def _flat_things(mask: Area, image: Rgb, edges: Field, noise: float) -> Area:
    """Regions of one unshaded colour at the mask's rim: boxes, screens and books behind the subject."""
    inner = mask & (edges < FLAT_GRADIENT + noise)
    count, labels, stats, _ = cv2.connectedComponentsWithStats(inner.astype(np.uint8), connectivity=4)
    labels, found = np.asarray(labels), np.zeros_like(mask)
    for number in range(1, count):
        left, top, w, h, area = (int(v) for v in np.asarray(stats)[number])
        if area < LEAST_FLAT * mask.size or area > 0.3 * mask.sum():
            continue
        window = (slice(max(0, top - 4), top + h + 4), slice(max(0, left - 4), left + w + 4))
        part = labels[window] == number
        if float(image[window][part].std(axis=0).max()) > FLAT_LEVELS + noise:
            continue
        grown = cv2.dilate(part.astype(np.uint8), np.ones((7, 7), np.uint8)) > 0
        rim = grown & ~(cv2.dilate(part.astype(np.uint8), np.ones((5, 5), np.uint8)) > 0)
        if (~mask[window][rim]).mean() > OPEN_SHARE:
            found[window] |= grown & mask[window]
    return found
