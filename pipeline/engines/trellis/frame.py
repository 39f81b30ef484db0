"""Between the model's frame (+Z up, front toward -Y) and the project's (+Y up, front toward +Z). numpy alone.

The turn is the one that the released pipeline applies before it writes a GLB: (x, y, z) becomes (x, z, -y).
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

TURN = (math.sqrt(0.5), -math.sqrt(0.5))  # w and x of the quaternion of a quarter turn about -X


def to_y_up(points: NDArray[np.floating]) -> NDArray[np.float32]:
    """Points or directions (N, 3) in the project's frame."""
    return np.stack([points[:, 0], points[:, 2], -points[:, 1]], axis=1).astype(np.float32)


def quaternions_to_y_up(rotation: NDArray[np.floating]) -> NDArray[np.float32]:
    """Quaternions (N, 4), w first, of bodies that turned with the frame: the turn times each of them."""
    w, x, y, z = rotation.T
    a, b = TURN
    return np.stack([a * w - b * x, a * x + b * w, a * y - b * z, a * z + b * y], axis=1).astype(np.float32)
