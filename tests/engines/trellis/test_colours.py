from __future__ import annotations

import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch

from pipeline.engines.trellis.colours import (
    FOOTPRINT,
    MIN_TOTAL_WEIGHT,
    NEIGHBOURS,
    SH_C0,
    GaussianColours,
    VertexColours,
    gaussian_rgb,
    rotate_back,
)
from pipeline.engines.trellis.decode import gaussian_colours
from pipeline.engines.trellis.frame import quaternions_to_y_up, to_y_up
from pipeline.engines.trellis.gaussian_decoder import Gaussians

VOXELS = 32  # along the side of the cube; the released model has 64, with as many Gaussians per voxel
PER_VOXEL = 32
GRID = 4 * VOXELS  # resolution of the mesh vertices


def sphere_points(count: int, rng: np.random.Generator) -> np.ndarray:
    points = rng.normal(size=(count, 3))
    return (0.4 * points / np.linalg.norm(points, axis=1, keepdims=True)).astype(np.float32)


def stripes(points: np.ndarray, *, period: float) -> np.ndarray:
    """Soft stripes along every axis: (P, 3) in [0, 1]."""
    return 0.5 + 0.5 * np.sin(2 * np.pi * points / period)


def no_fallback() -> VertexColours:
    return VertexColours(np.zeros((0, 3), np.float32), np.zeros((0, 3), np.uint8))


def gaussians_on_a_sphere(period: float, fallback: VertexColours) -> GaussianColours:
    """As many Gaussians as the decoder yields, scattered around the surface, with the colour of the texture below."""
    rng = np.random.default_rng(0)
    surface_voxels = 4 * np.pi * 0.4**2 * VOXELS**2
    points = sphere_points(int(surface_voxels * PER_VOXEL), rng)
    xyz = points + rng.normal(scale=0.2 / VOXELS, size=points.shape)
    on_surface = 0.4 * xyz / np.linalg.norm(xyz, axis=1, keepdims=True)
    count = len(xyz)
    return GaussianColours(
        xyz=xyz.astype(np.float32),
        scaling=np.full((count, 3), 0.1 / VOXELS, np.float16),
        rotation=np.tile(np.array([1, 0, 0, 0], np.float16), (count, 1)),
        opacity=np.full(count, 0.5, np.float16),
        rgb=np.rint(stripes(on_surface, period=period) * 255).astype(np.uint8),
        fallback=fallback,
    )


def vertex_colours_on_a_sphere(period: float) -> VertexColours:
    count = int(4 * np.pi * 0.4**2 * GRID**2)
    vertices = sphere_points(count, np.random.default_rng(1))
    return VertexColours(vertices, np.rint(stripes(vertices, period=period) * 255).astype(np.uint8))


def error(source: GaussianColours | VertexColours, period: float) -> float:
    points = sphere_points(4000, np.random.default_rng(2))
    found = source.colours_at(points, points)
    return float(np.sqrt(np.mean((found - stripes(points, period=period)) ** 2)))


@pytest.mark.parametrize("period_in_voxels", [2, 4])
def test_gaussians_reproduce_a_texture_better_than_vertex_colours(period_in_voxels: float) -> None:
    period = period_in_voxels / VOXELS
    vertices = vertex_colours_on_a_sphere(period)

    by_gaussians, by_vertices = error(gaussians_on_a_sphere(period, vertices), period), error(vertices, period)

    assert by_gaussians < by_vertices


def test_a_point_far_from_all_gaussians_takes_the_vertex_colours() -> None:
    vertices = VertexColours(np.array([[5.0, 0, 0]], np.float32), np.array([[10, 20, 30]], np.uint8))
    source = gaussians_on_a_sphere(0.1, vertices)
    far = np.array([[4.0, 0, 0]], np.float32)

    np.testing.assert_allclose(source.colours_at(far, far), [[10 / 255, 20 / 255, 30 / 255]], rtol=1e-6)


def test_without_gaussians_and_vertices_a_point_is_grey() -> None:
    none = np.zeros((0, 3))
    source = GaussianColours(
        none.astype(np.float32),
        none.astype(np.float16),
        np.zeros((0, 4), np.float16),
        none[:, 0].astype(np.float16),
        none.astype(np.uint8),
        no_fallback(),
    )

    assert source.colours_at(np.ones((2, 3), np.float32), np.ones((2, 3), np.float32)).tolist() == [[0.5] * 3] * 2


def test_colours_equal_those_of_the_nearest_gaussians_found_one_by_one() -> None:
    rng = np.random.default_rng(4)
    count = 3_000
    quaternions = rng.normal(size=(count, 4))
    source = GaussianColours(
        xyz=rng.uniform(-0.3, 0.3, (count, 3)).astype(np.float32),
        scaling=rng.uniform(0.005, 0.05, (count, 3)).astype(np.float16),
        rotation=(quaternions / np.linalg.norm(quaternions, axis=1, keepdims=True)).astype(np.float16),
        opacity=rng.uniform(0.1, 1, count).astype(np.float16),
        rgb=rng.integers(0, 256, (count, 3), np.uint8),
        fallback=VertexColours(np.zeros((1, 3), np.float32), np.full((1, 3), 200, np.uint8)),
    )
    points = rng.uniform(-0.5, 0.5, (300, 3)).astype(np.float32)  # inside the grid and around it

    expected = []
    for point in points:
        distance = np.linalg.norm(source.xyz.astype(np.float64) - point, axis=1)
        nearest = np.argsort(distance)[:NEIGHBOURS]
        offset = (point - source.xyz[nearest]).astype(np.float32)
        along = rotate_back(source.rotation[nearest].astype(np.float32), offset)
        variance = source.scaling[nearest].astype(np.float64) ** 2 + FOOTPRINT**2
        weight = source.opacity[nearest] * np.exp(-0.5 * (along**2 / variance).sum(axis=1))
        colour = weight @ source.rgb[nearest] / 255 / max(weight.sum(), 1e-30)
        expected.append(colour if weight.sum() >= MIN_TOTAL_WEIGHT else [200 / 255] * 3)

    # float16 quaternions are not quite of unit length, and the two sides turn by them in different ways.
    np.testing.assert_allclose(source.colours_at(points, points), expected, atol=2e-3)


def test_colours_are_weighted_by_opacity() -> None:
    source = GaussianColours(
        xyz=np.zeros((2, 3), np.float32),
        scaling=np.full((2, 3), 0.1, np.float16),
        rotation=np.tile(np.array([1, 0, 0, 0], np.float16), (2, 1)),
        opacity=np.array([0.75, 0.25], np.float16),
        rgb=np.array([[255, 0, 0], [0, 0, 255]], np.uint8),
        fallback=no_fallback(),
    )

    found = source.colours_at(np.zeros((1, 3), np.float32), np.ones((1, 3), np.float32))

    np.testing.assert_allclose(found, [[0.75, 0, 0.25]], atol=1e-6)


def test_a_colour_source_pickles_without_its_grid() -> None:
    source = gaussians_on_a_sphere(0.1, no_fallback())
    points = sphere_points(10, np.random.default_rng(3))
    before = source.colours_at(points, points)

    data = pickle.dumps(source)
    after = pickle.loads(data)

    assert len(data) < len(source.xyz) * 40
    np.testing.assert_array_equal(after.colours_at(points, points), before)


def test_colours_import_no_torch() -> None:
    code = "import sys, pipeline.engines.trellis.colours; sys.exit('torch' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == 0


def test_the_conversion_maps_up_and_front_of_the_model_to_those_of_the_project() -> None:
    up_front = np.array([[0, 0, 1], [0, -1, 0], [1, 0, 0]], np.float32)  # the model's up, front and right

    assert to_y_up(up_front).tolist() == [[0, 1, 0], [0, 0, 1], [1, 0, 0]]


def test_converted_quaternions_rotate_converted_vectors_alike() -> None:
    rng = np.random.default_rng(0)
    rotation = rng.normal(size=(6, 4))
    rotation = (rotation / np.linalg.norm(rotation, axis=1, keepdims=True)).astype(np.float32)
    vectors = rng.normal(size=(6, 3)).astype(np.float32)

    along = rotate_back(quaternions_to_y_up(rotation), to_y_up(vectors))

    np.testing.assert_allclose(along, rotate_back(rotation, vectors), atol=1e-6)


def test_colours_of_the_constant_harmonic_are_clamped() -> None:
    assert gaussian_rgb(np.array([[0.0, 10.0, -10.0]])).tolist() == [[128, 255, 0]]


def test_a_bake_of_what_the_engine_returns_is_that_of_exact_gaussians_at_16_bytes_each() -> None:
    rng = np.random.default_rng(5)
    exact = gaussians_on_a_sphere(2 / VOXELS, no_fallback())
    order = np.lexsort(np.floor(exact.xyz.T * VOXELS))  # as the decoder returns them, voxel by voxel
    xyz, rgb = exact.xyz[order], exact.rgb[order]
    count = len(xyz)
    turns = rng.normal(size=(count, 4)).astype(np.float32)
    made = Gaussians(
        xyz=torch.from_numpy(xyz),
        features_dc=torch.from_numpy(((rgb / 255 - 0.5) / SH_C0).astype(np.float32)),
        scaling=torch.from_numpy(np.exp(rng.normal(-5.2, 0.5, (count, 3))).astype(np.float32)),
        rotation=torch.from_numpy(turns / np.linalg.norm(turns, axis=1, keepdims=True)),
        opacity=torch.from_numpy(rng.uniform(1 / 255, 1, (count, 1)).astype(np.float32)),
    )
    found = gaussian_colours(made, no_fallback())
    exact = GaussianColours(
        xyz=to_y_up(xyz),
        scaling=made.scaling.numpy().astype(np.float16),
        rotation=quaternions_to_y_up(made.rotation.numpy()).astype(np.float16),
        opacity=made.opacity[:, 0].numpy().astype(np.float16),
        rgb=gaussian_rgb(made.features_dc.numpy()),
        fallback=no_fallback(),
    )
    points = sphere_points(20_000, rng)
    error = found.colours_at(points, points) - exact.colours_at(points, points)

    assert -10 * np.log10(np.mean(error**2)) >= 50
    assert len(pickle.dumps(found)) / count < 18
    again = pickle.loads(pickle.dumps(found))
    assert np.array_equal(again.colours_at(points, points), found.colours_at(points, points))
