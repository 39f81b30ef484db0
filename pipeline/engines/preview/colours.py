"""Colours of a surface by projecting images back onto it along parallel rays."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.engines.preview.subject_image import sample_bilinear

SHARPNESS = 8
"""Power of the cosine by which views are weighed: high enough that only neighbours near their border mix."""


@dataclass(frozen=True, eq=False)
class Projector:
    """One image and where its camera stands, far away at the height of the horizon.

    Attributes:
        azimuth_rad: 0 is on +Z; grows counter-clockwise seen from above, towards +X.
        colours: (H, W, 3) uint8 sRGB.
        px_per_metre: scale of the image.
        origin_px: where the image shows the origin, x and y.
        depths: (N, N) float32, how far towards the camera the surface reaches in each cell of the unit square, for
            views that hide parts of the surface from each other; None where nothing is hidden.
    """

    azimuth_rad: float
    colours: NDArray[np.uint8]
    px_per_metre: float
    origin_px: tuple[float, float]
    depths: NDArray[np.float32] | None = None

    @property
    def toward_camera(self) -> NDArray[np.float32]:
        """(3,) unit vector."""
        return np.array([np.sin(self.azimuth_rad), 0, np.cos(self.azimuth_rad)], np.float32)

    @property
    def rightward(self) -> NDArray[np.float32]:
        """(3,) unit vector, to the right in the image."""
        return np.array([np.cos(self.azimuth_rad), 0, -np.sin(self.azimuth_rad)], np.float32)

    def sample(self, points: NDArray[np.float32]) -> NDArray[np.float32]:
        """Colours (P, 3), 0 to 1, that the image shows where it shows the points."""
        x_px = self.origin_px[0] + self.px_per_metre * (along(points, self.rightward))
        y_px = self.origin_px[1] - self.px_per_metre * points[:, 1]
        return sample_bilinear(self.colours, x_px, y_px) / np.float32(255)

    def sees(self, points: NDArray[np.float32]) -> NDArray[np.bool_]:
        """(P,) whether the surface lies open to this camera at the points."""
        if self.depths is None:
            return np.ones(len(points), bool)
        cells = len(self.depths)
        column = depth_cell(along(points, self.rightward), cells)
        row = depth_cell(points[:, 1], cells)
        return along(points, self.toward_camera) > self.depths[row, column] - 3.0 / cells


@dataclass(frozen=True, eq=False)
class ProjectedViews:
    """A `ColourSource`: every point takes the colours of the images that face it best and are not blocked."""

    projectors: tuple[Projector, ...]

    def colours_at(self, points: NDArray[np.float32], normals: NDArray[np.float32]) -> NDArray[np.float32]:
        """Colours (P, 3) of surface points (P, 3) with unit normals (P, 3); see `ColourSource`."""
        facing = np.stack([np.maximum(along(normals, p.toward_camera), 0) for p in self.projectors], axis=1)
        seen = np.stack([p.sees(points) for p in self.projectors], axis=1)
        weights = (facing**SHARPNESS) * seen
        nobody = weights.sum(axis=1) < 1e-9
        # What no camera sees takes the colour of the one that comes nearest to facing it.
        turned = np.stack([along(normals[nobody], p.toward_camera) for p in self.projectors], axis=1)
        weights[nobody] = np.exp(4 * (turned + 1.0 * seen[nobody]))
        weights /= weights.sum(axis=1, keepdims=True)

        colours = np.zeros((len(points), 3), np.float32)
        for k, projector in enumerate(self.projectors):
            chosen = np.flatnonzero(weights[:, k] > 1e-3)
            colours[chosen] += weights[chosen, k, None] * projector.sample(points[chosen])
        return np.clip(colours, 0, 1)


def along(vectors: NDArray[np.floating], direction: NDArray[np.float32]) -> NDArray[np.floating]:
    """Lengths (P,) of vectors (P, 3) along a direction.

    Term by term, because a matrix product's last bits depend on how many vectors it is given at once.
    """
    return vectors[:, 0] * direction[0] + vectors[:, 1] * direction[1] + vectors[:, 2] * direction[2]


def depth_cell(coordinate: NDArray[np.floating], cells: int) -> NDArray[np.int32]:
    """Index of the cell of the unit square, centred at the origin, in which a coordinate lies."""
    return np.clip((coordinate + 0.5) * cells, 0, cells - 1).astype(np.int32)


def depth_map(vertices: NDArray[np.floating], projector: Projector, *, cells: int) -> NDArray[np.float32]:
    """How far towards a camera a densely sampled surface reaches: (cells, cells) float32, rows by height.

    Args:
        vertices: (V, 3), at least one for each cell that the surface covers.
    """
    depths = np.full((cells, cells), -np.inf, np.float32)
    column = depth_cell(along(vertices, projector.rightward), cells)
    row = depth_cell(vertices[:, 1], cells)
    np.maximum.at(depths, (row, column), (along(vertices, projector.toward_camera)).astype(np.float32))
    return depths
