"""Orthographic views of a `Generation`, and measures of what they show, for tests and benchmarks of the preview engine.

A view is made of surfels: each cell takes the colour of the vertex that is nearest to the camera. The engine's meshes
have a vertex in every cell that they cover if the view has fewer cells than the engine's resolution.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.engines.base import Generation
from pipeline.formats.glb import unit_normals

SIZE_PX = 160
PATCH_PX = 15
CORNER_PATCH_PX = (11, 17, 25)
GAP_PX = 3  # columns between the two colours whose difference is a step
MIN_CONTRAST = 0.06  # standard deviation of the patches that are looked for


def orthographic_view(generation: Generation, azimuth_rad: float, *, size: int = SIZE_PX) -> NDArray[np.float32]:
    """Return the unit cube as an orthographic camera sees it that looks horizontally at the origin.

    Args:
        azimuth_rad: 0 is on +Z; grows towards +X.

    Returns:
        (size, size, 5) float32: sRGB in [0, 1], 1 where the surface is, and its coordinate toward the camera.
    """
    vertices = generation.mesh.vertices
    right = vertices[:, 0] * np.cos(azimuth_rad) - vertices[:, 2] * np.sin(azimuth_rad)
    depth = vertices[:, 0] * np.sin(azimuth_rad) + vertices[:, 2] * np.cos(azimuth_rad)
    column = np.clip((right + 0.5) * size, 0, size - 1).astype(int)
    row = np.clip((0.5 - vertices[:, 1]) * size, 0, size - 1).astype(int)
    nearest = np.full((size, size), -1)
    order = np.argsort(depth, kind="stable")
    nearest[row[order], column[order]] = order  # the last one written is the nearest
    seen = nearest >= 0
    chosen = nearest[seen]
    view = np.zeros((size, size, 5), np.float32)
    normals = unit_normals(generation.mesh.vertex_normals())
    view[seen, :3] = generation.attribute_source.attributes_at(
        vertices[chosen].astype(np.float32), normals[chosen]
    ).base_colour
    view[seen, 3] = 1
    view[seen, 4] = depth[chosen]
    return view


def gradient_energy(view: NDArray[np.float32], without: NDArray[np.bool_] | None = None) -> float:
    """Return the mean squared gradient of the colours, away from the silhouette and from the pixels `without`."""
    inside = _inside(view, margin=3)
    if without is not None:
        inside &= ~without
    across = np.diff(view[..., :3], axis=1, append=0) ** 2
    down = np.diff(view[..., :3], axis=0, append=0) ** 2
    return float((across + down).sum(axis=2)[inside].mean())


def histogram_distance(back: NDArray[np.float32], front: NDArray[np.float32]) -> float:
    """Return half the L1 distance of the colour histograms of the back and the outer part of the front, 0 to 1."""
    outer = _inside(front) & (front[..., 4] < 0.6 * front[..., 4].max())
    return float(0.5 * np.abs(_histogram(back[_inside(back)]) - _histogram(front[outer])).sum())


def rim_step_ratio(side: NDArray[np.float32]) -> float:
    """Return the colour step across the rim in a view from 90 degrees, relative to the steps beside it."""
    size = side.shape[1]
    middle = size // 2

    def step_at(column: int) -> float:
        left, right = side[:, column - GAP_PX], side[:, column + GAP_PX - 1]
        both = (left[:, 3] > 0) & (right[:, 3] > 0)
        return float(np.abs(left[both, :3] - right[both, :3]).mean()) if both.any() else 0.0

    beside = [step_at(middle + sign * k * GAP_PX) for sign in (-1, 1) for k in (2, 3, 4)]
    return step_at(middle) / max(float(np.mean(beside)), 1e-3)


def repeated_feature(back: NDArray[np.float32], front: NDArray[np.float32], *, count: int = 4) -> float:
    """Return the best normalised correlation of the front's most distinctive patches over the back.

    A patch is distinctive if it has contrast, lies away from the silhouette, and occurs nowhere else in the front. The
    back is searched for each patch and for its mirror image, all over.
    """
    inner = _inside(front, margin=PATCH_PX // 2 + 6)
    colours = front[..., :3]
    candidates = []
    for row, column in np.argwhere(inner)[::7]:
        patch = _patch_at(colours, row, column)
        if patch.std(axis=(0, 1)).max() < MIN_CONTRAST:
            continue
        found = cv2.matchTemplate(colours, patch, cv2.TM_CCOEFF_NORMED)
        top, left = max(row - 2 * PATCH_PX, 0), max(column - 2 * PATCH_PX, 0)
        found[top : row + PATCH_PX, left : column + PATCH_PX] = -1  # the patch itself and what overlaps it
        candidates.append(((1 - found.max()) * patch.std(axis=(0, 1)).max(), row, column))
    chosen: list[tuple[float, int, int]] = []
    for score, row, column in sorted(candidates, reverse=True):
        if len(chosen) < count and all(max(abs(row - r), abs(column - c)) > PATCH_PX for _, r, c in chosen):
            chosen.append((score, row, column))
    best = 0.0
    for _, row, column in chosen:
        patch = _patch_at(colours, row, column)
        for template in (patch, np.ascontiguousarray(patch[:, ::-1])):
            found = cv2.matchTemplate(np.ascontiguousarray(back[..., :3]), template, cv2.TM_CCOEFF_NORMED)
            best = max(best, float(found.max()))
    return best


def corner_patches(front: NDArray[np.float32]) -> list[tuple[int, int, int]]:
    """Return the side, row and column of the front's patches with the most corners and colours, three of each side.

    Other than the engine's own features, which are patches that occur once: Shi and Tomasi's smallest eigenvalue times
    the entropy of the brightness.
    """
    grey = cv2.cvtColor(front[..., :3], cv2.COLOR_RGB2GRAY)
    corners = np.asarray(cv2.cornerMinEigenVal(grey, 7), np.float32)
    levels = np.clip(grey * 16, 0, 15).astype(int)
    found: list[tuple[int, int, int]] = []
    for side in CORNER_PATCH_PX:
        shares = [np.asarray(cv2.blur((levels == k).astype(np.float32), (side, side))) for k in range(16)]
        entropy = -sum(share * np.log(np.maximum(share, 1e-6)) for share in shares)
        score = np.where(_inside(front, margin=side // 2 + 2), cv2.blur(corners, (side, side)) * entropy, 0)
        for _ in range(3):
            row, column = (int(place) for place in np.unravel_index(score.argmax(), score.shape))
            if score[row, column] > 0:
                found.append((side, row, column))
                score[max(row - side, 0) : row + side + 1, max(column - side, 0) : column + side + 1] = 0
    return found


def repeated_corner_patch(back: NDArray[np.float32], front: NDArray[np.float32]) -> float:
    """Return the best normalised correlation of the front's `corner_patches` over the back, at three scales."""
    best, colours = 0.0, np.ascontiguousarray(back[..., :3])
    for side, row, column in corner_patches(front):
        half = side // 2
        patch = front[row - half : row + half + 1, column - half : column + half + 1, :3]
        for either in (patch, patch[:, ::-1]):
            for scale in (0.75, 1.0, 1.33):
                size = (round(side * scale),) * 2
                template = cv2.resize(np.ascontiguousarray(either), size, interpolation=cv2.INTER_AREA)
                best = max(best, float(cv2.matchTemplate(colours, template, cv2.TM_CCOEFF_NORMED).max()))
    return best


def _patch_at(colours: NDArray[np.float32], row: int, column: int) -> NDArray[np.float32]:
    half = PATCH_PX // 2
    return np.ascontiguousarray(colours[row - half : row + half + 1, column - half : column + half + 1])


def _inside(view: NDArray[np.float32], *, margin: int = 0) -> NDArray[np.bool_]:
    mask = (view[..., 3] > 0).astype(np.uint8)
    return cv2.erode(mask, np.ones((2 * margin + 1, 2 * margin + 1), np.uint8), borderValue=0) > 0


def _histogram(pixels: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the shares of 8 x 8 x 8 bins of Lab colours: (P, >= 3) -> (512,)."""
    lab = cv2.cvtColor(pixels[None, :, :3], cv2.COLOR_RGB2LAB)[0]
    counts = np.histogramdd(lab, bins=8, range=((0, 100), (-100, 100), (-100, 100)))[0].ravel()
    return counts / max(counts.sum(), 1)
