"""The nearest pixel of a set."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray


def nearest_position(chosen: NDArray[np.bool_]) -> NDArray[np.int32]:
    """Return the row and column of the chosen pixel nearest to each pixel: (H, W) -> (H, W, 2); one must be chosen."""
    unchosen = (~chosen).astype(np.uint8)
    labels = np.asarray(
        cv2.distanceTransformWithLabels(unchosen, cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL)[1], int
    )
    position = np.zeros((labels.max() + 1, 2), np.int32)
    position[labels[chosen]] = np.argwhere(chosen)
    return position[labels]
