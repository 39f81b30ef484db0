"""Pinhole cameras and orbits around the origin, in the frame of the released renderers: +Z up, image rows downwards.

Knows nothing of meshes or renderers.

Source: microsoft/TRELLIS@6b0d647, trellis/utils/render_utils.py; the camera conventions of OpenCV.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

ROUND = 2 * 3.1415  # "2 pi" in the released code; an exact one would move every frame
MEAN_PITCH_RAD = 0.25
PITCH_SWING_RAD = 0.5


@dataclass(frozen=True, eq=False)
class Camera:
    """A pinhole camera.

    Attributes:
        world_to_camera: (4, 4) float64; camera axes are x right, y down, z forward.
        intrinsics: (3, 3) float64: focal length and principal point in units of the image's side.
    """

    world_to_camera: NDArray[np.float64]
    intrinsics: NDArray[np.float64]

    @property
    def centre(self) -> NDArray[np.float64]:
        """(3,) position in the world."""
        return -self.world_to_camera[:3, :3].T @ self.world_to_camera[:3, 3]

    @property
    def tan_half_fov(self) -> tuple[float, float]:
        """Tangent of half the field of view, horizontally and vertically."""
        return 0.5 / float(self.intrinsics[0, 0]), 0.5 / float(self.intrinsics[1, 1])


def look_at(eye: NDArray[np.float64], target: NDArray[np.float64]) -> NDArray[np.float64]:
    """World-to-camera matrix (4, 4) of a camera at `eye` (3,) that looks at `target` (3,), with +Z upwards.

    The direction of view must not be parallel to Z.
    """
    forward = target - eye
    right = np.cross((0.0, 0.0, -1.0), forward)
    down = np.cross(forward, right)
    pose = np.eye(4)
    pose[:3, :3] = np.stack([axis / np.linalg.norm(axis) for axis in (right, down, forward)])
    pose[:3, 3] = -pose[:3, :3] @ eye
    return pose


def intrinsics_of(fov_rad: float) -> NDArray[np.float64]:
    """Normalised intrinsics (3, 3) of a square image."""
    focal = 0.5 / np.tan(fov_rad / 2)
    return np.array([[focal, 0.0, 0.5], [0.0, focal, 0.5], [0.0, 0.0, 1.0]])


def orbit_angles(frames: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Yaw and pitch (frames,) in radians of a full orbit, the pitch varying as a sine.

    The last frame nearly repeats the first, as in the released code.
    """
    yaw = np.linspace(0, ROUND, frames)
    return yaw, MEAN_PITCH_RAD + PITCH_SWING_RAD * np.sin(yaw)


def orbit_cameras(
    frames: int, *, radius: float = 2.0, fov_rad: float = math.radians(40), start_yaw_rad: float = 0.0
) -> list[Camera]:
    """Cameras of a turntable, looking at the origin.

    Args:
        frames: number of cameras.
        radius: distance from the origin.
        fov_rad: field of view, horizontal and vertical.
        start_yaw_rad: yaw of the first camera; 0 is on +Y.
    """
    yaw, pitch = orbit_angles(frames)
    yaw = yaw + start_yaw_rad
    eyes = radius * np.stack([np.sin(yaw) * np.cos(pitch), np.cos(yaw) * np.cos(pitch), np.sin(pitch)], axis=1)
    return [Camera(look_at(eye, np.zeros(3)), intrinsics_of(fov_rad)) for eye in eyes]


def level_orbit(
    frames: int, *, elevation_deg: float, distance: float, fovy_deg: float, height: int, width: int
) -> list[Camera]:
    """Cameras at equal angles around the origin and at one elevation, the first on +X, then towards +Y.

    Source: VAST-AI-Research/TripoSR@d26e331, tsr/utils.py, get_spherical_cameras.

    Args:
        frames: number of cameras.
        elevation_deg: angle above the XY plane.
        distance: from the origin.
        fovy_deg: vertical field of view.
        height, width: of the images in pixels; only their ratio is used.
    """
    azimuth, elevation = np.arange(frames) * (2 * np.pi / frames), np.deg2rad(elevation_deg)
    flat, up = np.cos(elevation), np.full(frames, np.sin(elevation))
    eyes = distance * np.stack([np.cos(azimuth) * flat, np.sin(azimuth) * flat, up], axis=1)
    intrinsics = intrinsics_of(np.deg2rad(fovy_deg))
    intrinsics[0, 0] *= height / width
    return [Camera(look_at(eye, np.zeros(3)), intrinsics) for eye in eyes]


def pixel_rays(camera: Camera, *, height: int, width: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """World-space rays through the pixels' centres: origins and unit directions, (height, width, 3) each."""
    tan_x, tan_y = camera.tan_half_fov
    right = ((np.arange(width) + 0.5) / width * 2 - 1) * tan_x
    down = ((np.arange(height) + 0.5) / height * 2 - 1) * tan_y
    towards = np.stack(np.broadcast_arrays(right[None, :], down[:, None], 1.0), axis=-1)
    directions = towards @ camera.world_to_camera[:3, :3]
    directions /= np.linalg.norm(directions, axis=-1, keepdims=True)
    return np.broadcast_to(camera.centre, directions.shape), directions
