"""Which parts of a mask are the subject: thin and detached parts stay, things of the ground go."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.imaging.cutout.ground import MOST_NOISE, Area, Field, Rgb, without_shading

LEAST_PART = 0.002  # of the mask; smaller components and holes are noise
LINE_PX = 4  # working pixels; the edge of a table is about as thick after the reduction
NEAR_SHARE = 0.025  # of the longer side: a part within this distance of the main part belongs to it
FLAT_LEVELS = 0.5
"""Deviation of the colour of a thing without shading beyond the image's noise, in levels. Flat things of the measuring
set have at most 0.46; flat parts of its subjects at the rim 0.7 or more, but for few."""
FLAT_GRADIENT = 2.2  # levels per pixel inside a flat thing, on top of the image's noise
LEAST_FLAT, MOST_FLAT = 0.0004, 0.12  # of the image
OPEN_SHARE = 0.27  # of a flat thing's outline that lies against the ground
BLUR_PX = 4  # working pixels from an edge to where its gradient has faded
MOST_CALM = 0.3  # share of such pixels in a subject; shaded ones of the measuring set have at most 0.1, its grounds 0.7
SLIVER_PX = 3  # working pixels beside a dropped thing in which its blurred edge is left
LEAST_CORE = 0.12  # of a mask that must be left without its flat things
CLUTTER_COUNT = 2
"""So many flat or dropped things show that the ground is cluttered; then flat things at the subject's rim go too."""


@dataclass(frozen=True, eq=False)
class Parts:
    """A cleaned mask.

    Attributes:
        mask: (h, w) the subject.
        dropped: how many larger components were judged not to be parts of the subject.
    """

    mask: Area
    dropped: int


def subject_parts(mask: Area, image: Rgb, edges: Field, noise: float) -> Parts:
    """Keep the main component, what belongs to it, and nothing else.

    The main component is the largest, weighted by how central it is. Another one belongs to it where it lies close,
    or where its colours are the main component's.
    """
    mask = without_small_components(_without_lines(mask))
    flat, count = _flat_things(mask, image, edges, noise)
    kept, dropped = _related(mask, image, flat)
    if max(count, dropped) >= CLUTTER_COUNT and flat.any():
        core = _without(kept, flat)
        if core.sum() > LEAST_CORE * kept.sum() and _is_shaded(core, edges, noise):
            kept, more = _related(without_small_components(core), image, flat)
            dropped += more
    return Parts(kept, max(count, dropped))


def _is_shaded(mask: Area, edges: Field, noise: float) -> bool:
    """Whether a mask shows a shaded thing; in a drawing of plain colours, flat parts are parts of the subject."""
    inner = cv2.erode(mask.astype(np.uint8), np.ones((2 * BLUR_PX + 1,) * 2, np.uint8)) > 0
    return not inner.any() or float(without_shading(edges, noise)[inner].mean()) < MOST_CALM


def _without(mask: Area, things: Area) -> Area:
    """Drop things, and the slivers of a mask that are left beside them: (h, w) -> (h, w)."""
    left = mask & ~things
    opened = cv2.morphologyEx(left.astype(np.uint8), cv2.MORPH_OPEN, np.ones((3, 3), np.uint8)) > 0
    beside = cv2.dilate(things.astype(np.uint8), np.ones((2 * SLIVER_PX + 1,) * 2, np.uint8)) > 0
    return left & (opened | ~beside)


def _without_lines(mask: Area) -> Area:
    """Drop thin level lines that start at a side of the image, such as the edge of a table: (h, w) -> (h, w)."""
    width = mask.shape[1]
    thick = cv2.morphologyEx(mask.astype(np.uint8), cv2.MORPH_OPEN, np.ones((LINE_PX + 2, 1), np.uint8)) > 0
    count, labels, stats, _ = cv2.connectedComponentsWithStats((mask & ~thick).astype(np.uint8), connectivity=8)
    stats, kept = np.asarray(stats), mask.copy()
    for number in range(1, count):
        left, top, w, h, _ = (int(v) for v in stats[number])
        is_level = h <= LINE_PX + 4 and w >= 0.08 * width
        if is_level and (left <= 0.01 * width or left + w >= 0.99 * width):
            kept[top : top + h][np.asarray(labels)[top : top + h] == number] = False
    return kept


def without_small_components(mask: Area) -> Area:
    """Drop components, and fill holes, smaller than 0.2 % of the foreground: (h, w) -> (h, w)."""
    solid, least = mask.astype(np.uint8), LEAST_PART * mask.sum()
    for inside in (1, 0):
        _, labels, stats, _ = cv2.connectedComponentsWithStats((solid == inside).astype(np.uint8), connectivity=8)
        small = np.flatnonzero(np.asarray(stats)[:, cv2.CC_STAT_AREA] < least)
        solid = np.where(np.isin(np.asarray(labels), small[small > 0]), 1 - inside, solid).astype(np.uint8)
    return solid > 0


def _related(mask: Area, image: Rgb, flat: Area) -> tuple[Area, int]:
    """The main component with its parts, and the number of the others."""
    height, width = mask.shape
    count, labels, stats, centres = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    labels = np.asarray(labels)
    if count <= 2:
        return mask, 0
    areas = np.asarray(stats)[1:, cv2.CC_STAT_AREA].astype(float)
    offset = (np.asarray(centres)[1:] - (width / 2, height / 2)) / (width / 2, height / 2)
    main = 1 + int((areas * np.exp(-1.5 * (offset**2).sum(axis=1))).argmax())
    reach = _distance_to(labels == main)
    colours = _histogram(image[labels == main])
    kept, dropped = labels == main, 0
    for number in range(1, count):
        if number == main:
            continue
        part = labels == number
        if flat[part].mean() > 0.6:
            dropped += 1
            continue
        alike = float(np.minimum(colours, _histogram(image[part])).sum())
        gap = float(reach[part].min()) / max(height, width)
        size = areas[number - 1] / areas[main - 1]
        is_near = (gap < NEAR_SHARE and alike > 0.12) or (gap < 4 * NEAR_SHARE and alike > 0.35)
        if is_near or (alike > 0.6 and size > 0.02):
            kept = kept | part
        else:
            dropped += 1
    return kept, dropped


def _distance_to(area: Area) -> Field:
    return np.asarray(cv2.distanceTransform((~area).astype(np.uint8), cv2.DIST_L2, 3), np.float32)


def _histogram(pixels: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Shares of 512 colours: (N, 3) -> (512,)."""
    bins = (pixels.astype(np.int32) >> 5) @ np.array([64, 8, 1])
    return np.bincount(bins, minlength=512) / max(1, len(pixels))


def _flat_things(mask: Area, image: Rgb, edges: Field, noise: float) -> tuple[Area, int]:
    """Regions of one unshaded colour at the mask's rim, such as boxes, screens and books, and their number."""
    found, things = np.zeros_like(mask), 0
    if noise > MOST_NOISE:
        return found, things
    inner = mask & (edges < FLAT_GRADIENT + noise)
    count, labels, stats, _ = cv2.connectedComponentsWithStats(inner.astype(np.uint8), connectivity=4)
    labels, reach = np.asarray(labels), BLUR_PX + 2
    for number in range(1, count):
        left, top, w, h, area = (int(v) for v in np.asarray(stats)[number])
        if not LEAST_FLAT <= area / mask.size <= MOST_FLAT:
            continue
        window = (slice(max(0, top - reach), top + h + reach), slice(max(0, left - reach), left + w + reach))
        part = (labels[window] == number).astype(np.uint8)
        if float(image[window][part > 0].std(axis=0).max()) > FLAT_LEVELS + noise:
            continue
        grown = cv2.dilate(part, np.ones((2 * BLUR_PX + 1,) * 2, np.uint8)) > 0
        rim = (cv2.dilate(part, np.ones((2 * reach + 1,) * 2, np.uint8)) > 0) & ~grown
        if (~mask[window][rim]).mean() > OPEN_SHARE:
            found[window] |= grown & mask[window]
            things += 1
    return found, things
