"""Placement: the size, the origin and the axis that were asked for, and the same surface."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.mesh.asset import Asset
from pipeline.mesh.material import Material
from pipeline.mesh.placement import place
from pipeline.mesh.unwrap import unwrap
from schemas.request import UpAxis
from tests.mesh.shapes import cuboid, welded_report


def asset() -> Asset:
    """A box of 1.0 x 0.7 x 0.4, moved from the origin."""
    box = cuboid()
    moved = type(box)(box.vertices + np.float32([0.3, 0.1, -0.2]), box.faces)
    return Asset(
        moved, moved.vertex_normals(), unwrap(moved, texture_size=64), Material(np.zeros((64, 64, 3), np.uint8)), True
    )


@pytest.mark.parametrize("size", [0.002, 1.0, 100.0])
@pytest.mark.parametrize("up_axis", ["y", "z"])
def test_the_asset_stands_on_its_base_over_the_origin(size: float, up_axis: UpAxis) -> None:
    placed = place(asset(), size=size, origin="bottom", up_axis=up_axis)
    low, high = placed.mesh.bounds() / size
    up, depth = (1, 2) if up_axis == "y" else (2, 1)
    assert low[up] == pytest.approx(0, abs=1e-6) and high[up] == pytest.approx(0.7, rel=1e-4)
    for axis, side in ((0, 1.0), (depth, 0.4)):
        assert (low[axis], high[axis]) == pytest.approx((-side / 2, side / 2), rel=1e-3)


def test_the_middle_may_be_the_origin() -> None:
    low, high = place(asset(), size=2.0, origin="center", up_axis="y").mesh.bounds()
    assert low == pytest.approx((-1.0, -0.7, -0.4), rel=1e-5) and high == pytest.approx((1.0, 0.7, 0.4), rel=1e-5)


@pytest.mark.parametrize("up_axis", ["y", "z"])
def test_the_surface_is_turned_with_its_normals_and_stays_outward(up_axis: UpAxis) -> None:
    made = asset()
    placed = place(made, size=1.0, origin="bottom", up_axis=up_axis)
    closed, consistent, _, volume = welded_report(placed.mesh)
    assert closed and consistent and volume == pytest.approx(0.28, rel=1e-3)
    assert placed.normals == pytest.approx(placed.mesh.vertex_normals(), abs=1e-3)
    split = placed.unwrapped
    assert (split.vertices == placed.mesh.vertices[split.source_vertices]).all()
    assert (split.uvs == made.unwrapped.uvs).all()


def test_the_front_of_a_z_up_asset_is_towards_minus_y() -> None:
    made = asset()
    front = made.mesh.vertices[:, 2] > made.mesh.bounds()[:, 2].mean()
    assert (place(made, size=1.0, origin="center", up_axis="z").mesh.vertices[front, 1] < 0).all()
