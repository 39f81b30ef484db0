"""Separates the subject of an opaque image from its background: several hypotheses, the best one at full size."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.errors import UnreadableImage
from pipeline.imaging.cutout.confidence import Evidence, confidence_of, evidence_of
from pipeline.imaging.cutout.ground import (
    LIT,
    Area,
    Explained,
    Rgb,
    edge_strength,
    explain,
    noise_of,
    palette_ground,
    row_ground,
    smooth_ground,
    smoother_than_ground,
)
from pipeline.imaging.cutout.parts import subject_parts

WORKING_SIDE_PX = 448
"""Hypotheses are made on an image reduced to this longer side: GrabCut's time grows with the number of pixels."""
GRABCUT_ROUNDS = 2
LEAST_SHARE, MOST_SHARE = 0.002, 0.98  # of the image that a subject covers
EDGE_LIMIT = 5.0  # levels per pixel; the steepest soft shadow measured has 3.5 at the working size
LEAST_HOLE_PX = 12  # at the working size; smaller gaps are left to the smoothness term
SAME_AS_GROUND = 1.1  # mean distance in spreads up to which an enclosed area is ground without doubt
EDGE_REACH_PX = 1.5  # working pixels by which the edge may be wrong
EDGE_LEVEL = 0.62
"""Level of the enlarged mask at its edge. GrabCut counts pixels that are half ground to the subject: at 0.5 masks are a
third of a working pixel too large."""
EDGE_CONTRAST = 30.0  # levels between subject and ground from which colours decide at the edge
NO_SUBJECT = "the image holds no subject that stands out from its background"


@dataclass(frozen=True, eq=False)
class Separation:
    """The subject's alpha.

    Attributes:
        alpha: (H, W) uint8.
        confidence: 0 to 1, an estimate of the mask's quality; None where a model that gives none made it.
    """

    alpha: NDArray[np.uint8]
    confidence: float | None = None


@dataclass(frozen=True, eq=False)
class Hypothesis:
    """A mask at the working size, (h, w), and what speaks for it."""

    name: str
    mask: Area
    evidence: Evidence
    confidence: float = 0.0


def separate(rgb: Rgb) -> Separation:
    """Alpha of the subject of an opaque image, without a model.

    Args:
        rgb: (H, W, 3) uint8 sRGB.

    Raises:
        UnreadableImage: no part of the image differs enough from its border, or almost all of it does.
    """
    small = reduced(rgb)
    found = hypotheses(small)
    if not found:
        raise UnreadableImage(NO_SUBJECT)
    best = max(found, key=lambda each: each.confidence)
    return Separation(_at_full_size(best.mask, rgb), round(best.confidence, 3))


def reduced(rgb: Rgb) -> Rgb:
    """The image at the working size: (H, W, 3) -> (h, w, 3)."""
    height, width = rgb.shape[:2]
    scale = min(1.0, WORKING_SIDE_PX / max(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return np.ascontiguousarray(cv2.resize(rgb, size, interpolation=cv2.INTER_AREA) if scale < 1 else rgb, np.uint8)


def hypotheses(image: Rgb) -> list[Hypothesis]:
    """Every hypothesis about an image at the working size with its confidence: (h, w, 3) -> masks (h, w)."""
    noise, edges = noise_of(image), edge_strength(image)
    edge_limit = max(EDGE_LIMIT, 2.5 * noise)
    grounds = {"smooth": smooth_ground(image, edge_limit), "rows": row_ground(image), "palette": palette_ground(image)}
    smooth = smoother_than_ground(image)
    made: list[Hypothesis] = []
    for name, ground in grounds.items():
        explained = explain(image, ground, edge_limit, smooth=smooth)
        mask = _grabcut(image, explained)
        if not LEAST_SHARE <= mask.mean() <= MOST_SHARE:
            continue
        parts = subject_parts(mask, image, edges, noise)
        if not LEAST_SHARE <= parts.mask.mean() <= MOST_SHARE:
            continue
        made.append(Hypothesis(name, parts.mask, evidence_of(image, edges, parts, ground, smooth)))
    masks = [each.mask for each in made]
    return [
        Hypothesis(each.name, each.mask, each.evidence, confidence_of(each.evidence, each.mask, masks)) for each in made
    ]


def _grabcut(image: Rgb, explained: Explained) -> Area:
    """Classify what a ground leaves undecided by colour and edges.

    The paper takes a rectangle drawn by a user instead of the seeds.

    Source: Rother, Kolmogorov, Blake, "GrabCut", ACM TOG 23 (2004), as implemented by OpenCV.
    """
    area, nearest_lit = explained.area, explained.lit
    nearest = np.minimum(nearest_lit, explained.shadowed)
    seeds = np.full(area.shape, cv2.GC_PR_FGD, np.uint8)
    enclosed = explained.candidates & ~area & ((explained.lit < 1.8) | (explained.shadowed < 1.2))
    _, labels, stats, _ = cv2.connectedComponentsWithStats(enclosed.astype(np.uint8), connectivity=4)
    areas, labels = np.asarray(stats)[:, cv2.CC_STAT_AREA], np.asarray(labels)
    large = np.flatnonzero(areas >= LEAST_HOLE_PX)
    seeds[np.isin(labels, large[large > 0])] = cv2.GC_PR_BGD
    distance = np.bincount(labels.ravel(), nearest_lit.ravel(), minlength=len(areas)) / np.maximum(areas, 1)
    same = np.flatnonzero((areas >= 2 * LEAST_HOLE_PX) & (distance < SAME_AS_GROUND))
    sure = np.isin(labels, same[same > 0])
    seeds[sure] = cv2.GC_BGD
    shaded = np.flatnonzero((areas >= 2 * LEAST_HOLE_PX) & (distance > LIT))
    is_shaded = np.isin(labels, shaded[shaded > 0])
    inside = cv2.erode((~area).astype(np.uint8), np.ones((5, 5), np.uint8)) > 0
    seeds[((nearest > 4) | explained.smooth) & inside] = cv2.GC_FGD
    if is_shaded.sum() > 2 * (seeds == cv2.GC_FGD).sum():  # a grey subject on a grey ground, and no shadow in a gap
        seeds[is_shaded] = cv2.GC_FGD
    seeds[area] = cv2.GC_PR_BGD
    seeds[cv2.erode(area.astype(np.uint8), np.ones((3, 3), np.uint8)) > 0] = cv2.GC_BGD
    seeds[[0, -1]], seeds[:, [0, -1]] = cv2.GC_BGD, cv2.GC_BGD
    if (seeds == cv2.GC_FGD).sum() < max(4, LEAST_SHARE / 2 * seeds.size):
        return np.zeros_like(area)
    cv2.setRNGSeed(0)  # GrabCut initialises its clusters from OpenCV's global generator
    models = np.zeros((2, 1, 65))
    bgr = np.ascontiguousarray(image[..., ::-1])
    cv2.grabCut(bgr, seeds, (0, 0, 0, 0), models[0], models[1], GRABCUT_ROUNDS, cv2.GC_INIT_WITH_MASK)
    return (seeds == cv2.GC_FGD) | (seeds == cv2.GC_PR_FGD)


def _at_full_size(mask: Area, rgb: Rgb) -> NDArray[np.uint8]:
    """Enlarge a mask and follow the colours at its edge: (h, w) -> (H, W).

    Beside the edge a pixel's alpha is its place between the mean colours of the subject and of the ground near it;
    where these hardly differ, the enlarged mask decides.
    """
    soft = cv2.GaussianBlur(mask.astype(np.float32), (0, 0), 0.7)
    large = np.asarray(cv2.resize(soft, rgb.shape[1::-1], interpolation=cv2.INTER_CUBIC), np.float32)
    smooth = np.clip((large - EDGE_LEVEL) * 2 + 0.5, 0, 1)
    scale = max(rgb.shape[:2]) / max(mask.shape)
    reach = 2 * round(EDGE_REACH_PX * scale) + 1  # of the band in which the edge may move
    kernel = np.ones((reach, reach), np.uint8)
    solid = (large > 0.5).astype(np.uint8)
    inner, outer = (np.asarray(each, np.uint8) for each in (cv2.erode(solid, kernel), 1 - cv2.dilate(solid, kernel)))
    band = (inner == 0) & (outer == 0)
    subject, ground = (_mean_nearby(rgb, each, radius=2 * reach) for each in (inner, outer))
    towards = subject[0] - ground[0]
    contrast = (towards**2).sum(axis=2)
    share = ((rgb - ground[0]) * towards).sum(axis=2) / np.maximum(contrast, 1)
    is_clear = band & (contrast > EDGE_CONTRAST**2) & subject[1] & ground[1]
    colour = np.clip((share - 0.5) * 1.4 + 0.5, 0, 1)
    alpha = np.where(is_clear, 0.5 * (colour + smooth), smooth)
    return np.round(np.clip((alpha - 0.5) * 1.6 + 0.5, 0, 1) * 255).astype(np.uint8)


def _mean_nearby(rgb: Rgb, area: NDArray[np.uint8], *, radius: int) -> tuple[NDArray[np.float32], Area]:
    """Mean colour of an area around every pixel, (H, W, 3), and where there is any of it."""
    size = (2 * radius + 1, 2 * radius + 1)
    weight = cv2.boxFilter(area.astype(np.float32), -1, size)
    colours = cv2.boxFilter(rgb.astype(np.float32) * area[..., None], -1, size)
    return np.asarray(colours / np.maximum(weight, 1e-4)[..., None], np.float32), np.asarray(weight > 1e-3)
