"""Conversion from the model's frame (+Z up, front toward -Y) to the project's (+Y up, front toward +Z). numpy only.

The rotation is the one that the released pipeline applies before it writes a GLB: (x, y, z) becomes (x, z, -y).
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

QUARTER_TURN = (math.sqrt(0.5), -math.sqrt(0.5))  # w and x of the quaternion of a quarter turn about -X


def to_y_up(points: NDArray[np.floating]) -> NDArray[np.float32]:
    """Convert points or directions (N, 3) to the project's frame."""
    return np.stack([points[:, 0], points[:, 2], -points[:, 1]], axis=1).astype(np.float32)


def quaternions_to_y_up(rotation: NDArray[np.floating]) -> NDArray[np.float32]:
    """Convert quaternions (N, 4), w first, to the project's frame: the frame's rotation times each of them."""
    w, x, y, z = rotation.T
    a, b = QUARTER_TURN  # the Hamilton product with y = z = 0
    return np.stack([a * w - b * x, a * x + b * w, a * y - b * z, a * z + b * y], axis=1).astype(np.float32)
