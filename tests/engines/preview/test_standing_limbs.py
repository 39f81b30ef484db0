"""Depth order of legs, from the heights of their feet in the image."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.engines.preview import inflate as inflation
from pipeline.engines.preview.inflate import inflate
from pipeline.engines.preview.mask_grid import sample_mask
from pipeline.engines.preview.standing_limbs import find_limbs, limb_offsets
from pipeline.mesh.measure import measure
from tests.fakes.solids import HELD_OUT, SOLIDS, depth_error, mesh_depths, render_solid


def stool(*, far_foot: int) -> NDArray[np.float32]:
    """A seat on two legs; the right one ends `far_foot` pixels above the left one."""
    alpha = np.zeros((200, 160), np.float32)
    alpha[:80] = 1
    alpha[80:, 10:30] = 1
    alpha[80 : 200 - far_foot, 130:150] = 1
    return alpha


def middle_of_feet(alpha: NDArray[np.float32]) -> tuple[float, float]:
    """The mean z of the lower ends of the left and the right leg."""
    vertices = inflate(alpha, resolution=100, depth=0.8).vertices
    low = vertices[vertices[:, 1] < -0.3]
    return float(low[low[:, 0] < 0, 2].mean()), float(low[low[:, 0] > 0, 2].mean())


def test_the_lower_foot_is_in_front() -> None:
    left, right = middle_of_feet(stool(far_foot=12))
    assert left > 0.05 and right < -0.05

    mirrored_left, mirrored_right = middle_of_feet(stool(far_foot=12)[:, ::-1])
    assert mirrored_right == pytest.approx(left, abs=0.01) and mirrored_left == pytest.approx(right, abs=0.01)


def test_feet_side_by_side_stay_in_the_middle() -> None:
    grid = sample_mask(stool(far_foot=0), resolution=100)

    assert len(find_limbs(grid)) == 2
    assert limb_offsets(grid, np.where(grid.inside, 0.2, 0.0)) is None


@pytest.mark.parametrize(
    "alpha",
    [
        np.ones((100, 100), np.float32),  # no limb
        np.kron(np.array([[1, 1, 1], [1, 0, 1]], np.float32), np.ones((40, 40), np.float32)),  # stumps, not limbs
        np.kron(np.array([[1, 1, 1], [1, 0, 0]], np.float32), np.ones((90, 10), np.float32)),  # one limb
    ],
)
def test_what_stands_on_fewer_than_two_slender_limbs_is_not_moved(alpha: NDArray[np.float32]) -> None:
    grid = sample_mask(alpha, resolution=64)

    assert limb_offsets(grid, np.where(grid.inside, 0.2, 0.0)) is None


def test_a_body_with_moved_limbs_is_closed_whole_and_no_deeper() -> None:
    mesh = inflate(stool(far_foot=12), resolution=100, depth=0.8)

    report = measure(mesh)
    assert report.is_watertight and report.components == 1 and report.non_manifold_edges == 0
    assert np.abs(mesh.vertices[:, 2]).max() < 0.5


@pytest.mark.parametrize(("name", "yaw_deg", "pitch_deg"), [("chair", 20, 8), ("table", -30, 20), ("animal", 45, 20)])
def test_moved_limbs_are_nearer_the_truth(
    name: str, yaw_deg: float, pitch_deg: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    solid = replace({**SOLIDS, **HELD_OUT}[name], yaw_deg=yaw_deg, pitch_deg=pitch_deg)
    rendering = render_solid(solid, side=96)
    alpha = (rendering.image[..., 3] / 255).astype(np.float32)

    def error() -> float:
        mesh = inflate(alpha, resolution=64, depth=0.4)
        return depth_error(rendering, *mesh_depths(mesh.vertices, rendering.front.shape))

    moved = error()
    monkeypatch.setattr(inflation, "limb_offsets", lambda grid, heights: None)

    assert moved < 0.97 * error()
