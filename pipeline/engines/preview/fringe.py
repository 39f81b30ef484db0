"""Removes the colours of a former background from the pixels along the edge of a cut-out. Knows nothing of shapes.

A camera, antialiasing and every mask cut by a machine leave pixels inside the silhouette that mix the subject with the
background. The preview engine would pull them over the whole flank. They are replaced only where there is evidence: the
layers of pixels along the edge, averaged over cells of the image, move in a straight line from the colour of the
background to that of the subject, and stay there. An outline that was drawn keeps its colour over several layers, or
goes on to another one that is not on that line; shading goes on at the same rate.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.engines.preview.nearest import nearest_position

PURE_ALPHA = 250
"""Pixels with less alpha are mixed with the background and take the colour of the nearest solid pixel."""
DEEPEST = 0.007
"""Most layers that count as fringe, relative to the longer side: 5 in a photo of 800 pixels that was not sharpened."""
LEAST_DEEPEST_PX = 3
OUTSIDE_PX = 3
"""Pixels outside that are closer to the edge do not show the background alone."""
LEAST_CONTRAST = 0.12
"""The background must differ from the subject by more, in sRGB; mixtures are no trouble otherwise."""
SHADE_COST = 0.2
"""Of explaining the outermost layer by shading, relative to an error of that size."""
MOST_SHADING = 1.0
"""Largest change of the outermost layer by shading, relative to that by the background; a dark outline is more."""
SETTLED = 0.3
"""Beyond the fringe the colour moves less than this share of the way, over as many layers again."""
LEAST_ESTIMATED_EVIDENCE = 0.5
"""Share of the cells along the edge whose outermost layer must move, for an estimate of the background's colour."""
DARK = 0.35
"""An unknown background whose colour is estimated to be darker is an outline or a shade instead."""
TYPICAL_SHARE = 0.3
"""Mean share of the background in the outermost layer of an antialiased edge that was cut at one half."""


@dataclass(frozen=True)
class _Limits:
    """What the share of the background in the outermost layer must be.

    Attributes:
        least_share: mean of all cells.
        most_share: a larger one is an outline that has this colour.
        agreeing: share of the cells that show at least 0.3 of the mean; by contrast with the background.
        off_line: largest distance from the line between subject and background, relative to the way along it; root mean
            square.
        deepest: most layers of fringe, relative to `DEEPEST`.
    """

    least_share: float
    most_share: float
    agreeing: float
    off_line: float
    deepest: float


WITH_KEPT_BACKGROUND = _Limits(least_share=0.04, most_share=0.8, agreeing=0.7, off_line=0.8, deepest=1.0)
WITH_ESTIMATED_BACKGROUND = _Limits(least_share=0.1, most_share=0.6, agreeing=0.82, off_line=0.5, deepest=0.5)
"""A mask cuts near half, so the mean share of a layer is well below."""


def without_fringe(view: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return colours in which pixels mixed with the background take the colour of the nearest pure pixel.

    Args:
        view: (H, W, 4) uint8 RGBA, straight alpha; the colours of transparent pixels are used if they were kept.

    Returns:
        (H, W, 3) uint8 sRGB; defined in transparent pixels too.
    """
    alpha = view[..., 3]
    solid = alpha >= min(PURE_ALPHA, int(alpha.max()))
    pure = solid & ~_find_fringe(view, solid)
    if pure.all():
        return view[..., :3]
    nearest = nearest_position(pure)
    return view[nearest[..., 0], nearest[..., 1], :3]


def _find_fringe(view: NDArray[np.uint8], solid: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return the solid pixels (H, W) for which there is evidence that they are mixed with the background."""
    fringe = np.zeros_like(solid)
    if solid.all():
        return fringe
    deepest = max(LEAST_DEEPEST_PX, round(DEEPEST * max(solid.shape)))
    depth = np.asarray(cv2.distanceTransform(solid.astype(np.uint8), cv2.DIST_L2, 5), np.float32)
    layer = np.ceil(depth - 0.5).astype(np.int32)  # 1 touches the outside
    cells = _Cells.of_layers(view[..., :3], layer, deepest)
    background, limits = _kept_background(view, deepest, cells), WITH_KEPT_BACKGROUND
    if background is None:
        background, limits = cells.estimate_background(), WITH_ESTIMATED_BACKGROUND
    if background is None:
        return fringe
    count, agreeing = cells.fringe_depth(background, limits)
    row, column = np.nonzero((layer > 0) & (layer <= count))
    fringe[row, column] = agreeing[row // cells.size_px, column // cells.size_px]
    core = solid & ~fringe
    if not core.any():
        return np.zeros_like(solid)
    # A part thinner than its fringe keeps its colours: the nearest other pixel belongs to another part.
    from_core = np.asarray(cv2.distanceTransform((~core).astype(np.uint8), cv2.DIST_L2, 5))
    return fringe & (from_core <= count + 1.5)


def _kept_background(view: NDArray[np.uint8], deepest: int, cells: _Cells) -> NDArray[np.float64] | None:
    """Return the colour (h, w, 3) of the transparent pixels near each cell; None if a tool blanked them."""
    clear = view[..., 3] == 0
    outside = np.asarray(cv2.distanceTransform((view[..., 3] < PURE_ALPHA).astype(np.uint8), cv2.DIST_L2, 5))
    near = clear & (outside > OUTSIDE_PX) & (outside <= OUTSIDE_PX + 3 * deepest)
    if not near.any():
        return None
    colours = view[near][:, :3]  # (P, 3)
    if (colours == colours[0]).all() and colours[0].max() < 255 * DARK:
        return None  # most tools write black where alpha is 0
    means, counts = cells.means_of(view[..., :3], near.astype(np.int32), 1)
    means[counts == 0] = np.median(colours, axis=0) / 255
    return means[:, :, 0]


@dataclass(frozen=True, eq=False)
class _Cells:
    """Mean colours of the layers along the edge, over cells of the image and their neighbours.

    Attributes:
        size_px: side of a cell.
        deepest: most layers that may be fringe.
        means: (h, w, 2 D + 1, 3) sRGB in [0, 1] of the layers from the edge inwards.
        counts: (h, w, 2 D + 1) pixels of each.
    """

    size_px: int
    deepest: int
    means: NDArray[np.float64]
    counts: NDArray[np.float64]

    @classmethod
    def of_layers(cls, colours: NDArray[np.uint8], layer: NDArray[np.int32], deepest: int) -> _Cells:
        """Average each layer; `layer` is (H, W), 0 outside and 1 at the edge."""
        size_px = 3 * deepest
        empty = cls(size_px, deepest, np.empty(0), np.empty(0))
        means, counts = empty.means_of(colours, layer, 2 * deepest + 1)
        return cls(size_px, deepest, means, counts)

    def means_of(
        self, colours: NDArray[np.uint8], layer: NDArray[np.int32], layers: int
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the mean colours (h, w, L, 3) of the pixels numbered 1 to L, and how many there are."""
        height, width = (-(-side // self.size_px) for side in layer.shape)
        row, column = np.nonzero((layer > 0) & (layer <= layers))
        place = ((row // self.size_px) * width + column // self.size_px) * layers + layer[row, column] - 1
        chosen = colours[row, column] / 255
        weights = [np.ones(len(row)), *chosen.T]
        sums = [np.bincount(place, weight, height * width * layers).reshape(height, width, -1) for weight in weights]
        sums = [_with_neighbours(each) for each in sums]
        means = np.stack(sums[1:], axis=3) / np.maximum(sums[0], 1)[..., None]
        return means, sums[0]

    def estimate_background(self) -> NDArray[np.float64] | None:
        """Return the colour (3,) that the outermost layer moves to in all cells, None if it is dark or undecided.

        The point nearest to the lines from the subject's colour through that of the outermost layer.
        """
        used = (self.counts[:, :, :4] > 0).all(axis=2)
        edge, inner = self.means[used][:, 0], self.means[used][:, 2]
        way = edge - inner
        length = np.linalg.norm(way, axis=1)
        is_moving = length > LEAST_CONTRAST * TYPICAL_SHARE
        if is_moving.sum() < LEAST_ESTIMATED_EVIDENCE * len(edge) or len(edge) == 0:
            return None
        edge, inner, way, length = edge[is_moving], inner[is_moving], way[is_moving], length[is_moving]
        unit = way / length[:, None]
        across = np.eye(3) - unit[:, :, None] * unit[:, None, :]  # (P, 3, 3), what a line does not say
        expected = np.clip(inner + way / TYPICAL_SHARE, 0, 1)
        weak = 0.05
        left = across.sum(axis=0) + weak * len(edge) * np.eye(3)
        right = (across @ inner[:, :, None]).sum(axis=0)[:, 0] + weak * expected.sum(axis=0)
        background = np.clip(np.linalg.solve(left, right), 0, 1)
        return None if background.max() < DARK else background

    def fringe_depth(self, background: NDArray[np.float64], limits: _Limits) -> tuple[int, NDArray[np.bool_]]:
        """Return how many layers are fringe, 0 without evidence, and the cells (h, w) that do not contradict it.

        Args:
            background: (h, w, 3) or (3,).
        """
        for count in range(1, max(1, round(limits.deepest * self.deepest)) + 1):
            used = (self.counts[:, :, : 2 * count + 1] > 0).all(axis=2)
            inner = self.means[:, :, count]
            toward = background - inner
            contrast = np.linalg.norm(toward, axis=2)
            used &= contrast > LEAST_CONTRAST
            if not used.any():
                continue
            shares, shades = _mixture(self.means[:, :, : 2 * count + 1] - inner[:, :, None], toward, inner)
            weights = np.where(used, contrast**2, 0)
            weights /= weights.sum()
            mean_shares = (weights[..., None] * shares).sum(axis=(0, 1))
            first = mean_shares[0]
            off_line = self.means[:, :, 0] - inner - shares[:, :, :1] * toward + shades[:, :, :1] * inner
            off_line = np.linalg.norm(off_line, axis=2)
            agreeing = float(weights[shares[:, :, 0] > 0.3 * first].sum())
            way = max(float(np.sqrt((weights * (shares[:, :, 0] * contrast) ** 2).sum())), 1e-6)
            straightness = np.sqrt((weights * off_line**2).sum()) / way
            shading = np.sqrt((weights * (shades[:, :, 0] * np.linalg.norm(inner, axis=2)) ** 2).sum()) / way
            is_settled = np.abs(mean_shares[count + 1 :]).max() < SETTLED * first
            if (
                limits.least_share < first < limits.most_share
                and is_settled
                and agreeing > limits.agreeing
                and straightness < limits.off_line
                and shading < MOST_SHADING
            ):
                contradicting = (off_line > 2 * np.abs(shares[:, :, 0]) * contrast) & (off_line > LEAST_CONTRAST)
                return count, ~contradicting
        return 0, np.zeros(self.counts.shape[:2], bool)


def _mixture(
    layers: NDArray[np.float64],  # (h, w, L, 3)
    toward: NDArray[np.float64],  # (h, w, 3)
    inner: NDArray[np.float64],  # (h, w, 3)
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:  # (h, w, L) each
    """Return the share of the background in colours relative to the inner one, and of black: a rim may be shaded.

    Least squares for share · toward − shade · inner, with a preference for no shade.
    """
    aa, ab = (toward**2).sum(axis=2)[..., None], -(toward * inner).sum(axis=2)[..., None]
    bb = (1 + SHADE_COST) * (inner**2).sum(axis=2)[..., None]
    left, right = (layers * toward[:, :, None]).sum(axis=3), -(layers * inner[:, :, None]).sum(axis=3)
    determinant = np.maximum(aa * bb - ab**2, 1e-9)
    return (left * bb - right * ab) / determinant, (right * aa - left * ab) / determinant


def _with_neighbours(grid: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the sums over 3 x 3 cells: (h, w, L) -> (h, w, L)."""
    padded = np.pad(grid, ((1, 1), (1, 1), (0, 0)))
    rows = padded[:-2] + padded[1:-1] + padded[2:]
    return rows[:, :-2] + rows[:, 1:-1] + rows[:, 2:]
