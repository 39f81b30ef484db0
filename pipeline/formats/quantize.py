"""Positions, unit vectors and texture coordinates in fewer bits. Knows nothing of files."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

POSITION_BITS = 14
"""The grid has 16,384 places along the longest side: half a place is 0.003 % of it, 0.03 mm of a print of 1 m."""
OCTAHEDRON_BITS = 8
"""For each of the two coordinates of a unit vector: at most 0.9 degrees, which a rough surface does not show."""


@dataclass(frozen=True, eq=False)
class GridPositions:
    """Positions on a grid.

    Attributes:
        places: (V, 3) uint16, 0 to `steps`.
        steps: the largest place along the longest side.
        origin: (3,) float64, the position of place 0, 0, 0.
        step: the distance of two neighbouring places.
    """

    places: NDArray[np.uint16]
    steps: int
    origin: NDArray[np.float64]
    step: float

    @property
    def positions(self) -> NDArray[np.float64]:
        """The positions of the places: (V, 3)."""
        return self.origin + self.places * self.step


def quantize_positions(vertices: NDArray[np.floating], *, bits: int = POSITION_BITS) -> GridPositions:
    """Put vertices on a grid over their bounding cube; equal ones stay equal, and different ones different.

    Readers join vertices that lie in one place: two surfaces that touch there would become one that is not manifold.

    Args:
        vertices: (V, 3), at least one.
        bits: of each coordinate, up to 16.
    """
    low, high = vertices.min(axis=0).astype(np.float64), vertices.max(axis=0).astype(np.float64)
    steps = (1 << bits) - 1
    step = max(float((high - low).max()), 1e-12) / steps
    distinct, number = np.unique(np.asarray(vertices, np.float32), axis=0, return_inverse=True)
    exact = (distinct - low) / step
    places = np.clip(np.round(exact), 0, steps).astype(np.int64)
    _separate(places, exact, steps)
    return GridPositions(places[number.reshape(-1)].astype(np.uint16), steps, low, step)


def _separate(places: NDArray[np.int64], exact: NDArray[np.float64], steps: int) -> None:
    """Move each vertex whose place is taken to the nearest free one: (V, 3), changed in place."""
    keys = (places[:, 0] << 32) | (places[:, 1] << 16) | places[:, 2]
    _, first = np.unique(keys, return_index=True)
    is_first = np.zeros(len(keys), bool)
    is_first[first] = True
    taken = set(keys[first].tolist()) if len(first) < len(keys) else set()
    for vertex in np.flatnonzero(~is_first):
        reach = 1
        while True:  # ends: there are more places than vertices
            around = np.stack(np.meshgrid(*[np.arange(-reach, reach + 1)] * 3, indexing="ij"), axis=-1).reshape(-1, 3)
            near = np.clip(places[vertex] + around, 0, steps)
            near = near[np.argsort(((near - exact[vertex]) ** 2).sum(axis=1), kind="stable")]
            free = next((place for place in near.tolist() if _key(place) not in taken), None)
            if free is not None:
                places[vertex] = free
                taken.add(_key(free))
                break
            reach += 1


def _key(place: list[int]) -> int:
    return place[0] << 32 | place[1] << 16 | place[2]


def quantize_to_integers(values: NDArray[np.floating], kind: type[np.integer]) -> NDArray[np.integer]:
    """Values in [0, 1] or [-1, 1] as normalized integers of a kind, as glTF defines them; others are clipped."""
    limits = np.iinfo(kind)
    return np.round(np.clip(values, -1 if limits.min < 0 else 0, 1) * limits.max).astype(kind)


def octahedral(normals: NDArray[np.floating], *, bits: int = OCTAHEDRON_BITS) -> NDArray[np.int8]:
    """Unit vectors as places on an unfolded octahedron: (V, 3) -> (V, 2), each of the four nearest places tried.

    Source: Cigolle et al., A Survey of Efficient Representations for Independent Unit Vectors, JCGT 3(2), 2014.
    """
    most = (1 << bits - 1) - 1
    x, y, z = (normals / np.maximum(np.abs(normals).sum(axis=1, keepdims=True), 1e-12)).astype(np.float64).T
    folded_x = np.where(z >= 0, x, (1 - np.abs(y)) * np.where(x >= 0, 1, -1))
    folded_y = np.where(z >= 0, y, (1 - np.abs(x)) * np.where(y >= 0, 1, -1))
    floor = np.floor(np.stack([folded_x, folded_y], axis=1) * most)
    corners = np.clip(floor[:, None] + [[0, 0], [0, 1], [1, 0], [1, 1]], -most, most)  # (V, 4, 2)
    cosines = np.einsum("vkc,vc->vk", from_octahedral(corners / most), normals)
    return np.take_along_axis(corners, cosines.argmax(axis=1)[:, None, None], axis=1)[:, 0].astype(np.int8)


def from_octahedral(places: NDArray[np.floating]) -> NDArray[np.float64]:
    """Unit vectors of places on the octahedron, in [-1, 1]: (..., 2) -> (..., 3)."""
    x, y = places[..., 0], places[..., 1]
    z = 1 - np.abs(x) - np.abs(y)
    fold = np.minimum(z, 0)
    vectors = np.stack([x - np.copysign(fold, x), y - np.copysign(fold, y), z], axis=-1)
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)
