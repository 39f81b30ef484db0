"""Parts of a subject that lie before its body, such as an arm across a chest, told from prints by colour and contour.

A part is before the body if it sticks out of the body's silhouette and re-enters it: its colour continues from a limb
of the mask to a place that the body surrounds. A stripe ends at the silhouette, and a label, a window or an eye lies
within it: neither sticks out. Knows nothing of heights.

Source: the depth order of regions follows Dvorožňák et al., "Monster Mash" (2020), where a user draws them.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage, sparse
from scipy.sparse.csgraph import connected_components

SIDE_PX = 160  # images are segmented at this size
LEVEL = 0.5
LIGHTNESS_WEIGHT = 0.35  # of the lightness relative to a and b of CIELAB: shading varies lightness
SPATIAL_RADIUS_PX, COLOUR_RADIUS = 6, 9  # of the mean shift
EDGE = 6.0  # step of colour between neighbouring pixels, after the mean shift, that separates regions
SAME_HUE_RAD, SAME_LIGHTNESS = np.deg2rad(7), 1.5  # largest angle and ratio between colours of one material
LEAST_REGION = 0.0015  # of the image; smaller ones join the nearest region

# Areas are shares of the mask.
SMALLEST, LARGEST = 0.015, 0.4
LEAST_INSIDE, LEAST_OUTSIDE = 0.15, 0.1  # of a part, relative to the body's hull
SLENDER = 0.6  # largest width relative to that of the body
DEEP = 1.0  # how far the part reaches into the body, relative to its width
SOLID = 0.8  # of the body's hull that the body and the part fill
SURROUNDED = 0.75  # of the border of the inner portion that the body's colour takes


@dataclass(frozen=True, eq=False)
class FrontParts:
    """Parts before the body.

    Attributes:
        mask: (H, W) float32, 0 to 1, the parts as a whole.
        overlap: (H, W) float32, 1 where they lie before the body, 0 where they are seen beside it.
    """

    mask: NDArray[np.float32]  # (H, W)
    overlap: NDArray[np.float32]  # (H, W)


def find_front_parts(colours: NDArray[np.float32], alpha: NDArray[np.float32]) -> FrontParts | None:
    """Return the parts that lie before the body, or None if none is clear.

    Args:
        colours: (H, W, 3) float32 sRGB, 0 to 1.
        alpha: (H, W) float32, 0 to 1, cropped to the subject.
    """
    scale = SIDE_PX / max(alpha.shape)
    size = (max(3, round(alpha.shape[1] * scale)), max(3, round(alpha.shape[0] * scale)))
    solid = cv2.resize(alpha, size, interpolation=cv2.INTER_AREA) > LEVEL
    lab = cv2.cvtColor(cv2.resize(colours, size, interpolation=cv2.INTER_AREA), cv2.COLOR_RGB2LAB)
    labels = _regions(_smooth_colours(lab), solid)
    mask, overlap = np.zeros(solid.shape, bool), np.zeros(solid.shape, bool)
    for part, body in _candidates(labels, _same_material(lab, labels)):
        inner = part & _hull(body)
        if _is_before(part, inner, body, solid):
            mask |= part
            overlap |= inner
    if not mask.any():
        return None
    full = (alpha.shape[1], alpha.shape[0])
    return FrontParts(*(np.asarray(cv2.resize(each.astype(np.float32), full), np.float32) for each in (mask, overlap)))


def _smooth_colours(lab: NDArray) -> NDArray[np.float32]:
    """Return CIELAB colours (h, w, 3) with a reduced lightness, smoothed by a mean shift."""
    weighted = np.clip(lab * (LIGHTNESS_WEIGHT, 1, 1) + (0, 128, 128), 0, 255).astype(np.uint8)
    return np.asarray(cv2.pyrMeanShiftFiltering(weighted, SPATIAL_RADIUS_PX, COLOUR_RADIUS), np.float32)


def _regions(smooth: NDArray[np.float32], solid: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Return regions that no edge crosses, (h, w): 0 outside the mask, others numbered from 1."""
    number = np.arange(solid.size).reshape(solid.shape)
    first: list[NDArray] = []
    second: list[NDArray] = []
    for near, far in ((np.s_[:, :-1], np.s_[:, 1:]), (np.s_[:-1], np.s_[1:])):
        is_joined = solid[near] & solid[far] & (np.linalg.norm(smooth[near] - smooth[far], axis=-1) < EDGE)
        first.append(number[near][is_joined])
        second.append(number[far][is_joined])
    pairs = (np.concatenate(first), np.concatenate(second))
    graph = sparse.coo_matrix((np.ones(len(pairs[0])), pairs), shape=(solid.size, solid.size))
    labels = connected_components(graph, directed=False)[1].reshape(solid.shape)
    is_large = solid & (np.bincount(labels.ravel())[labels] >= LEAST_REGION * solid.size)
    if not is_large.any():
        return solid.astype(np.int64)
    rows, columns = np.asarray(ndimage.distance_transform_edt(~is_large, return_distances=False, return_indices=True))
    labels = labels[rows, columns]
    return np.where(solid, np.unique(labels, return_inverse=True)[1].reshape(solid.shape) + 1, 0)


def _same_material(lab: NDArray, labels: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return which regions differ by shading alone, (regions, regions).

    Light multiplies a linear colour by k, and with it L + 16, a and b of CIELAB by the cube root of k: the direction of
    that vector is the material's.
    """
    counts = np.bincount(labels.ravel())[1:]
    channels = np.moveaxis(lab + np.array([16, 0, 0]), 2, 0)
    means = [np.bincount(labels.ravel(), channel.ravel())[1:] / counts for channel in channels]
    vectors = np.stack(means, axis=1)  # (regions, 3)
    lengths = np.linalg.norm(vectors, axis=1)
    cosine = vectors @ vectors.T / np.outer(lengths, lengths)
    ratio = lengths[:, None] / lengths
    return (cosine > np.cos(SAME_HUE_RAD)) & (np.maximum(ratio, ratio.T) < SAME_LIGHTNESS)


def _candidates(
    labels: NDArray[np.int64], is_same: NDArray[np.bool_]
) -> list[tuple[NDArray[np.bool_], NDArray[np.bool_]]]:
    """Return pairs of a part and what may be the body behind it: the material that borders it most."""
    found: list[tuple[NDArray[np.bool_], NDArray[np.bool_]]] = []
    area = int((labels > 0).sum())
    taken = np.zeros(len(is_same), bool)
    for start in range(len(is_same)):
        if taken[start]:
            continue
        taken |= is_same[start]
        material = _of_regions(is_same[start], labels).astype(np.uint8)
        count, pieces = cv2.connectedComponents(material, connectivity=8)
        for number in range(1, count):
            part = pieces == number
            if not SMALLEST * area <= part.sum() <= LARGEST * area:
                continue
            ring = labels[_grown(part) & ~part & (labels > 0)]
            if len(ring):
                behind = is_same[np.bincount(ring).argmax() - 1] & ~is_same[start]
                found.append((part, _of_regions(behind, labels)))
    return found


def _of_regions(chosen: NDArray[np.bool_], labels: NDArray[np.int64]) -> NDArray[np.bool_]:
    return np.concatenate([np.zeros(1, bool), chosen])[labels]


def _is_before(
    part: NDArray[np.bool_], inner: NDArray[np.bool_], body: NDArray[np.bool_], solid: NDArray[np.bool_]
) -> bool:
    """Return whether a part sticks out of the body and lies before it; `inner` is what the body's hull contains."""
    if not LEAST_INSIDE <= inner.sum() / part.sum() <= 1 - LEAST_OUTSIDE:
        return False
    if (body | inner).sum() < SOLID * _hull(body).sum():
        return False
    radius = _largest_radius(part)
    if radius > SLENDER * _largest_radius(body | inner):
        return False
    reach = np.asarray(ndimage.distance_transform_edt(~(part & ~inner)))[inner].max()
    border = _grown(inner) & ~part
    return reach >= 2 * DEEP * radius and (border & body).sum() >= SURROUNDED * border.sum()


def _grown(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    return cv2.dilate(mask.astype(np.uint8), np.ones((5, 5), np.uint8)) > 0


def _largest_radius(mask: NDArray[np.bool_]) -> float:
    """Return the radius of the largest disc in a mask, in pixels."""
    return float(cv2.distanceTransform(np.pad(mask, 1).astype(np.uint8), cv2.DIST_L2, 5).max())


def _hull(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return the convex hull of a mask."""
    if not mask.any():
        return mask
    points = np.argwhere(mask)[:, ::-1].astype(np.int32)
    filled = np.zeros(mask.shape, np.uint8)
    return cv2.fillConvexPoly(filled, cv2.convexHull(points), (1,)) > 0
