"""The mesh rasteriser: silhouettes, occlusion, texture and light of shapes whose image is known."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from pipeline.mesh.tri_mesh import TriMesh
from pipeline.render.mesh_view import BACKGROUND, RenderMesh, over_background, render_view, thumbnail, turntable
from pipeline.render.orbit import Camera, intrinsics_of, look_at
from tests.mesh.shapes import joined, sphere
from tests.reference.solids import horizon_camera, in_grey

SIZE = 64


def square(*, z: float = 0.0, half: float = 0.3, colour: int = 200) -> RenderMesh:
    """A square that faces the front, left half in one grey and right half in black."""
    vertices = np.float32([[-half, -half, z], [half, -half, z], [half, half, z], [-half, half, z]])
    uvs = np.float32([[0, 1], [1, 1], [1, 0], [0, 0]])
    texture = np.zeros((2, 2, 3), np.uint8)
    texture[:, 0] = colour
    normals = np.tile(np.float32([0, 0, 1]), (4, 1))
    return RenderMesh(vertices, np.array([[0, 1, 2], [0, 2, 3]], np.int32), normals, uvs, texture)


def from_direction(x: float, y: float) -> Camera:
    """A distant camera in the z-up frame of cameras; (0, -1) is in front."""
    return Camera(look_at(np.array([12.0 * x, 12.0 * y, 0]), np.zeros(3)), intrinsics_of(2 * math.atan(0.55 / 12)))


def test_the_front_shows_the_texture_upright_and_unmirrored() -> None:
    image = render_view(square(), horizon_camera(0), size=SIZE)

    middle = image[SIZE // 2]
    seen = np.flatnonzero(middle[:, 3] == 255)
    assert middle[seen[2], 0] == 200 and middle[seen[-3], 0] == 0
    assert len(seen) == pytest.approx(0.6 / 1.1 * SIZE, abs=2)


def test_back_faces_are_not_rendered() -> None:
    assert not render_view(square(), from_direction(0, 1), size=SIZE)[..., 3].any()


def test_the_nearer_surface_hides_the_farther_one() -> None:
    near, far = square(z=0.2, half=0.1, colour=250), square(z=-0.2, colour=100)
    both = RenderMesh(
        np.concatenate([far.vertices, near.vertices]),
        np.concatenate([near.faces + 4, far.faces]).astype(np.int32),
        np.concatenate([far.normals, near.normals]),
        np.zeros((8, 2), np.float32) + np.repeat(np.float32([[0.25, 0.25], [0.75, 0.25]]), 4, axis=0),
        np.repeat(np.array([[[100], [250]]], np.uint8), 3, axis=2),
    )

    image = render_view(both, horizon_camera(0), size=SIZE)

    assert image[SIZE // 2, SIZE // 2, 0] == 250
    assert image[SIZE // 2, SIZE // 2 - 10, 0] == 100


def test_the_silhouette_of_a_sphere_has_its_area_and_its_rim_is_darker() -> None:
    image = render_view(in_grey(sphere(40, radius=0.4)), horizon_camera(0), size=SIZE)

    area = (image[..., 3] / 255).sum() * (1.1 / SIZE) ** 2
    assert area == pytest.approx(math.pi * 0.4**2, rel=0.02)
    row = image[SIZE // 2]
    solid = np.flatnonzero(row[:, 3] == 255)
    assert row[SIZE // 2, 0] == pytest.approx(160, abs=1) and row[solid[0], 0] < 130


def test_an_empty_mesh_renders_to_a_transparent_image() -> None:
    empty = in_grey(TriMesh(np.zeros((0, 3), np.float32), np.zeros((0, 3), np.int32)))

    assert not render_view(empty, horizon_camera(0), size=8).any()


def test_a_turntable_has_its_frames_and_starts_in_front() -> None:
    mesh = in_grey(joined(sphere(12, radius=0.2), sphere(12, radius=0.1)))

    frames = list(turntable(mesh, frames=5, size=16))

    assert [(frame.shape, frame.dtype) for frame in frames] == [((16, 16, 3), np.dtype(np.uint8))] * 5
    assert tuple(frames[0][0, 0]) == BACKGROUND
    assert thumbnail(mesh, size=16).shape == (16, 16, 4)


def test_compositing_blends_by_alpha() -> None:
    image = np.array([[[10, 20, 30, 0], [10, 20, 30, 255], [0, 0, 0, 51]]], np.uint8)

    out = over_background(image)

    assert out[0, 0].tolist() == list(BACKGROUND) and out[0, 1].tolist() == [10, 20, 30]
    assert out[0, 2].tolist() == [round(0.8 * channel) for channel in BACKGROUND]


def test_an_open_surface_is_seen_from_behind_too() -> None:
    both_sides = replace(square(), is_double_sided=True)

    image = render_view(both_sides, from_direction(0, 1), size=SIZE)

    assert (image[..., 3] > 0).sum() == pytest.approx((0.6 / 1.1 * SIZE) ** 2, rel=0.1)


@pytest.mark.parametrize(("alpha", "cutoff", "seen"), [(40, 0.5, 0), (200, 0.5, 255), (128, None, 128), (70, None, 64)])
def test_alpha_is_a_hole_or_transparency(alpha: int, cutoff: float | None, seen: int) -> None:
    plain = square()
    texture = np.dstack([plain.texture, np.full((2, 2), alpha, np.uint8)])

    image = render_view(replace(plain, texture=texture, alpha_cutoff=cutoff), horizon_camera(0), size=SIZE)

    assert image[SIZE // 2, SIZE // 2, 3] == pytest.approx(seen, abs=1)
