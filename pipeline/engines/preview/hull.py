"""Several silhouettes to a solid: the visual hull of cameras that stand far away, evenly around the subject.

View k is taken from azimuth k·360°/N, counter-clockwise seen from above, at the height of the horizon. Every view is
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
"""How much masks are blurred, so that the surface runs between pixels."""
ROWS_PER_SLAB = 8
"""Rows of the grid in memory at once; fixed, because where slabs begin shows in the last bits of their vertices."""


@dataclass(frozen=True, eq=False)
class Silhouette:
    """One view's mask and how it lies in the world.

    Attributes:
        mask: (H, W) float32, 0 to 1, blurred by about half a cell.
        azimuth_rad: 0 is on +Z, growing towards +X.
        px_per_metre: scale.
        origin_px: x and y where the origin shows.
    """

    mask: NDArray[np.float32]
    azimuth_rad: float
    px_per_metre: float
    origin_px: tuple[float, float]


def place_silhouettes(images: Sequence[SubjectImage], *, resolution: int) -> list[Silhouette]:
    """Put the views of one subject around it, at a scale at which it fills the unit cube."""
    # In units that are the same in all views; the height is what all views leave standing.
    reach = _reach([(p.centre_px[0] / p.unit_px, p.alpha.shape[1] / p.unit_px) for p in images])
    up = min(p.centre_px[1] / p.unit_px for p in images)
    down = min((p.alpha.shape[0] - p.centre_px[1]) / p.unit_px for p in images)
    metres_per_unit = min(1 / (up + down), 0.5 / reach)
    silhouettes = []
    for k, image in enumerate(images):
        px_per_metre = image.unit_px / metres_per_unit
        margin = int(np.ceil(3 * px_per_metre / resolution)) + 2
        sigma = max(BLUR_CELLS * px_per_metre / resolution, 0.4)
        blurred = cv2.GaussianBlur(np.pad(image.alpha, margin), (0, 0), sigma)
        middle = image.centre_px[1] - (up - down) / 2 * image.unit_px
        origin = (image.centre_px[0] + margin, middle + margin)
        azimuth_rad = 2 * np.pi * k / len(images)
        silhouettes.append(Silhouette(np.asarray(blurred, np.float32), azimuth_rad, px_per_metre, origin))
    return silhouettes


def _reach(views: Sequence[tuple[float, float]]) -> float:
    """How far from the axis, along x or z, what all views leave standing can reach.

    Each view bounds a strip of the ground; the corners of their intersection are crossings of the strips' borders.

    Args:
        views: by azimuth, where the axis shows from the left, and the width.
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


def carve(silhouettes: Sequence[Silhouette], *, resolution: int, on_share: Callable[[float], None]) -> TriMesh:
    """The surface of what every silhouette covers, by marching cubes over slabs of a grid.

    Args:
        resolution: cells along the unit cube.
        on_share: told the share that is done, between slabs.

    Raises:
        UnreadableImage: the silhouettes have no body in common.
    """
    cell_m = 1.0 / resolution
    axis = np.asarray((np.arange(resolution + 5) - (resolution + 4) / 2) * cell_m, np.float64)
    side = len(axis)
    columns = [_columns_of(silhouette, axis) for silhouette in silhouettes]
    vertices: list[NDArray[np.float32]] = []
    faces: list[NDArray[np.int64]] = []
    count = 0
    for bottom in range(0, side - 1, ROWS_PER_SLAB):
        heights = axis[bottom : bottom + ROWS_PER_SLAB + 1]
        field = _covered(silhouettes, columns, heights)
        if field.min() < LEVEL < field.max():
            slab_vertices, slab_faces, _, _ = marching_cubes(field, LEVEL, gradient_direction="ascent")
            slab_vertices[:, 0] += bottom
            vertices.append(slab_vertices)
            faces.append(slab_faces.astype(np.int64) + count)
            count += len(slab_vertices)
        on_share((bottom + ROWS_PER_SLAB) / side)
    if not vertices:
        raise UnreadableImage("the views have no body in common: do they show one subject from evenly spaced sides?")
    return _weld(np.concatenate(vertices), np.concatenate(faces), axis[0], cell_m)


def _columns_of(silhouette: Silhouette, axis: NDArray[np.float64]) -> NDArray[np.float32]:
    """The image's column on which each node of a horizontal grid (x, z) falls: (N * N,)."""
    x, z = np.meshgrid(axis, axis, indexing="ij")
    across = x * np.cos(silhouette.azimuth_rad) - z * np.sin(silhouette.azimuth_rad)
    return (silhouette.origin_px[0] + silhouette.px_per_metre * across).astype(np.float32).ravel()


def _covered(
    silhouettes: Sequence[Silhouette], columns: Sequence[NDArray[np.float32]], heights: NDArray[np.float64]
) -> NDArray[np.float32]:
    """The least of all masks at the nodes of some rows: (rows, N, N), indexed by y, x, z; zero on the grid's border."""
    side = round(len(columns[0]) ** 0.5)
    field = np.ones((len(heights), side * side), np.float32)
    for silhouette, column in zip(silhouettes, columns, strict=True):
        width = silhouette.mask.shape[1]
        at = np.arange(width) + 0.5
        rows_px = silhouette.origin_px[1] - silhouette.px_per_metre * heights
        lines = sample_bilinear(silhouette.mask, np.tile(at, len(heights)), np.repeat(rows_px, width))
        lines = lines.reshape(len(heights), width)
        x = np.clip(column - 0.5, 0, width - 1)
        left = np.minimum(x.astype(np.int32), width - 2)
        share = x - left
        for row, line in enumerate(lines):
            if line.max() <= 0:
                field[row] = 0
                continue
            np.minimum(field[row], line[left] * (1 - share) + line[left + 1] * share, out=field[row])
    field = field.reshape(len(heights), side, side)
    field[:, [0, -1]], field[:, :, [0, -1]] = 0, 0
    return field


def _weld(vertices: NDArray[np.float32], faces: NDArray[np.int64], lowest_m: float, cell_m: float) -> TriMesh:
    """Join the slabs: vertices on a shared plane were computed from the same numbers, so equal ones are one.

    Args:
        vertices: (V, 3) in cells, as y, x, z.
    """
    unique, of_vertex = np.unique(vertices, axis=0, return_inverse=True)
    joined = of_vertex.reshape(-1)[faces]
    proper = (joined[:, 0] != joined[:, 1]) & (joined[:, 1] != joined[:, 2]) & (joined[:, 2] != joined[:, 0])
    # From (y, x, z) to (x, y, z) is a reflection, so the faces turn too.
    return TriMesh(
        (unique[:, [1, 0, 2]] * cell_m + lowest_m).astype(np.float32), joined[proper][:, ::-1].astype(np.int32)
    )
