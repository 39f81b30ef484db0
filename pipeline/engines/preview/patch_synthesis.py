"""Fills a region of an image with patches of the same image, from coarse to fine. Knows nothing of subjects or shapes.

Each level alternates two steps: PatchMatch finds a source patch for every patch of the region, and every pixel becomes
the weighted mean of what the patches over it say. The patches of the finest level are copied from the full image.

Source: Wexler, Shechtman, Irani, "Space-time completion of video", IEEE TPAMI 29 (2007); Barnes, Shechtman,
Finkelstein, Goldman, "PatchMatch", ACM TOG 28 (2009); the limit on repetitions: Kaspar et al., "Self tuning texture
optimization", Computer Graphics Forum 34 (2015); the contrast that averages lose: Heitz, Neyret, "High-performance
by-example noise using a histogram-preserving blending operator", PACMCGIT 1 (2018), section 3, here per frequency band.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import cv2
import numpy as np
from numba import njit
from numpy.typing import NDArray

from pipeline.engines.preview.nearest import nearest_position
from pipeline.engines.preview.seams import shading_correction
from pipeline.mesh.kernels import kernel

RADIUS = 3
"""Patches are 7 pixels wide: enough for the direction of an edge, few enough for a second of work."""
SIDE = 2 * RADIUS + 1
FINEST_PX, COARSEST_PX = 375, 75
ROUNDS = (6, 4, 3, 2)
"""Searches and votes of each level, coarsest first; the last number holds for all further levels."""
MOST_RESTARTS = 2
"""How often the search begins anew without sources that turned out unwanted."""
SWEEPS = 2
"""PatchMatch passes of a search, in alternating directions."""
HEIGHT_COST = 8e3
"""Cost of a source that lies higher or lower by the whole image, in squared Lab units."""
USAGE_COST = 12.0
"""Cost of a source for each time that it was used beyond its share."""
MOST_USAGE = 5
"""Uses beyond its share that a source pays for."""
VOTE_SHARPNESS = 4.0
"""The scale of costs in the votes is the usual one divided by this, so that few patches decide each pixel. Means of
many are blurred, and a search that starts from them prefers plain patches."""
BAND_SIGMAS = (1.0, 2.0, 4.0)
"""Blurs between which the frequency bands of the finest level lie, in its pixels."""
MOST_GAIN = 3.0
"""Largest gain of a band. A part that needs more was averaged to nothing, and only its noise would grow."""
FORBIDDEN = np.float32(1e6)
"""Source cost of patches that are never used."""


class PatchSynthesis:
    """Fills a region of an image.

    Args:
        colours: (H, W, 3) sRGB in [0, 1].
        target: (H, W), the pixels to fill.
        inside: (H, W), the pixels of the subject.
        start_columns: (H, W) column from which each pixel is filled at first.
    """

    def __init__(
        self,
        colours: NDArray[np.float32],
        target: NDArray[np.bool_],
        inside: NDArray[np.bool_],
        start_columns: NDArray[np.float32],
    ) -> None:
        self._colours = colours
        self._lab = np.asarray(cv2.cvtColor(colours, cv2.COLOR_RGB2LAB), np.float32)
        self._target = target
        self._inside = inside
        self._start_columns = start_columns
        size = max(target.shape)
        self._scale = max(1.0, size / FINEST_PX)
        self._coarsest = max(0, int(np.ceil(np.log2(size / self._scale / COARSEST_PX))))

    def fill(
        self,
        source_cost: NDArray[np.float32],
        *,
        seed: int,
        find_unwanted: Callable[[NDArray[np.float32]], NDArray[np.bool_]] | None = None,
    ) -> NDArray[np.float32]:
        """Fill the region.

        Args:
            source_cost: (H, W) cost of taking a patch around each pixel, in squared Lab units; `FORBIDDEN` excludes it.
            seed: of the random search.
            find_unwanted: Given the image as all levels but the finest fill it, (H, W, 3) sRGB, finds pixels, (H, W),
                that are no sources after all. The search begins anew without them, up to `MOST_RESTARTS` times. It does
                not start from the one before: what that had taken from them would leave its outline.

        Returns:
            (H, W, 3) sRGB in [0, 1]; equal to `colours` outside the target.
        """
        levels = range(self._coarsest, -1, -1)
        coarser = levels[:-1] or levels
        search = self._refine(None, coarser, source_cost, seed)
        for _ in range(MOST_RESTARTS):
            if search is None or find_unwanted is None:
                break
            unwanted = find_unwanted(self._with_region(search.resized(self._target.shape))) & (source_cost < FORBIDDEN)
            if not unwanted.any():  # or only what was no source anyway: the search would find the same
                break
            source_cost = np.where(unwanted, FORBIDDEN, source_cost)
            search = self._refine(None, coarser, source_cost, seed)
        search = self._refine(search, levels[len(coarser) :], source_cost, seed)
        if search is None:
            return self._colours
        inside = _reduced(self._inside, search.target.shape) > 0.5
        correction = shading_correction(search.exemplar, search.sources, target=search.target, inside=inside)
        return self._with_region(search.full_size(self._lab, self._target, correction))

    def _refine(
        self, search: _Search | None, levels: range, source_cost: NDArray[np.float32], seed: int
    ) -> _Search | None:
        """Search on further levels; return the last one, None if none so far had both a patch to fill and a source."""
        for level in levels:
            factor = self._scale * 2**level
            finer = _Search.at_level(self._lab, self._target, source_cost, self._start_columns, factor)
            if not finer.is_solvable:
                continue
            if search is not None:
                finer.take_over(search)
            for k in range(ROUNDS[min(self._coarsest - level, len(ROUNDS) - 1)]):
                finer.improve(seed + 1000 * level + k)
                finer.vote()
            search = finer
        return search

    def _with_region(self, lab: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the image with the region of another one: (H, W, 3) Lab -> sRGB."""
        return np.where(self._target[..., None], np.clip(cv2.cvtColor(lab, cv2.COLOR_LAB2RGB), 0, 1), self._colours)


@dataclass(eq=False)
class _Search:
    """One level.

    Attributes:
        exemplar: (h, w, 3) Lab of the image.
        canvas: (h, w, 3) Lab, the image with the region as filled so far.
        target: (h, w) pixels to fill.
        targets: (T, 2) rows and columns of the patches that touch the region.
        source_cost: (h, w).
        sources: (h, w, 2) row and column of the source of each patch.
        costs: (h, w) of these sources.
    """

    exemplar: NDArray[np.float32]
    canvas: NDArray[np.float32]
    target: NDArray[np.bool_]
    targets: NDArray[np.int32]
    source_cost: NDArray[np.float32]
    sources: NDArray[np.int32]
    costs: NDArray[np.float32]

    @classmethod
    def at_level(
        cls,
        lab: NDArray[np.float32],
        target: NDArray[np.bool_],
        source_cost: NDArray[np.float32],
        start_columns: NDArray[np.float32],
        factor: float,
    ) -> _Search:
        """Reduce the image by a factor, and fill the region from the start columns."""
        height, width = target.shape
        shape = (max(SIDE, round(height / factor)), max(SIDE, round(width / factor)))
        exemplar, small_target = _reduced(lab, shape), _reduced(target, shape) > 0.5
        touching = cv2.dilate(small_target.astype(np.uint8), np.ones((SIDE, SIDE), np.uint8)) > 0
        is_whole = np.zeros_like(touching)  # patches that lie in the image as a whole
        is_whole[RADIUS:-RADIUS, RADIUS:-RADIUS] = True
        cost = np.where(is_whole, _reduced(source_cost, shape), FORBIDDEN).astype(np.float32)
        cost[cost > 0.02 * FORBIDDEN] = FORBIDDEN  # a reduced pixel that contains excluded ones
        level = cls(
            exemplar=exemplar,
            canvas=exemplar.copy(),
            target=small_target,
            targets=_positions(touching & is_whole),
            source_cost=cost,
            sources=np.zeros((*shape, 2), np.int32),
            costs=np.full(shape, FORBIDDEN, np.float32),
        )
        column = np.round((_reduced(start_columns, shape) + 0.5) * shape[1] / width - 0.5).astype(np.int32)
        column = np.clip(column, 0, shape[1] - 1)
        row = np.indices(shape)[0]
        if level.is_solvable:
            level._set_sources(np.stack([row, column], axis=2))
        level.canvas = np.where(small_target[..., None], exemplar[row, column], exemplar)
        return level

    @property
    def allowed(self) -> NDArray[np.bool_]:
        """(h, w), the pixels whose patches may be used."""
        return self.source_cost < FORBIDDEN

    @property
    def is_solvable(self) -> bool:
        """Whether there is a patch to fill and one to take."""
        return len(self.targets) > 0 and bool(self.allowed.any())

    def take_over(self, coarser: _Search) -> None:
        """Start from the result of the coarser level."""
        height, width = self.target.shape
        coarse_height, coarse_width = coarser.target.shape
        row, column = np.indices(self.target.shape)
        coarse_row = np.minimum(row * coarse_height // height, coarse_height - 1)
        coarse_column = np.minimum(column * coarse_width // width, coarse_width - 1)
        moved = coarser.sources[coarse_row, coarse_column] - np.stack([coarse_row, coarse_column], axis=2)
        factor = (height / coarse_height, width / coarse_width)
        self._set_sources(np.round(np.stack([row, column], axis=2) + moved * factor).astype(np.int32))
        self.costs[:] = 1.0  # equal weights: the first vote copies the patches that the coarser level found
        self.vote()

    def _set_sources(self, sources: NDArray[np.int32]) -> None:
        """Set the sources, each moved to the nearest allowed one."""
        height, width = self.target.shape
        nearest = nearest_position(self.allowed)
        row = np.clip(sources[..., 0], 0, height - 1)
        column = np.clip(sources[..., 1], 0, width - 1)
        self.sources = np.ascontiguousarray(nearest[row, column], np.int32)

    def improve(self, seed: int) -> None:
        """Search for better sources."""
        height = self.target.shape[0]
        used = self.sources[self.targets[:, 0], self.targets[:, 1]]
        counts = np.zeros(self.target.shape, np.float32)
        np.add.at(counts, (used[:, 0], used[:, 1]), 1)
        # A source's share: how many patches of the region there are for each allowed source at its height.
        at_height = np.zeros((height, 2), np.float32)
        np.add.at(at_height[:, 0], self.targets[:, 0], 1)
        at_height[:, 1] = self.allowed.sum(axis=1)
        at_height = cv2.blur(at_height, (1, 2 * (height // 10) + 1))
        share = np.maximum(at_height[:, 0] / np.maximum(at_height[:, 1], 1), 1e-3)
        usage = np.asarray(cv2.blur(counts, (SIDE, SIDE)), np.float32) / share[:, None]
        cost = self.source_cost + USAGE_COST * np.clip(usage - 1, 0, MOST_USAGE)
        cost = np.where(self.allowed, cost, FORBIDDEN).astype(np.float32)
        height_weight = np.float32(HEIGHT_COST / height**2)
        canvas, exemplar = self.canvas.reshape(height, -1), self.exemplar.reshape(height, -1)
        is_target = np.zeros(cost.shape, np.bool_)
        is_target[self.targets[:, 0], self.targets[:, 1]] = True
        _search(canvas, exemplar, self.targets, is_target, cost, self.sources, self.costs, height_weight, SWEEPS, seed)

    def vote(self) -> None:
        """Give every pixel of the region the weighted mean of what the patches over it say."""
        weights = self._weights()
        self.canvas = self.exemplar.copy()
        none = np.zeros_like(self.exemplar)
        _vote(self.exemplar, self.canvas, _positions(self.target), self.sources, weights, none, 1.0, 1.0, RADIUS)

    def _weights(self) -> NDArray[np.float32]:
        weights = np.zeros(self.target.shape, np.float32)
        rows, columns = self.targets[:, 0], self.targets[:, 1]
        costs = self.costs[rows, columns]
        # Wexler et al., section 3.2: the 75th percentile of the costs is their scale.
        scale = max(float(np.percentile(costs, 75)) / VOTE_SHARPNESS, 1.0)
        weights[rows, columns] = np.maximum(np.exp(-np.minimum(costs, 1e4) / scale), 1e-6)
        return weights

    def resized(self, shape: tuple[int, ...]) -> NDArray[np.float32]:
        """Resize the canvas: (H, W, 3) Lab."""
        size = (shape[1], shape[0])
        return np.asarray(cv2.resize(self.canvas, size, interpolation=cv2.INTER_CUBIC), np.float32)

    def full_size(
        self, lab: NDArray[np.float32], target: NDArray[np.bool_], correction: NDArray[np.float32]
    ) -> NDArray[np.float32]:
        """Fill the region of the full image with the patches that were found: (H, W, 3) Lab.

        Args:
            correction: (h, w, 3) Lab, added to the colours of each source.
        """
        filled = lab.copy()
        weights = np.where(self.target, self._weights(), 0).astype(np.float32)
        scale = (target.shape[0] / self.target.shape[0], target.shape[1] / self.target.shape[1])
        pixels = _positions(target)
        _vote(lab, filled, pixels, self.sources, weights, correction, scale[0], scale[1], 1)
        sigmas = tuple(sigma * max(scale) for sigma in BAND_SIGMAS)
        # What the sources have in each band, the mean of squares: averages of colours have less.
        wanted, limits = np.zeros_like(lab), np.zeros_like(lab)
        energies = np.stack([band**2 for band in _bands(lab, sigmas)], axis=2)
        for found, voted in ((energies, wanted), (_nearby_range(lab, max(sigmas)), limits)):
            _vote(found, voted, pixels, self.sources, weights, np.zeros_like(correction), scale[0], scale[1], 1)
        lightness = _with_energies(filled, wanted, target, sigmas)
        # Beyond what the sources show nearby, more contrast would be a halo beside an edge.
        least, most = (np.minimum(filled[..., 0], limits[..., 0]), np.maximum(filled[..., 0], limits[..., 1]))
        filled[target, 0] = np.clip(lightness, least, most)[target]
        return filled


def _bands(lab: NDArray[np.float32], sigmas: tuple[float, ...]) -> list[NDArray[np.float32]]:
    """Return the differences of ever stronger blurs of the lightness, finest first: (H, W, 3) Lab -> (H, W) each."""
    lightness = np.ascontiguousarray(lab[..., 0])
    blurred = [lightness, *(np.asarray(cv2.GaussianBlur(lightness, (0, 0), sigma), np.float32) for sigma in sigmas)]
    return [finer - coarser for finer, coarser in pairwise(blurred)]


def _nearby_range(lab: NDArray[np.float32], reach: float) -> NDArray[np.float32]:
    """Return the least and the largest lightness nearby, and 0: (H, W, 3) Lab -> (H, W, 3)."""
    square = np.ones((2 * round(reach) + 1,) * 2, np.uint8)
    lightness = np.ascontiguousarray(lab[..., 0])
    least, most = cv2.erode(lightness, square), cv2.dilate(lightness, square)
    return np.ascontiguousarray(np.dstack([least, most, np.zeros_like(lightness)]), np.float32)


def _with_energies(
    lab: NDArray[np.float32],
    wanted: NDArray[np.float32],
    target: NDArray[np.bool_],
    sigmas: tuple[float, ...],
) -> NDArray[np.float32]:
    """Amplify each band of a region's lightness to the energy that it should have nearby: (H, W, 3) -> (H, W).

    A band is never weakened: patches that fit each other have their edges where the region has none.
    """
    lightness = lab[..., 0].copy()
    for k, (band, sigma) in enumerate(zip(_bands(lab, sigmas), sigmas, strict=True)):
        have, want = (
            np.asarray(cv2.GaussianBlur(each * target.astype(np.float32), (0, 0), 4 * sigma), np.float32)
            for each in (band**2, wanted[..., k])
        )
        gain = np.sqrt((want + 1e-3) / (have + 1e-3)).clip(1, MOST_GAIN)
        lightness += (gain - 1) * band
    return lightness


def _reduced(array: NDArray, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Reduce an image to a number of rows and columns."""
    size = (shape[1], shape[0])
    return np.asarray(cv2.resize(array.astype(np.float32), size, interpolation=cv2.INTER_AREA), np.float32)


def _positions(mask: NDArray[np.bool_]) -> NDArray[np.int32]:
    """Return the rows and columns of a mask: (H, W) -> (P, 2)."""
    return np.argwhere(mask).astype(np.int32)


# Reassociation lets the compiler use vector instructions; the order that it chooses is the same in every run.
@njit(cache=True, nogil=True, fastmath={"reassoc", "contract"})
def _row_difference(
    first: NDArray[np.float32],  # (3 w,)
    first_start: int,
    second: NDArray[np.float32],  # (3 w,)
    second_start: int,
) -> np.float32:
    """Return the squared difference of one row of two patches."""
    total = np.float32(0)
    for k in range(21):
        difference = first[first_start + k] - second[second_start + k]
        total += difference * difference
    return total


@kernel
def _search(
    canvas: NDArray[np.float32],  # (h, 3 w)
    exemplar: NDArray[np.float32],  # (h, 3 w)
    targets: NDArray[np.int32],  # (T, 2), at least `RADIUS` away from the border
    is_target: NDArray[np.bool_],  # (h, w)
    source_cost: NDArray[np.float32],  # (h, w)
    sources: NDArray[np.int32],  # (h, w, 2) written
    costs: NDArray[np.float32],  # (h, w) written
    height_weight: np.float32,
    sweeps: int,
    seed: int,
) -> None:
    """PatchMatch: try the sources of the neighbours, then random ones around the best so far, ever closer."""
    height, width = source_cost.shape
    state = np.uint32(seed * 2654435761 % 4294967296 | 1)
    for sweep in range(-1, sweeps):  # sweep -1 computes the costs of the sources as they are
        step = 1 if sweep % 2 == 0 else -1
        for k in range(len(targets)):
            t = k if step == 1 else len(targets) - 1 - k
            row, column = targets[t, 0], targets[t, 1]
            best = np.float32(1e30) if sweep < 0 else costs[row, column]
            best_row, best_column = sources[row, column, 0], sources[row, column, 1]
            reach = (height if height > width else width) // 2
            attempt = 0
            while True:
                if attempt == 0:
                    if sweep >= 0:
                        attempt += 1
                        continue
                    r, c = best_row, best_column
                elif attempt <= 2:
                    # Invariant: the neighbour above (or below) and to the left (or right) was already improved.
                    near_row = row - step if attempt == 1 else row
                    near_column = column - step if attempt == 2 else column
                    if not is_target[near_row, near_column]:
                        attempt += 1
                        continue
                    r = sources[near_row, near_column, 0] + (row - near_row)
                    c = sources[near_row, near_column, 1] + (column - near_column)
                else:
                    if reach < 1:
                        break
                    # xorshift32; Marsaglia, "Xorshift RNGs" (2003).
                    state ^= (state << np.uint32(13)) & np.uint32(0xFFFFFFFF)
                    state ^= state >> np.uint32(17)
                    state ^= (state << np.uint32(5)) & np.uint32(0xFFFFFFFF)
                    # Sources lie at a similar height, so the window is wider than it is high.
                    r = best_row + (np.int64(state & np.uint32(0xFFFF)) % (reach + 1)) - reach // 2
                    c = best_column + (np.int64(state >> np.uint32(16)) % (2 * reach + 1)) - reach
                    reach //= 2
                attempt += 1
                if r < 0 or r >= height or c < 0 or c >= width or source_cost[r, c] >= np.float32(1e6):
                    if sweep < 0:
                        break
                    continue
                limit = best * np.float32(49)
                total = (source_cost[r, c] + height_weight * np.float32((r - row) * (r - row))) * np.float32(49)
                for i in range(-3, 4):
                    if total >= limit:
                        break
                    total += _row_difference(canvas[row + i], 3 * column - 9, exemplar[r + i], 3 * c - 9)
                if total < limit:
                    best, best_row, best_column = total / np.float32(49), r, c
                if sweep < 0:
                    break
            costs[row, column] = best
            sources[row, column, 0], sources[row, column, 1] = best_row, best_column


@kernel
def _vote(
    exemplar: NDArray[np.float32],  # (H, W, 3)
    canvas: NDArray[np.float32],  # (H, W, 3) written
    pixels: NDArray[np.int32],  # (P, 2) of the canvas
    sources: NDArray[np.int32],  # (h, w, 2)
    weights: NDArray[np.float32],  # (h, w), 0 where there is no patch
    correction: NDArray[np.float32],  # (h, w, 3) added to the colours of each source
    row_scale: float,
    column_scale: float,
    radius: int,
) -> None:
    """Average what the patches say; the canvas and the exemplar may be larger than the patches' image."""
    rows, columns = weights.shape
    height, width = exemplar.shape[0], exemplar.shape[1]
    for p in range(len(pixels)):
        row, column = pixels[p, 0], pixels[p, 1]
        middle_row, middle_column = int((row + 0.5) / row_scale), int((column + 0.5) / column_scale)
        total = 0.0
        first, second, third = 0.0, 0.0, 0.0
        for i in range(max(middle_row - radius, 0), min(middle_row + radius + 1, rows)):
            for j in range(max(middle_column - radius, 0), min(middle_column + radius + 1, columns)):
                weight = weights[i, j]
                if weight <= 0:
                    continue
                r = row + int(np.rint((sources[i, j, 0] - i) * row_scale))
                c = column + int(np.rint((sources[i, j, 1] - j) * column_scale))
                if r < 0 or r >= height or c < 0 or c >= width:
                    continue
                total += weight
                first += weight * (exemplar[r, c, 0] + correction[i, j, 0])
                second += weight * (exemplar[r, c, 1] + correction[i, j, 1])
                third += weight * (exemplar[r, c, 2] + correction[i, j, 2])
        if total > 0:
            canvas[row, column, 0] = first / total
            canvas[row, column, 1] = second / total
            canvas[row, column, 2] = third / total
