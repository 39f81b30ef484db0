"""A mask sampled at the nodes of a grid, with its contour between the nodes. Knows nothing of heights or colours."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

LEVEL = 0.5
THINNEST_PART = 1.5  # cells; thinner parts are widened, or they would fall between the nodes
THINNEST_PX = 1.2  # px; where cells are smaller than pixels, the blur would break lines of a single pixel
NEAREST_CROSSING = 0.05  # smallest distance of the contour from a node, as a fraction of a grid edge


@dataclass(frozen=True, eq=False)
class MaskGrid:
    """A mask at the nodes of a square grid whose outermost nodes are outside.

    Attributes:
        values: (rows, columns) float64, 0 to 1; above `LEVEL` is inside; row 0 is the lowest.
        cell_m: distance between neighbouring nodes.
        origin_m: x and y of the node in row 0 and column 0.
    """

    values: NDArray[np.float64]  # (rows, columns)
    cell_m: float
    origin_m: tuple[float, float]

    @property
    def inside(self) -> NDArray[np.bool_]:
        """(rows, columns) bool, whether each node is inside."""
        return self.values > LEVEL

    def crossing(self, inner: NDArray[np.float64], outer: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return where the contour cuts grid edges, as a fraction of the edge from its inner node.

        Args:
            inner: (E,) values at the inner nodes.
            outer: (E,) values at the outer nodes.
        """
        fraction = (inner - LEVEL) / np.maximum(inner - outer, 1e-9)
        # Bounded away from 0: short edges would make thin triangles and a badly conditioned Poisson matrix.
        return np.clip(fraction, NEAREST_CROSSING, 1 - NEAREST_CROSSING)


def sample_mask(alpha: NDArray[np.float32], *, resolution: int) -> MaskGrid:
    """Sample a mask at the nodes of a grid.

    Args:
        alpha: (H, W) float32, 0 to 1; row 0 is the top.
        resolution: cells along the longer side.
    """
    height, width = alpha.shape
    px_per_cell = max(height, width) / resolution
    # A blur of half a cell before sampling lets the contour run between pixels.
    sigma_px = max(0.5 * px_per_cell, 0.5)
    margin_px = int(np.ceil(4 * sigma_px + THINNEST_PART * px_per_cell)) + 2
    padded = _widen_thin_parts(np.pad(alpha, margin_px), max(THINNEST_PART * px_per_cell, THINNEST_PX))
    smooth = cv2.GaussianBlur(padded, (0, 0), sigma_px)

    rows, columns = (int(np.ceil(side / px_per_cell)) + 5 for side in (height, width))
    from_top_px = (np.arange(rows) - 2) * px_per_cell
    from_left_px = (np.arange(columns) - 2) * px_per_cell
    x, y = np.meshgrid(from_left_px + margin_px - 0.5, from_top_px + margin_px - 0.5)
    values = cv2.remap(smooth, x.astype(np.float32), y.astype(np.float32), cv2.INTER_LINEAR)
    values[[0, -1]], values[:, [0, -1]] = 0, 0
    cell_m = 1.0 / resolution
    lowest_px = height / 2 - from_top_px[-1]
    return MaskGrid(
        values=values[::-1].astype(np.float64),
        cell_m=cell_m,
        origin_m=((from_left_px[0] - width / 2) / px_per_cell * cell_m, lowest_px / px_per_cell * cell_m),
    )


def _widen_thin_parts(alpha: NDArray[np.float32], least_px: float) -> NDArray[np.float32]:
    """Widen parts of an (H, W) mask that are thinner than `least_px`, such as antennae; the rest is unchanged.

    An opening and a dilation by Euclidean distances, not by kernels of whole pixels: in a small image a cell measures
    one or two pixels, and a kernel of so few pixels would be rounded to nothing.
    """
    solid = alpha > LEVEL
    to_outside = _distance_to(~solid)  # between pixel centres: at most (w + 1) / 2 in a part of width w
    # An antialiased line of about a pixel reaches the level in some pixels only. Its faint pixels belong to it, unlike
    # those that border parts of three or more pixels.
    is_faint = (alpha > LEVEL / 2) & (_distance_to(to_outside >= 2) > 3)
    core = to_outside >= least_px / 2 + 0.5
    # The pixel in a right angle is sqrt(2) times as far from the core as the edge; corners are not thin parts.
    is_thin = (solid | is_faint) & (_distance_to(core) > least_px / np.sqrt(2) + 0.5)
    # Thin parts grow on each side by 3/8 of the least width; pixels at the new edge are covered in part.
    wider = np.clip(0.375 * least_px + 1 - _distance_to(is_thin), 0, 1)
    return np.maximum(np.maximum(alpha, is_faint), wider).astype(np.float32)


def _distance_to(pixels: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Return the distance of each pixel of an (H, W) mask to the nearest set pixel, in pixels; inf if none is set."""
    if not pixels.any():
        return np.full(pixels.shape, np.inf, np.float32)
    return np.asarray(cv2.distanceTransform((~pixels).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE), np.float32)
