"""A finished surface with its material, not yet encoded: what every format is written from."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.mesh.tri_mesh import TriMesh
from pipeline.mesh.unwrap import UnwrappedMesh


@dataclass(frozen=True, eq=False)
class Asset:
    """A finished surface with its material.

    Attributes:
        mesh: cleaned and simplified.
        normals: (V, 3) unit vectors of its vertices.
        unwrapped: the mesh split along the seams of its texture.
        texture: (S, S, 3) uint8 sRGB; one grey texel where the request leaves the texture out.
        is_textured: whether the files contain the texture.
        vertex_colours: (V, 3) uint8 sRGB of the mesh's vertices; None where no format needs them.
    """

    mesh: TriMesh
    normals: NDArray[np.float32]
    unwrapped: UnwrappedMesh
    texture: NDArray[np.uint8]
    is_textured: bool
    vertex_colours: NDArray[np.uint8] | None = None

    @property
    def unwrapped_normals(self) -> NDArray[np.float32]:
        """Unit normals of the vertices of `unwrapped`: (W, 3)."""
        return self.normals[self.unwrapped.source_vertices]
