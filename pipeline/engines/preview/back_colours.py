"""The colours of a subject's unseen back, invented from one view of its front.

The back shares its silhouette with the front. A subject that is seen from its side shows the same on its other side:
its back is the mirrored front. Any other subject keeps near the rim what the front shows there; the rest is filled with
patches from the outer part of the front, so that faces, doors and labels stay in front.

Source of the rule: Yao, Schertler, Rosales, Rhodin, Sigal, Sheffer, "Front2Back: single view 3D shape reconstruction
via front to back prediction", CVPR 2020 (arXiv:1912.10589): most objects are symmetric, and show themselves in two
opposite views.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.spatial.distance import cdist

from pipeline.engines.preview.features import Features
from pipeline.engines.preview.patch_synthesis import FINEST_PX, FORBIDDEN, SIDE, PatchSynthesis
from pipeline.engines.preview.subject_image import SubjectImage

OUTER_DEPTH = 0.7
"""The part of the front that is lower than this, relative to the middle of its row, may turn round to the back."""
DEEPEST_SOURCE = 0.8
"""Patches from deeper parts of the front never appear on the back."""
DEPTH_COST = 1500.0
"""Cost of a source for each unit of depth beyond `OUTER_DEPTH`, in squared Lab units as all costs."""
RIM = 0.015
"""Width of the strip along the silhouette that is always that of the front, relative to the subject's longer side."""
RARITY_COST = 100.0
"""Cost of a source for each unit of rarity beyond 0.5."""
PLAINNESS_COSTS = (300.0, 120.0)
"""Cost of a source without detail: plain patches match anything moderately well, and would make a plain back."""
OUTER_ENERGIES = (0.45, 0.65)
"""Gradient energy of the outer front relative to that of the front, at which these costs apply; linear between.
A front whose middle holds most of its detail must use what its outer part has; others would get scratches."""
ENERGY_PX = 160
"""Longer side of the image whose gradients are compared, about that of a thumbnail."""
DETAIL_QUANTILE = 0.85
"""A patch with more detail than 85 % of the front counts as fully detailed."""
ANALYSIS_PX = 80
"""Longer side of the image in which rare features are looked for; a feature is then 7 pixels or more."""
SIMILAR_SHARE = 0.03
"""A patch is compared with the most similar 3 % of all others: more than a pair of eyes covers."""
BLOCK = 1024
"""Patches compared at once: 13 MB of differences."""
PLAIN_DELTA_E = 12.0
"""Patches that differ by less are not rare, however plain the rest is."""
TALLEST_SIDE_VIEW = 0.9
"""Width relative to height: a taller subject counts as seen from its front."""


@dataclass(frozen=True, eq=False)
class _Rows:
    """Where the pixels of a mask lie between the two rims of their row.

    Attributes:
        depths: (H, W) height of the surface relative to the middle of its row if it is an ellipse across the row, as
            inflation makes it: 0 at the rims, 1 in the middle.
        start_columns: (H, W) column of the outer part that a pixel is filled from at first: the outer strip of the
            nearer rim, folded back and forth.
    """

    depths: NDArray[np.float32]
    start_columns: NDArray[np.float32]


def invent_back_colours(image: SubjectImage, *, seed: int) -> NDArray[np.float32]:
    """Return the colours of the back, (H, W, 3) sRGB in [0, 1], in the pixels of the front (not mirrored).

    Args:
        image: the front.
        seed: of the patch search.
    """
    mask = image.alpha >= 0.5
    if is_seen_from_side(mask):
        return image.colours
    rows = _across_rows(mask)
    rarity = find_rarity(image.colours, mask)
    from_rim = _distance_from_rim(mask) / max(mask.shape)
    is_rare = rarity > 1
    target = mask & (from_rim > RIM) & ((rows.depths > OUTER_DEPTH) | (is_rare & (from_rim > 2 * RIM)))
    if not target.any():
        return image.colours
    cost = DEPTH_COST * np.maximum(rows.depths - OUTER_DEPTH, 0) + RARITY_COST * np.maximum(rarity - 0.5, 0)
    outer_energy = relative_energy(image.colours, mask, (rows.depths <= OUTER_DEPTH) & ~is_rare)
    cost += np.interp(outer_energy, OUTER_ENERGIES, PLAINNESS_COSTS) * (1 - find_detail(image.colours, mask))
    cost[~mask | is_rare | (rows.depths > DEEPEST_SOURCE)] = FORBIDDEN
    features = Features.of_front(image.colours, mask)
    synthesis = PatchSynthesis(image.colours, target, mask, rows.start_columns)
    return synthesis.fill(
        cost.astype(np.float32),
        seed=seed,
        find_unwanted=lambda back: features.find_repeated(back, target),  # a feature that the back repeats
    )


def is_seen_from_side(mask: NDArray[np.bool_]) -> bool:
    """Return whether a silhouette, (H, W) cropped to the subject, is that of a subject seen from its side.

    Animals and vehicles seen from the side are wide and unlike their mirror image; figures seen from the front are
    tall or symmetric. So the wider the subject, the more symmetric a side view may be. In doubt it is a front view:
    an invented flank is plausible, a second face is not.
    """
    height, width = mask.shape
    aspect = width / height
    return aspect >= TALLEST_SIDE_VIEW and mirror_overlap(mask) < min(0.6 + 0.8 * (aspect - 1), 0.97)


def mirror_overlap(mask: NDArray[np.bool_]) -> float:
    """Return the largest intersection over union of a silhouette and its mirror image about any vertical axis."""
    size = (64, max(1, round(64 * mask.shape[0] / mask.shape[1])))
    small = np.asarray(cv2.resize(mask.astype(np.float32), size, interpolation=cv2.INTER_AREA)) > 0.5
    padded = np.pad(small, ((0, 0), (32, 32)))
    best = 0.0
    for shift in range(-26, 27):  # the axis lies within a fifth of the width from the middle
        mirrored = np.roll(padded[:, ::-1], shift, axis=1)
        best = max(best, (padded & mirrored).sum() / max((padded | mirrored).sum(), 1))
    return float(best)


def find_rarity(colours: NDArray[np.float32], mask: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Return how rare what each pixel shows is in the subject: (H, W), above 1 for eyes, doors, emblems.

    The mean difference of a patch from the most similar patches elsewhere, relative to what is usual in the subject.
    Source: Goferman, Zelnik-Manor, Tal, "Context-aware saliency detection", IEEE TPAMI 34 (2012).
    """
    height, width = mask.shape
    factor = max(height, width) / ANALYSIS_PX
    columns, rows = max(1, round(width / factor)), max(1, round(height / factor))
    small = cv2.resize(colours, (columns, rows), interpolation=cv2.INTER_AREA)
    inside = cv2.resize(mask.astype(np.float32), (columns, rows), interpolation=cv2.INTER_AREA) > 0.5
    rarity = np.zeros((rows, columns), np.float32)
    position = np.argwhere(inside)
    compared = np.flatnonzero((position % 2 == 0).all(axis=1))
    if len(compared) < 2:
        return np.zeros(mask.shape, np.float32)
    lab = cv2.GaussianBlur(cv2.cvtColor(small, cv2.COLOR_RGB2LAB), (0, 0), 0.8)
    # A patch is described by 3 x 3 blurred samples, 3 pixels apart.
    padded = np.pad(lab, ((3, 3), (3, 3), (0, 0)), mode="edge")
    samples = [padded[i : i + rows, j : j + columns] for i in (0, 3, 6) for j in (0, 3, 6)]
    patches = np.concatenate(samples, axis=2)[inside].astype(np.float64)  # (P, 27)
    similar = max(8, round(SIMILAR_SHARE * len(compared)))
    mean = np.concatenate(
        [
            _mean_difference(patches[block], position[block], patches[compared], position[compared], similar)
            for block in np.array_split(np.arange(len(patches)), max(1, len(patches) // BLOCK))
        ]
    )
    rarity[inside] = mean / max(2 * float(np.median(mean)), PLAIN_DELTA_E)
    rarity = cv2.dilate(rarity, np.ones((3, 3), np.uint8))
    return np.asarray(cv2.resize(rarity, (width, height), interpolation=cv2.INTER_LINEAR), np.float32)


def _mean_difference(
    patches: NDArray[np.float64],  # (P, 27)
    positions: NDArray[np.int64],  # (P, 2)
    others: NDArray[np.float64],  # (O, 27)
    other_positions: NDArray[np.int64],  # (O, 2)
    count: int,
) -> NDArray[np.float64]:  # (P,)
    """Return the mean difference of each patch from the `count` most similar ones that do not overlap it."""
    difference = cdist(patches, others) / 3  # root mean square over the 9 samples
    difference[cdist(positions, other_positions) <= 8] = 4 * PLAIN_DELTA_E
    if count < len(others):
        difference = np.partition(difference, count, axis=1)[:, :count]
    return difference.mean(axis=1)


def find_detail(colours: NDArray[np.float32], mask: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Return the fine contrast around each pixel, relative to that of detailed parts: (H, W), 0 to 1."""
    lightness = cv2.cvtColor(colours, cv2.COLOR_RGB2LAB)[..., 0]
    px = max(mask.shape) / FINEST_PX
    texture = np.abs(lightness - cv2.GaussianBlur(lightness, (0, 0), 1.5 * px)) * mask
    side = max(3, round(SIDE * px))
    share = cv2.blur(mask.astype(np.float32), (side, side))
    mean = cv2.blur(texture, (side, side)) / np.maximum(share, 0.1)
    return np.minimum(mean / max(float(np.quantile(mean[mask], DETAIL_QUANTILE)), 1.5), 1).astype(np.float32)


def relative_energy(colours: NDArray[np.float32], mask: NDArray[np.bool_], part: NDArray[np.bool_]) -> float:
    """Return the mean squared gradient of a part of the subject, relative to that of all of it; 1 if there is none."""
    scale = min(1.0, ENERGY_PX / max(mask.shape))
    size = (max(1, round(mask.shape[1] * scale)), max(1, round(mask.shape[0] * scale)))
    small, inside, chosen = (
        np.asarray(cv2.resize(each.astype(np.float32), size, interpolation=cv2.INTER_AREA))
        for each in (colours, mask, part)
    )
    # The silhouette is no detail: pixels next to it are left out.
    whole = cv2.erode((inside > 0.99).astype(np.uint8), np.ones((5, 5), np.uint8), borderValue=0) > 0
    across, down = (np.diff(small, axis=axis, append=0) ** 2 for axis in (1, 0))
    energy = (across + down).sum(axis=2)
    in_part = whole & (chosen > 0.5)
    if not in_part.any() or energy[whole].mean() == 0:
        return 1.0
    return float(energy[in_part].mean() / energy[whole].mean())


def _across_rows(mask: NDArray[np.bool_]) -> _Rows:
    """Measure every pixel within the stretch of the mask that it lies in."""
    width = mask.shape[1]
    border = np.diff(np.pad(mask, ((0, 0), (1, 1))).astype(np.int8), axis=1)  # (H, W + 1): 1 starts, -1 ends a stretch
    column = np.arange(width + 1)
    begin = np.maximum.accumulate(np.where(border == 1, column, 0), axis=1)[:, :-1]
    end = np.minimum.accumulate(np.where(border == -1, column, width)[:, ::-1], axis=1)[:, ::-1][:, 1:]
    left, right = column[:-1] - begin + 0.5, end - column[:-1] - 0.5  # to the rims of the stretch
    half = np.maximum(left + right, 1) / 2
    depths = np.sqrt(np.maximum(1 - ((left - right) / (2 * half)) ** 2, 0))
    strip = np.maximum(half * (1 - np.sqrt(1 - OUTER_DEPTH**2)), 1)
    folded = np.abs((np.minimum(left, right) + strip) % (2 * strip) - strip)
    start = np.where(left <= right, begin + folded, end - folded) - 0.5
    return _Rows(
        depths=np.where(mask, depths, 0).astype(np.float32),
        start_columns=np.where(mask, start, column[:-1]).astype(np.float32),
    )


def _distance_from_rim(mask: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Return the distance of each pixel from the nearest one outside the mask, in pixels."""
    padded = np.pad(mask, 1).astype(np.uint8)
    return np.asarray(cv2.distanceTransform(padded, cv2.DIST_L2, 5)[1:-1, 1:-1], np.float32)
