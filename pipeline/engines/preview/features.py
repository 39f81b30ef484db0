"""Finds distinctive features of a front that an invented back repeats. Knows nothing of how the back was made."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

ANALYSIS_PX = 120
"""Longer side of the images that are compared."""
FEATURE_PX = 11
"""Side of a feature in them."""
STEP_PX = 4
"""Distance between the places where features are looked for."""
LEAST_CONTRAST = 0.06
"""Standard deviation of a feature's most varied channel, in sRGB."""
MOST_FEATURES = 8
REPEATED = 0.75
"""Normalised correlation from which on a viewer takes one feature for a copy of the other."""


@dataclass(frozen=True, eq=False)
class Features:
    """Distinctive features of a front: they have contrast and occur nowhere else in it.

    Attributes:
        shape: rows and columns of the reduced front.
        positions: row and column of each feature's middle in it.
        patches: (`FEATURE_PX`, `FEATURE_PX`, 3) sRGB of each.
    """

    shape: tuple[int, int]
    positions: list[tuple[int, int]]
    patches: list[NDArray[np.float32]]

    @classmethod
    def of_front(cls, colours: NDArray[np.float32], mask: NDArray[np.bool_]) -> Features:
        """Find the features of a front: colours (H, W, 3) sRGB in [0, 1], mask (H, W)."""
        scale = min(1.0, ANALYSIS_PX / max(mask.shape))
        shape = (max(1, round(mask.shape[0] * scale)), max(1, round(mask.shape[1] * scale)))
        if min(shape) < FEATURE_PX:
            return cls(shape, [], [])
        front = _reduced(np.where(mask[..., None], colours, 0), shape)
        positions = _distinctive(front, _reduced(mask, shape) > 0.5)
        return cls(shape, positions, [_patch_at(front, row, column) for row, column in positions])

    def find_repeated(self, back: NDArray[np.float32], target: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Return the pixels of the features (H, W) that occur, or whose mirror images occur, in the invented part.

        Args:
            back: (H, W, 3) sRGB in [0, 1], in the pixels of the front.
            target: (H, W), the invented pixels.
        """
        repeated = np.zeros(target.shape, bool)
        if not self.positions:
            return repeated
        invented = _reduced(np.where(target[..., None], back, 0), self.shape)
        row_scale, column_scale = target.shape[0] / self.shape[0], target.shape[1] / self.shape[1]
        half = FEATURE_PX // 2
        for (row, column), patch in zip(self.positions, self.patches, strict=True):
            both = (patch, np.ascontiguousarray(patch[:, ::-1]))
            if max(float(cv2.matchTemplate(invented, each, cv2.TM_CCOEFF_NORMED).max()) for each in both) > REPEATED:
                top, bottom = round((row - half) * row_scale), round((row + half + 1) * row_scale)
                left, right = round((column - half) * column_scale), round((column + half + 1) * column_scale)
                repeated[top:bottom, left:right] = True
        return repeated


def _distinctive(front: NDArray[np.float32], inside: NDArray[np.bool_]) -> list[tuple[int, int]]:
    """Return the rows and columns of the most distinctive features, which do not overlap."""
    half = FEATURE_PX // 2
    whole = cv2.erode(inside.astype(np.uint8), np.ones((FEATURE_PX, FEATURE_PX), np.uint8), borderValue=0) > 0
    found: list[tuple[float, int, int]] = []
    for row, column in np.argwhere(whole):
        if row % STEP_PX or column % STEP_PX:
            continue
        feature = _patch_at(front, row, column)
        contrast = float(feature.std(axis=(0, 1)).max())
        if contrast < LEAST_CONTRAST:
            continue
        match = cv2.matchTemplate(front, feature, cv2.TM_CCOEFF_NORMED)
        match[max(row - 3 * half, 0) : row + half, max(column - 3 * half, 0) : column + half] = -1  # itself
        found.append(((1 - float(match.max())) * contrast, int(row), int(column)))
    chosen: list[tuple[int, int]] = []
    for _, row, column in sorted(found, reverse=True):
        if len(chosen) < MOST_FEATURES and all(max(abs(row - r), abs(column - c)) > FEATURE_PX for r, c in chosen):
            chosen.append((row, column))
    return chosen


def _patch_at(front: NDArray[np.float32], row: int, column: int) -> NDArray[np.float32]:
    half = FEATURE_PX // 2
    return np.ascontiguousarray(front[row - half : row + half + 1, column - half : column + half + 1])


def _reduced(array: NDArray, shape: tuple[int, int]) -> NDArray[np.float32]:
    return np.asarray(cv2.resize(array.astype(np.float32), shape[::-1], interpolation=cv2.INTER_AREA), np.float32)
