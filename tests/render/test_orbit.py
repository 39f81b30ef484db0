"""Cameras: poses that look at their target, and rays that agree with them."""

from __future__ import annotations

import math

import numpy as np
import pytest

from pipeline.render.orbit import Camera, intrinsics_of, level_orbit, look_at, orbit_angles, orbit_cameras, pixel_rays


def test_a_pose_is_a_rotation_with_its_target_ahead_and_up_upwards() -> None:
    pose = look_at(np.array([2.0, 1.0, 0.5]), np.array([0.1, 0.2, 0.3]))

    np.testing.assert_allclose(pose[:3, :3] @ pose[:3, :3].T, np.eye(3), atol=1e-12)  # float64
    assert np.linalg.det(pose[:3, :3]) == pytest.approx(1)
    x, y, z = (pose @ [0.1, 0.2, 0.3, 1])[:3]
    assert (x, y) == pytest.approx((0, 0)) and z > 0
    assert (pose[:3, :3] @ [0, 0, 1])[1] < 0  # y points down in the image
    assert Camera(pose, intrinsics_of(1.0)).centre == pytest.approx([2, 1, 0.5])


@pytest.mark.parametrize("frames", [1, 2, 7])
def test_orbit_cameras_keep_their_distance_and_look_at_the_origin(frames: int) -> None:
    cameras = orbit_cameras(frames, radius=3.0, start_yaw_rad=0.4)

    assert len(cameras) == frames == len(orbit_angles(frames)[0])
    for camera in cameras:
        assert np.linalg.norm(camera.centre) == pytest.approx(3)
        assert camera.world_to_camera @ [0, 0, 0, 1] == pytest.approx([0, 0, 3, 1])


def test_a_level_orbit_starts_on_x_and_turns_towards_y() -> None:
    cameras = level_orbit(4, elevation_deg=0, distance=2.0, fovy_deg=40, height=32, width=64)

    centres = np.stack([camera.centre for camera in cameras])
    np.testing.assert_allclose(centres, [[2, 0, 0], [0, 2, 0], [-2, 0, 0], [0, -2, 0]], atol=1e-12)  # float64
    tan_x, tan_y = cameras[0].tan_half_fov
    assert tan_y == pytest.approx(math.tan(math.radians(20))) and tan_x == pytest.approx(2 * tan_y)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (4, 6)])
def test_rays_project_back_to_the_centres_of_their_pixels(height: int, width: int) -> None:
    (camera,) = level_orbit(1, elevation_deg=20, distance=2.0, fovy_deg=50, height=height, width=width)

    origins, directions = pixel_rays(camera, height=height, width=width)

    assert origins.shape == directions.shape == (height, width, 3)
    np.testing.assert_allclose(np.linalg.norm(directions, axis=-1), 1)
    for row in range(height):
        for column in range(width):
            point = np.append(origins[row, column] + 1.7 * directions[row, column], 1)
            x, y, z = (camera.world_to_camera @ point)[:3]
            u, v, w = camera.intrinsics @ [x, y, z]
            assert (u / w * width, v / w * height) == pytest.approx((column + 0.5, row + 0.5))
