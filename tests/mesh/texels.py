"""Texels of an atlas by the definitions: which of them the faces own, and what a bilinear filter reads of them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.mesh.unwrap import UnwrappedMesh


def times_owned(mesh: UnwrappedMesh, texture_size: int) -> NDArray[np.int64]:
    """How many faces hold the centre of each texel strictly inside: (S, S). Slow and obvious: face by face."""
    owned = np.zeros((texture_size, texture_size), np.int64)
    for corners in mesh.uvs[mesh.faces].astype(np.float64) * texture_size:
        left, top = np.maximum(np.floor(corners.min(axis=0)).astype(int), 0)
        right, bottom = np.minimum(np.ceil(corners.max(axis=0)).astype(int), texture_size)
        x, y = np.meshgrid(np.arange(left, right) + 0.5, np.arange(top, bottom) + 0.5)
        sides = []
        for k in range(3):
            (ax, ay), (bx, by) = corners[k], corners[(k + 1) % 3]
            sides.append((bx - ax) * (y - ay) - (by - ay) * (x - ax))
        margin = 1e-7  # texels squared: a centre on a shared edge, up to rounding, is inside neither
        inside = np.all([side > margin for side in sides], axis=0) | np.all([side < -margin for side in sides], axis=0)
        owned[top:bottom, left:right] += inside
    return owned


@dataclass(frozen=True, eq=False)
class Samples:
    """Points spread evenly over an unwrapped surface.

    Attributes:
        points: (N, 3).
        normals: (N, 3) interpolated unit normals.
        places: (N, 2) in texels, the centre of the first at 0.
        at_edge: (N,) whether a texel that the filter reads there is not owned by any face.
    """

    points: NDArray[np.float32]
    normals: NDArray[np.float32]
    places: NDArray[np.float64]
    at_edge: NDArray[np.bool_]

    def read(self, image: NDArray[np.uint8]) -> NDArray[np.float64]:
        """The image at the points, filtered: (S, S, C) -> (N, C) in [0, 1]."""
        low = np.clip(np.floor(self.places).astype(int), 0, len(image) - 2)
        x, y = (self.places - low).T[:, :, None]
        column, row = low.T
        pixels = image.astype(np.float64) / 255
        upper = pixels[row, column] * (1 - x) + pixels[row, column + 1] * x
        lower = pixels[row + 1, column] * (1 - x) + pixels[row + 1, column + 1] * x
        return upper * (1 - y) + lower * y


def spread(mesh: UnwrappedMesh, normals: NDArray[np.float32], *, texture_size: int, count: int = 100_000) -> Samples:
    """Points on an unwrapped mesh with (V, 3) normals."""
    rng = np.random.default_rng(1)
    corners = mesh.vertices[mesh.faces].astype(np.float64)
    area = np.linalg.norm(np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), axis=1)
    face = mesh.faces[rng.choice(len(area), count, p=area / area.sum())]
    weights = rng.dirichlet((1, 1, 1), count)
    points, directions, places = (
        np.einsum("nk,nki->ni", weights, values[face]) for values in (mesh.vertices, normals, mesh.uvs)
    )
    places = places * texture_size - 0.5
    covered = times_owned(mesh, texture_size) > 0
    column, row = np.clip(np.floor(places).astype(int), 0, texture_size - 2).T
    at_edge = ~(
        covered[row, column] & covered[row, column + 1] & covered[row + 1, column] & covered[row + 1, column + 1]
    )
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    return Samples(points.astype(np.float32), directions.astype(np.float32), places, at_edge)


def psnr(difference: NDArray[np.floating]) -> float:
    """Of values in [0, 1], in dB."""
    return float(10 * np.log10(1 / np.mean(difference**2)))
