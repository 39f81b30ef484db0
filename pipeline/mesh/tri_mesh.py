"""The triangle mesh that all parts of the pipeline exchange. Knows nothing of textures, files or engines."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.mesh.packing import pack


@dataclass(frozen=True, eq=False)
class TriMesh:
    """A triangle mesh: right-handed, +Y up, front towards +Z, faces counter-clockwise seen from outside.

    An asset lies in the unit cube centred at the origin. The arrays are not copied; treat them as read-only.

    Attributes:
        vertices: (V, 3) float32 or float64, metres.
        faces: (F, 3) int32, indices into `vertices`.
    """

    vertices: NDArray[np.floating]
    faces: NDArray[np.int32]

    def __getstate__(self) -> dict[str, Any]:
        """Pickle the arrays packed: of each face its first corner, and what the others are away from it."""
        first = self.faces[:, 0]
        others = self.faces[:, 1:] - first[:, None]
        return {"vertices": pack(self.vertices), "first_corners": pack(first), "other_corners": pack(others)}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        """Set the arrays; earlier versions pickled them as they are."""
        if "faces" in state:
            self.__dict__.update(state)
            return
        first, others = state["first_corners"].unpacked(), state["other_corners"].unpacked()
        faces = np.column_stack([first, first[:, None] + others])
        self.__dict__.update({"vertices": state["vertices"].unpacked(), "faces": faces})

    @property
    def corners(self) -> NDArray[np.floating]:
        """Corner positions of every face: (F, 3 corners, 3 coordinates)."""
        return self.vertices[self.faces]

    def face_cross_products(self) -> NDArray[np.float64]:
        """Outward normals whose length is twice the face's area: (F, 3) float64."""
        corners = self.corners.astype(np.float64)
        return np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])

    def vertex_normals(self) -> NDArray[np.float32]:
        """Area-weighted unit normals: (V, 3) float32; zero for a vertex without a face of positive area."""
        cross = self.face_cross_products()
        normals = np.empty((len(self.vertices), 3))
        for axis in range(3):
            weights = np.repeat(cross[:, axis], 3)
            normals[:, axis] = np.bincount(self.faces.ravel(), weights=weights, minlength=len(self.vertices))
        length = np.linalg.norm(normals, axis=1, keepdims=True)
        return (normals / np.maximum(length, 1e-30)).astype(np.float32)

    def volume(self) -> float:
        """Signed volume in cubic metres; positive for a closed mesh that is wound outward."""
        corners = self.corners.astype(np.float64)
        return float(np.einsum("fi,fi->", corners[:, 0], np.cross(corners[:, 1], corners[:, 2])) / 6.0)

    def bounds(self) -> NDArray[np.float64]:
        """Lowest and highest corner of the axis-aligned bounding box: (2, 3) float64; zeros for an empty mesh."""
        if len(self.vertices) == 0:
            return np.zeros((2, 3))
        return np.stack([self.vertices.min(axis=0), self.vertices.max(axis=0)]).astype(np.float64)
