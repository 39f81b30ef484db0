"""Colours of a surface by orthographic back-projection of images. Knows nothing of silhouettes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.engines.base import ColourSource
from pipeline.engines.preview.subject_image import sample_bilinear
from pipeline.engines.preview.view_direction import ViewDirection

SHARPNESS = 8.0
"""Exponent of the cosine that weights views: high enough that views mix only near the border between two of them."""

GRAZING = 0.07
"""Cosine below which a view says nothing about the colour of a surface."""


@dataclass(frozen=True, eq=False)
class Projector:
    """An image and its orthographic camera, which looks at the origin.

    Attributes:
        azimuth_rad: 0 is on +Z; grows counter-clockwise seen from above, towards +X.
        colours: (H, W, 3) uint8 sRGB.
        px_per_metre: scale of the image.
        origin_px: x and y of the origin in the image.
        depths: (N, N) float32, largest coordinate of the surface toward the camera in each cell of the unit square;
            None if no part of the surface occludes another.
        elevation_rad: 0 looks horizontally, π/2 down from above.
        weight: relative to the other images; small for an image that is invented.
    """

    azimuth_rad: float
    colours: NDArray[np.uint8]  # (H, W, 3)
    px_per_metre: float
    origin_px: tuple[float, float]
    depths: NDArray[np.float32] | None = None  # (N, N)
    elevation_rad: float = 0.0
    weight: float = 1.0

    @property
    def toward_camera(self) -> NDArray[np.float32]:
        """(3,) unit vector from the origin to the camera."""
        return ViewDirection(self.azimuth_rad, self.elevation_rad).toward_camera.astype(np.float32)

    @property
    def rightward(self) -> NDArray[np.float32]:
        """(3,) unit vector to the right in the image."""
        return ViewDirection(self.azimuth_rad, self.elevation_rad).rightward.astype(np.float32)

    @property
    def upward(self) -> NDArray[np.float32]:
        """(3,) unit vector upwards in the image."""
        return ViewDirection(self.azimuth_rad, self.elevation_rad).upward.astype(np.float32)

    def sample(self, points: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the colours of the image at the projections of points: (P, 3) -> (P, 3) in [0, 1]."""
        x_px = self.origin_px[0] + self.px_per_metre * (along(points, self.rightward))
        y_px = self.origin_px[1] - self.px_per_metre * along(points, self.upward)
        return sample_bilinear(self.colours, x_px, y_px) / np.float32(255)

    def is_visible(self, points: NDArray[np.float32]) -> NDArray[np.bool_]:
        """Return whether the surface is visible to the camera at the points: (P, 3) -> (P,) bool."""
        if self.depths is None:
            return np.ones(len(points), bool)
        cells = len(self.depths)
        column = depth_cell(along(points, self.rightward), cells)
        row = depth_cell(along(points, self.upward), cells)
        return along(points, self.toward_camera) > self.depths[row, column] - 3.0 / cells  # tolerance of 3 cells


@dataclass(frozen=True, eq=False)
class ProjectedViews(ColourSource):
    """The colour of a point comes from the unoccluded images that face it best."""

    projectors: tuple[Projector, ...]
    sharpness: float = SHARPNESS

    def colours_at(
        self,
        points: NDArray[np.float32],  # (P, 3)
        normals: NDArray[np.float32],  # (P, 3)
    ) -> NDArray[np.float32]:  # (P, 3)
        """See `ColourSource.colours_at`."""
        facing = np.stack([np.maximum(along(normals, p.toward_camera), 0) for p in self.projectors], axis=1)  # (P, V)
        visible = np.stack([p.is_visible(points) for p in self.projectors], axis=1)  # (P, V)
        seen = facing * visible
        best = seen.max(axis=1, keepdims=True)  # (P, 1)
        unseen = best[:, 0] < GRAZING
        weights = (seen / np.maximum(best, GRAZING)) ** self.sharpness
        weights *= np.array([p.weight for p in self.projectors], np.float32)
        # Points that no camera sees mix all views, with a preference for those that face them most.
        cosine = np.stack([along(normals[unseen], p.toward_camera) for p in self.projectors], axis=1)
        weights[unseen] = np.exp(4 * (cosine + 1.0 * visible[unseen]))
        weights /= weights.sum(axis=1, keepdims=True)

        colours = np.zeros((len(points), 3), np.float32)
        for k, projector in enumerate(self.projectors):
            chosen = np.flatnonzero(weights[:, k] > 1e-3)
            colours[chosen] += weights[chosen, k, None] * projector.sample(points[chosen])
        return np.clip(colours, 0, 1)


@dataclass(frozen=True, eq=False)
class TurnedColours(ColourSource):
    """Colours of a body that was turned so that its front is toward a direction."""

    source: ColourSource
    direction: ViewDirection

    def colours_at(
        self,
        points: NDArray[np.float32],  # (P, 3)
        normals: NDArray[np.float32],  # (P, 3)
    ) -> NDArray[np.float32]:  # (P, 3)
        """See `ColourSource.colours_at`."""
        axes = [
            axis.astype(np.float32)
            for axis in (self.direction.rightward, self.direction.upward, self.direction.toward_camera)
        ]
        turned = [np.stack([along(vectors, axis) for axis in axes], axis=1) for vectors in (points, normals)]
        return self.source.colours_at(turned[0].astype(np.float32), turned[1].astype(np.float32))


def along(vectors: NDArray[np.floating], direction: NDArray[np.float32]) -> NDArray[np.floating]:
    """Return the dot products of vectors with a direction: (P, 3), (3,) -> (P,).

    Computed term by term, because the last bits of a BLAS product depend on the number of rows.
    """
    return vectors[:, 0] * direction[0] + vectors[:, 1] * direction[1] + vectors[:, 2] * direction[2]


def depth_cell(coordinate: NDArray[np.floating], cells: int) -> NDArray[np.int32]:
    """Return the index of the cell of [-0.5, 0.5] that contains each coordinate: (P,) -> (P,) int32."""
    return np.clip((coordinate + 0.5) * cells, 0, cells - 1).astype(np.int32)


def depth_map(vertices: NDArray[np.floating], projector: Projector, *, cells: int) -> NDArray[np.float32]:
    """Return the largest coordinate of a surface toward a camera in each cell: (cells, cells) float32, rows by height.

    Args:
        vertices: (V, 3), at least one in each cell that the surface covers.
        projector: the camera.
        cells: cells along the side of the unit square.
    """
    depths = np.full((cells, cells), -np.inf, np.float32)
    column = depth_cell(along(vertices, projector.rightward), cells)
    row = depth_cell(along(vertices, projector.upward), cells)
    np.maximum.at(depths, (row, column), (along(vertices, projector.toward_camera)).astype(np.float32))
    return depths
