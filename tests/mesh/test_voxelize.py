"""Cells that a surface touches, against triangles clipped to each cell; tests/parity compares with the reference's."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.errors import InvalidRequest
from pipeline.mesh.voxelize import INSET, VOXEL_RESOLUTION, voxelize
from tests.mesh.shapes import cuboid, sphere

Points = NDArray[np.float64]


def clipped(polygon: Points, axis: int, bound: float, sign: int) -> Points:
    """The part of a convex polygon with sign * coordinate <= sign * bound (Sutherland and Hodgman)."""
    kept: list[Points] = []
    for start, end in zip(polygon, np.roll(polygon, -1, axis=0), strict=True):
        inside = [sign * (each[axis] - bound) <= 0 for each in (start, end)]
        if inside[0]:
            kept.append(start)
        if inside[0] != inside[1]:
            kept.append(start + (bound - start[axis]) / (end[axis] - start[axis]) * (end - start))
    return np.array(kept).reshape(-1, 3)


def cells_by_clipping(vertices: Points, faces: NDArray[np.int64], *, margin: float) -> set[tuple[int, ...]]:
    """The cells of the unit cube, grown by a margin, in which some of a triangle is left when it is clipped to them."""
    cells = set()
    for face in faces:
        low, high = (np.floor((vertices[face] + 0.5) * VOXEL_RESOLUTION + shift).astype(int) for shift in (-1e-9, 1e-9))
        for cell in np.ndindex(*(high.max(axis=0) - low.min(axis=0) + 1)):
            index = low.min(axis=0) + cell
            polygon = vertices[face]
            for axis in range(3):
                for bound, sign in ((index[axis] - margin, -1), (index[axis] + 1 + margin, 1)):
                    if len(polygon):
                        polygon = clipped(polygon, axis, bound / VOXEL_RESOLUTION - 0.5, sign)
            if len(polygon):
                cells.add(tuple(index.tolist()))
    return cells


def test_a_tilted_triangle_touches_the_cells_that_clipping_leaves_some_of_it_in() -> None:
    rng = np.random.default_rng(5)
    for _ in range(4):
        vertices = rng.uniform(-0.5, 0.5, (3, 3))
        vertices[0, 0], vertices[1, 0] = -0.5, 0.5  # so that the longest side fills the cube, centred
        vertices[:, 1:] *= 0.2
        low, high = vertices.min(axis=0), vertices.max(axis=0)
        centred = np.clip(vertices - (low + high) / 2, -0.5 + INSET, 0.5 - INSET)
        faces = np.array([[0, 1, 2]])

        cells = {tuple(cell) for cell in voxelize(vertices, faces).tolist()}

        # Whether a cell that is only touched counts is decided by rounding here.
        assert (
            cells_by_clipping(centred, faces, margin=-1e-6) <= cells <= cells_by_clipping(centred, faces, margin=1e-6)
        )


def test_only_the_surface_is_marked_and_the_bounding_box_fills_the_grid() -> None:
    cells = voxelize(*vars_of(cuboid((2.0, 2.0, 2.0))))

    inner = (cells > 0).all(axis=1) & (cells < VOXEL_RESOLUTION - 1).all(axis=1)
    assert not inner.any()
    assert len(cells) == VOXEL_RESOLUTION**3 - (VOXEL_RESOLUTION - 2) ** 3


def test_the_longest_side_sets_the_scale_of_all_axes() -> None:
    cells = voxelize(*vars_of(cuboid((4.0, 2.0, 1.0))))

    assert (cells.max(axis=0) - cells.min(axis=0) + 1).tolist() == [64, 33, 17]  # a face on a boundary is in both


def test_size_place_and_unused_vertices_do_not_matter() -> None:
    vertices, faces = vars_of(sphere(20))
    moved = np.concatenate([vertices * 64.0 + np.array([3.0, -8.0, 1.0]), [[1e9, 0.0, np.nan]]])

    assert (
        np.array_equal(voxelize(vertices * 1.0, faces), voxelize(moved, faces))
        or agreement(voxelize(vertices, faces), voxelize(moved, faces)) > 0.99
    )  # rounding may move a vertex across a boundary


def agreement(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> float:
    first, second = ({tuple(cell) for cell in cells.tolist()} for cells in (one, other))
    return len(first & second) / len(first | second)


def test_cells_are_distinct_and_sorted() -> None:
    cells = voxelize(*vars_of(sphere(20)))

    assert np.array_equal(cells, np.unique(cells, axis=0))


@pytest.mark.parametrize(
    ("vertices", "faces", "message"),
    [
        (np.zeros((0, 3)), np.zeros((0, 3), int), "no faces"),
        (np.ones((3, 3)), np.array([[0, 1, 2]]), "no extent"),
        (np.array([[0, 0, 0], [np.nan, 0, 0], [0, 1, 0]]), np.array([[0, 1, 2]]), "not finite"),
        (np.array([[0, 0, 0], [np.inf, 0, 0], [0, 1, 0]]), np.array([[0, 1, 2]]), "not finite"),
    ],
)
def test_a_mesh_without_a_surface_is_refused(vertices: Points, faces: NDArray[np.int64], message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        voxelize(vertices, faces)


def vars_of(mesh: object) -> tuple[Points, NDArray[np.int64]]:
    return np.asarray(mesh.vertices, np.float64), np.asarray(mesh.faces, np.int64)  # type: ignore[attr-defined]
