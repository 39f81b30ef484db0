"""Where a view was taken from, and the axes of its image in the frame of the mesh."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from schemas.contract import ViewAngle

NAMES_OF_DEGREES = {0.0: "front", 90.0: "right", 180.0: "back", 270.0: "left"}


@dataclass(frozen=True)
class ViewDirection:
    """The direction from the subject to an orthographic camera.

    Attributes:
        azimuth_rad: 0 is on +Z; grows counter-clockwise seen from above, towards +X.
        elevation_rad: 0 looks horizontally; π/2 looks down from above, with the front at the lower side of the image.
    """

    azimuth_rad: float
    elevation_rad: float = 0.0

    @classmethod
    def of_angle(cls, angle: ViewAngle) -> ViewDirection:
        """Return the direction of an angle of a request."""
        if isinstance(angle, str):
            return cls(0.0, np.pi / 2 if angle == "top" else -np.pi / 2)
        return cls(float(np.deg2rad(angle)))

    @property
    def is_level(self) -> bool:
        """Whether the camera looks horizontally."""
        return self.elevation_rad == 0.0

    @property
    def rightward(self) -> NDArray[np.float64]:
        """(3,) unit vector to the right in the image."""
        return np.array([np.cos(self.azimuth_rad), 0.0, -np.sin(self.azimuth_rad)])

    @property
    def upward(self) -> NDArray[np.float64]:
        """(3,) unit vector upwards in the image."""
        sin, cos = np.sin(self.elevation_rad), np.cos(self.elevation_rad)
        return np.array([-np.sin(self.azimuth_rad) * sin, cos, -np.cos(self.azimuth_rad) * sin])

    @property
    def toward_camera(self) -> NDArray[np.float64]:
        """(3,) unit vector from the origin to the camera."""
        sin, cos = np.sin(self.elevation_rad), np.cos(self.elevation_rad)
        return np.array([np.sin(self.azimuth_rad) * cos, sin, np.cos(self.azimuth_rad) * cos])


def name_of_angle(angle: ViewAngle) -> str:
    """Return an angle in words: its name if it has one, else its degrees."""
    if isinstance(angle, str):
        return angle
    return NAMES_OF_DEGREES.get(angle, f"{angle:g} degrees")


def in_words(angles: tuple[ViewAngle, ...]) -> str:
    """Return angles in words, separated by commas."""
    return ", ".join(name_of_angle(angle) for angle in angles)
