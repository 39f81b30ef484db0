"""Several silhouettes to a solid: the visual hull of orthographic cameras around, above and below the subject.

Knows nothing of colours, nor of how the views were placed.

Source: Laurentini, "The visual hull concept for silhouette-based image understanding", IEEE TPAMI 16 (1994).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from skimage.measure import marching_cubes

from pipeline.engines.preview.placement import Silhouette
from pipeline.engines.preview.subject_image import sample_bilinear
from pipeline.errors import UnreadableImage
from pipeline.mesh.tri_mesh import TriMesh

LEVEL = 0.5
ROWS_PER_SLAB = 8
"""Rows of the grid in memory at once; fixed, because slab boundaries affect the last bits of the vertices."""


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
    level = [(silhouette, _columns_of(silhouette, axis)) for silhouette in silhouettes if silhouette.direction.is_level]
    plan = _plan(silhouettes, axis)
    vertices: list[NDArray[np.float32]] = []
    faces: list[NDArray[np.int64]] = []
    count = 0
    for bottom in range(0, side - 1, ROWS_PER_SLAB):
        heights = axis[bottom : bottom + ROWS_PER_SLAB + 1]
        field = _covered(level, plan, heights)  # (rows, N, N)
        if field.min() < LEVEL < field.max():
            slab_vertices, slab_faces, _, _ = marching_cubes(field, LEVEL, gradient_direction="ascent")
            slab_vertices[:, 0] += bottom  # slabs overlap in one row of nodes, where `_weld` joins them
            vertices.append(slab_vertices)
            faces.append(slab_faces.astype(np.int64) + count)
            count += len(slab_vertices)
        on_progress((bottom + ROWS_PER_SLAB) / side)
    if not vertices:
        raise UnreadableImage("the views have no body in common; they must show one subject, each from its angle")
    return _weld(np.concatenate(vertices), np.concatenate(faces), axis[0], cell_m)


def _columns_of(silhouette: Silhouette, axis: NDArray[np.float64]) -> NDArray[np.float32]:
    """Return the image column of each node of a horizontal grid (x, z) in a level view: (N,) -> (N N,)."""
    x, z = np.meshgrid(axis, axis, indexing="ij")
    right = silhouette.direction.rightward
    across = x * right[0] + z * right[2]
    return (silhouette.origin_px[0] + silhouette.px_per_metre * across).astype(np.float32).ravel()


def _plan(silhouettes: Sequence[Silhouette], axis: NDArray[np.float64]) -> NDArray[np.float32]:
    """Return the minimum of the masks from above and below at the nodes of a horizontal grid: (N, N), indexed x, z.

    One in the inside, where no view is from there; zero on the border, so that the body is closed inside the grid.
    """
    x, z = np.meshgrid(axis, axis, indexing="ij")
    plan = np.ones(x.shape, np.float32)
    for silhouette in silhouettes:
        if silhouette.direction.is_level:
            continue
        right, up = silhouette.direction.rightward, silhouette.direction.upward
        column = silhouette.origin_px[0] + silhouette.px_per_metre * (x * right[0] + z * right[2])
        row = silhouette.origin_px[1] - silhouette.px_per_metre * (x * up[0] + z * up[2])
        seen = sample_bilinear(silhouette.mask, column.ravel(), row.ravel()).reshape(plan.shape)
        np.minimum(plan, seen, out=plan)
    plan[[0, -1]], plan[:, [0, -1]] = 0, 0
    return plan


def _covered(
    level: Sequence[tuple[Silhouette, NDArray[np.float32]]],
    plan: NDArray[np.float32],
    heights: NDArray[np.float64],
) -> NDArray[np.float32]:
    """Return the minimum of all masks at the nodes of some rows: (rows, N, N), indexed y, x, z.

    Args:
        level: the views that look horizontally, each with (N N,) image columns from `_columns_of`.
        plan: (N, N), from `_plan`.
        heights: (rows,) metres.
    """
    field = np.tile(plan.reshape(1, -1), (len(heights), 1))
    for silhouette, column in level:
        width = silhouette.mask.shape[1]
        at = np.arange(width) + 0.5
        rows_px = silhouette.origin_px[1] - silhouette.px_per_metre * heights
        # All nodes of a grid row lie on one image row: resample it once, then interpolate.
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
    return field.reshape(len(heights), *plan.shape)


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
