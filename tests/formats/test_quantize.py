"""Positions on a grid, normalized integers, and unit vectors on an octahedron."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from pipeline.formats.quantize import from_octahedral, octahedral, quantize_positions, quantize_to_integers

POINTS = st.integers(1, 60).flatmap(
    lambda count: arrays(np.float32, (count, 3), elements=st.floats(-1, 1, width=32, allow_subnormal=False))
)


@settings(max_examples=200, deadline=None)
@given(POINTS, st.sampled_from([4, 8, 14]))
def test_equal_points_stay_equal_and_different_ones_different(points: NDArray[np.float32], bits: int) -> None:
    grid = quantize_positions(points, bits=bits)

    assert len(np.unique(grid.places, axis=0)) == len(np.unique(points, axis=0))
    _, number = np.unique(points, axis=0, return_inverse=True)
    assert len(np.unique(np.column_stack([grid.places, number.reshape(-1)]), axis=0)) == len(np.unique(points, axis=0))
    assert int(grid.places.max()) <= grid.steps == 2**bits - 1


def test_points_move_by_half_a_step_at_most() -> None:
    points = (np.random.default_rng(0).random((5000, 3)) * [1.0, 0.3, 0.01] + 5).astype(np.float32)

    grid = quantize_positions(points)

    assert np.abs(grid.positions - points).max() <= 0.5 * grid.step * 1.001
    assert grid.step * 16383 == pytest.approx(np.ptp(points[:, 0]))


def test_a_point_whose_place_is_taken_moves_to_the_nearest_free_one() -> None:
    points = np.float32([[0, 0, 0], [1, 1, 1], [0.4, 0.5, 0.6], [0.4, 0.5, 0.6 + 1e-6]])

    grid = quantize_positions(points, bits=8)

    assert np.abs(grid.places[2].astype(int) - grid.places[3]).sum() == 1


def test_one_place_for_all_axes_of_a_flat_or_single_point() -> None:
    assert quantize_positions(np.ones((1, 3), np.float32)).positions == pytest.approx(np.ones((1, 3)))


def test_integers_are_those_of_gltf() -> None:
    assert quantize_to_integers(np.array([-1.5, -1, -0.5, 0, 1]), np.int8).tolist() == [-127, -127, -64, 0, 127]
    assert quantize_to_integers(np.array([-0.1, 0, 0.5, 1, 1.1]), np.uint16).tolist() == [0, 0, 32768, 65535, 65535]


def test_axes_are_exact_on_the_octahedron_and_others_are_near() -> None:
    axes = np.concatenate([np.eye(3), -np.eye(3)])
    assert from_octahedral(octahedral(axes) / 127) == pytest.approx(axes, abs=1e-12)
    rng = np.random.default_rng(1)
    vectors = rng.normal(size=(20_000, 3))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    cosines = (from_octahedral(octahedral(vectors) / 127) * vectors).sum(axis=1)
    assert np.degrees(np.arccos(cosines.min())) < 0.65  # the best of four places; rounding alone: 0.9
