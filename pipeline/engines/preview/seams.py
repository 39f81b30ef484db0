"""Removes steps of shading between patches copied next to each other. Knows nothing of how they were found."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.sparse.linalg import splu

SHADING_STEP = 12.0
"""Steps of up to this colour difference are shading and disappear; those of twice as much are borders and stay."""
CHANNEL_WEIGHTS = (0.6, 1.0, 1.0)
"""Weights of L, a and b in that difference: shading changes the lightness."""
REACH_PX = 16
"""Over this distance the colours return to those of the sources."""
NEIGHBOURS = ((0, 1), (0, -1), (1, 0), (-1, 0))


def shading_correction(
    exemplar: NDArray[np.float32],
    sources: NDArray[np.int32],
    *,
    target: NDArray[np.bool_],
    inside: NDArray[np.bool_],
) -> NDArray[np.float32]:
    """Return what to add to the colours of the sources of a filled region.

    Solves a screened Poisson equation: the gradients are those of the sources, and the colours equal the exemplar at
    the region's rim, so that no step of shading shows between patches; a border between two materials keeps its step.
    Source: Pérez, Gangnet, Blake, "Poisson image editing", ACM TOG 22 (2003); the screening: Bhat, Curless, Cohen,
    Zitnick, "Fourier analysis of the 2D screened Poisson equation", ECCV 2008.

    Args:
        exemplar: (h, w, 3) Lab of the image.
        sources: (h, w, 2) row and column in the exemplar from which each pixel was copied.
        target: (h, w) pixels that were filled.
        inside: (h, w) pixels of the subject.

    Returns:
        (h, w, 3) Lab; 0 outside the target.
    """
    pixels = np.argwhere(target)
    count = len(pixels)
    number = np.full(target.shape, -1)
    number[target] = np.arange(count)
    own = np.argwhere(np.ones_like(target)).reshape(*target.shape, 2)
    sources = np.where(target[..., None], sources, own)
    source = sources[target]
    copied = _colours_at(exemplar, source)
    right = copied / REACH_PX**2
    diagonal = np.full(count, 1 / REACH_PX**2)
    rows, columns = [], []
    for direction in np.array(NEIGHBOURS):
        neighbour = pixels + direction
        is_known = ((neighbour >= 0) & (neighbour < target.shape)).all(axis=1)
        neighbour = np.where(is_known[:, None], neighbour, pixels)
        at = (neighbour[:, 0], neighbour[:, 1])
        is_known &= inside[at]
        is_free, is_fixed = is_known & target[at], is_known & ~target[at]
        diagonal += is_known
        rows.append(np.flatnonzero(is_free))
        columns.append(number[at][is_free])
        right -= _gradient(exemplar, source, sources[at], direction) * is_known[:, None]
        right[is_fixed] += _colours_at(exemplar, neighbour[is_fixed])
    row, column = np.concatenate(rows), np.concatenate(columns)
    matrix = sparse.coo_matrix((-np.ones(len(row)), (row, column)), shape=(count, count)) + sparse.diags(diagonal)
    # Symmetric positive definite, so no pivoting is needed; see `inflate.solve_poisson`.
    solver = splu(matrix.tocsc(), permc_spec="MMD_AT_PLUS_A", diag_pivot_thresh=0.0, options={"SymmetricMode": True})
    correction = np.zeros_like(exemplar)
    correction[target] = solver.solve(right) - copied
    return correction


def _gradient(
    exemplar: NDArray[np.float32],  # (h, w, 3)
    source: NDArray[np.integer],  # (P, 2)
    neighbour_source: NDArray[np.integer],  # (P, 2)
    direction: NDArray[np.integer],  # (2,)
) -> NDArray[np.float64]:  # (P, 3)
    """Return the colour difference that pixels and their neighbours in one direction should have."""
    here, there = _colours_at(exemplar, source), _colours_at(exemplar, neighbour_source)
    step = there - here
    # Both sources say how the colours go on. The smaller change is taken, and none if they disagree on its sign: means
    # would add up to a shade over repeated patches.
    before = _colours_at(exemplar, source + direction) - here
    after = there - _colours_at(exemplar, neighbour_source - direction)
    smooth = np.where(before * after > 0, np.where(np.abs(before) < np.abs(after), before, after), 0)
    excess = np.linalg.norm((step - smooth) * CHANNEL_WEIGHTS, axis=1)
    kept = np.clip(excess / SHADING_STEP - 1, 0, 1)[:, None]
    return kept * step + (1 - kept) * smooth


def _colours_at(exemplar: NDArray[np.float32], position: NDArray[np.integer]) -> NDArray[np.float64]:
    """Return the colours at rows and columns, clamped to the image: (P, 2) -> (P, 3)."""
    height, width = exemplar.shape[:2]
    row, column = np.clip(position[:, 0], 0, height - 1), np.clip(position[:, 1], 0, width - 1)
    return exemplar[row, column].astype(np.float64)
