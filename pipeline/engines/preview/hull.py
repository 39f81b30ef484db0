"""Several silhouettes to a solid: the visual hull of orthographic cameras, evenly spaced around the subject.

View k is taken from azimuth k·360°/N, counter-clockwise seen from above, looking horizontally. Every view is
scaled so that the subject has the same height in all. Knows nothing of colours.

Source: Laurentini, "The visual hull concept for silhouette-based image understanding", IEEE TPAMI 16 (1994).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray
from skimage.measure import marching_cubes

from pipeline.engines.preview.subject_image import SubjectImage, sample_bilinear
from pipeline.errors import UnreadableImage
from pipeline.mesh.tri_mesh import TriMesh

LEVEL = 0.5
BLUR_CELLS = 0.35
"""Standard deviation of the blur of the masks, which lets the surface run between pixels."""
ROWS_PER_SLAB = 8
"""Rows of the grid in memory at once; fixed, because slab boundaries affect the last bits of the vertices."""


@dataclass(frozen=True, eq=False)
class Silhouette:
    """The mask of one view and its orthographic camera.

    Attributes:
        mask: (H, W) float32, 0 to 1, blurred by `BLUR_CELLS`.
        azimuth_rad: 0 is on +Z; grows towards +X.
        px_per_metre: scale of the image.
        origin_px: x and y of the origin in the image.
    """

    mask: NDArray[np.float32]  # (H, W)
    azimuth_rad: float
    px_per_metre: float
    origin_px: tuple[float, float]


def place_silhouettes(images: Sequence[SubjectImage], *, resolution: int) -> list[Silhouette]:
    """Place the views around the subject, scaled so that it fills the unit cube.

    Args:
        images: views of one subject, in order of azimuth.
        resolution: cells along the unit cube.
    """
    # Lengths in `unit_px` are the same in all views. The body is as high as the lowest top and the highest bottom.
    reach = _reach([(p.centre_px[0] / p.unit_px, p.alpha.shape[1] / p.unit_px) for p in images])
    up = min(p.centre_px[1] / p.unit_px for p in images)
    down = min((p.alpha.shape[0] - p.centre_px[1]) / p.unit_px for p in images)
    metres_per_unit = min(1 / (up + down), 0.5 / reach)
    silhouettes = []
    for k, image in enumerate(images):
        px_per_metre = image.unit_px / metres_per_unit
        margin = int(np.ceil(3 * px_per_metre / resolution)) + 2
        sigma_px = max(BLUR_CELLS * px_per_metre / resolution, 0.4)
        blurred = cv2.GaussianBlur(np.pad(image.alpha, margin), (0, 0), sigma_px)
        middle = image.centre_px[1] - (up - down) / 2 * image.unit_px
        origin = (image.centre_px[0] + margin, middle + margin)
        azimuth_rad = 2 * np.pi * k / len(images)
        silhouettes.append(Silhouette(np.asarray(blurred, np.float32), azimuth_rad, px_per_metre, origin))
    return silhouettes


def _reach(views: Sequence[tuple[float, float]]) -> float:
    """Return how far the intersection of all views can extend from the axis along x or z.

    Seen from above, each view bounds a strip; the corners of the strips' intersection are crossings of their borders.

    Args:
        views: for each view, in order of azimuth, the position of the axis from the left, and the width.
    """
    directions, offsets = [], []
    for k, (left, width) in enumerate(views):
        angle = 2 * np.pi * k / len(views)
        right = np.array([np.cos(angle), -np.sin(angle)])
        directions += [right, -right]
        offsets += [width - left, left]
    normals, limits = np.array(directions), np.array(offsets)
    reach = 0.0
    for first in range(len(normals)):
        for second in range(first):
            pair = normals[[first, second]]
            if abs(np.linalg.det(pair)) > 1e-6:
                corner = np.linalg.solve(pair, limits[[first, second]])
                if (normals @ corner <= limits + 1e-9).all():
                    reach = max(reach, float(np.abs(corner).max()))
    return max(reach, float(limits.max()))


def carve(silhouettes: Sequence[Silhouette], *, resolution: int, on_progress: Callable[[float], None]) -> TriMesh:
    """Extract the surface of the body that every silhouette covers, by marching cubes over slabs of a grid.

    Args:
        silhouettes: from `place_silhouettes`.
        resolution: cells along the unit cube.
        on_progress: receives the fraction done after each slab.

    Raises:
        UnreadableImage: the silhouettes have no common body.
    """
    cell_m = 1.0 / resolution
    # Two cells of margin on each side, so that the surface is closed inside the grid.
    axis = np.asarray((np.arange(resolution + 5) - (resolution + 4) / 2) * cell_m, np.float64)
    side = len(axis)
    columns = [_columns_of(silhouette, axis) for silhouette in silhouettes]
    vertices: list[NDArray[np.float32]] = []
    faces: list[NDArray[np.int64]] = []
    count = 0
    for bottom in range(0, side - 1, ROWS_PER_SLAB):
        heights = axis[bottom : bottom + ROWS_PER_SLAB + 1]
        field = _covered(silhouettes, columns, heights)  # (rows, N, N)
        if field.min() < LEVEL < field.max():
            slab_vertices, slab_faces, _, _ = marching_cubes(field, LEVEL, gradient_direction="ascent")
            slab_vertices[:, 0] += bottom  # slabs overlap in one row of nodes, where `_weld` joins them
            vertices.append(slab_vertices)
            faces.append(slab_faces.astype(np.int64) + count)
            count += len(slab_vertices)
        on_progress((bottom + ROWS_PER_SLAB) / side)
    if not vertices:
        raise UnreadableImage("the views have no body in common; they must show one subject from evenly spaced sides")
    return _weld(np.concatenate(vertices), np.concatenate(faces), axis[0], cell_m)


def _columns_of(silhouette: Silhouette, axis: NDArray[np.float64]) -> NDArray[np.float32]:
    """Return the image column of each node of a horizontal grid (x, z): (N,) -> (N N,)."""
    x, z = np.meshgrid(axis, axis, indexing="ij")
    across = x * np.cos(silhouette.azimuth_rad) - z * np.sin(silhouette.azimuth_rad)
    return (silhouette.origin_px[0] + silhouette.px_per_metre * across).astype(np.float32).ravel()


def _covered(
    silhouettes: Sequence[Silhouette], columns: Sequence[NDArray[np.float32]], heights: NDArray[np.float64]
) -> NDArray[np.float32]:
    """Return the minimum of all masks at the nodes of some rows: (rows, N, N), indexed y, x, z; zero on the border.

    Args:
        silhouettes: the views.
        columns: (N N,) image columns for each view, from `_columns_of`.
        heights: (rows,) metres.
    """
    side = round(len(columns[0]) ** 0.5)
    field = np.ones((len(heights), side * side), np.float32)
    for silhouette, column in zip(silhouettes, columns, strict=True):
        width = silhouette.mask.shape[1]
        at = np.arange(width) + 0.5
        rows_px = silhouette.origin_px[1] - silhouette.px_per_metre * heights
        # Views look horizontally, so all nodes of a grid row lie on one image row: resample it once, then interpolate.
        profiles = sample_bilinear(silhouette.mask, np.tile(at, len(heights)), np.repeat(rows_px, width))
        profiles = profiles.reshape(len(heights), width)  # (rows W,) -> (rows, W)
        x = np.clip(column - 0.5, 0, width - 1)
        left = np.minimum(x.astype(np.int32), width - 2)
        fraction = x - left
        for row, profile in enumerate(profiles):
            if profile.max() <= 0:
                field[row] = 0
                continue
            np.minimum(field[row], profile[left] * (1 - fraction) + profile[left + 1] * fraction, out=field[row])
    field = field.reshape(len(heights), side, side)
    field[:, [0, -1]], field[:, :, [0, -1]] = 0, 0
    return field


def _weld(vertices: NDArray[np.float32], faces: NDArray[np.int64], lowest_m: float, cell_m: float) -> TriMesh:
    """Join the slabs: vertices on a shared row are computed from the same numbers, so duplicates are bitwise equal.

    Args:
        vertices: (V, 3) in cells, as y, x, z.
        faces: (F, 3).
        lowest_m: coordinate of the first node along each axis.
        cell_m: side of a cell.
    """
    unique, of_vertex = np.unique(vertices, axis=0, return_inverse=True)
    joined = of_vertex.reshape(-1)[faces]
    proper = (joined[:, 0] != joined[:, 1]) & (joined[:, 1] != joined[:, 2]) & (joined[:, 2] != joined[:, 0])
    # Swapping y and x is a reflection, so the faces change their orientation too.
    return TriMesh(
        (unique[:, [1, 0, 2]] * cell_m + lowest_m).astype(np.float32), joined[proper][:, ::-1].astype(np.int32)
    )
