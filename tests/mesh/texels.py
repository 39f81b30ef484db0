"""Which texels of an atlas the faces own, by the definition."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pipeline.mesh.unwrap import UnwrappedMesh


def times_owned(mesh: UnwrappedMesh, texture_size: int) -> NDArray[np.int64]:
    """How many faces hold the centre of each texel strictly inside: (S, S). Slow and obvious: face by face."""
    owned = np.zeros((texture_size, texture_size), np.int64)
    for corners in mesh.uvs[mesh.faces].astype(np.float64) * texture_size:
        left, top = np.maximum(np.floor(corners.min(axis=0)).astype(int), 0)
        right, bottom = np.minimum(np.ceil(corners.max(axis=0)).astype(int), texture_size)
        x, y = np.meshgrid(np.arange(left, right) + 0.5, np.arange(top, bottom) + 0.5)
        sides = []
        for k in range(3):
            (ax, ay), (bx, by) = corners[k], corners[(k + 1) % 3]
            sides.append((bx - ax) * (y - ay) - (by - ay) * (x - ax))
        margin = 1e-7  # texels squared: a centre on a shared edge, up to rounding, is inside neither
        inside = np.all([side > margin for side in sides], axis=0) | np.all([side < -margin for side in sides], axis=0)
        owned[top:bottom, left:right] += inside
    return owned
