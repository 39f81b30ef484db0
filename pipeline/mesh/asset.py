"""A finished surface with its material, not yet encoded: what every format is written from."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from pipeline.mesh.material import Material
from pipeline.mesh.tangents import vertex_tangents
from pipeline.mesh.thicken import thicken
from pipeline.mesh.tri_mesh import TriMesh
from pipeline.mesh.unwrap import UnwrappedMesh

THICKNESS_SHARE = 0.015
"""Thickness of a surface made a body, as a share of its longest side: 1.5 mm of a print of 100 mm, a printable wall."""


@dataclass(frozen=True, eq=False)
class Asset:
    """A finished surface with its material.

    Attributes:
        mesh: cleaned and simplified.
        normals: (V, 3) unit vectors of its vertices.
        unwrapped: the mesh split along the seams of its texture.
        material: its images; one grey texel where the request leaves the texture out.
        is_textured: whether the files contain the images.
        vertex_colours: (V, 3) uint8 sRGB of the mesh's vertices, or (V, 4) with alpha; None where no format needs them.
        name: of its parts in files, one word.
        is_open: whether the surface encloses nothing, so that both of its sides are seen.
        print_changes: sentences about what `print_ready` changed.
    """

    mesh: TriMesh
    normals: NDArray[np.float32]
    unwrapped: UnwrappedMesh
    material: Material
    is_textured: bool
    vertex_colours: NDArray[np.uint8] | None = None
    name: str = "asset"
    is_open: bool = False
    print_changes: tuple[str, ...] = ()

    @property
    def unwrapped_normals(self) -> NDArray[np.float32]:
        """Unit normals of the vertices of `unwrapped`: (W, 3)."""
        return self.normals[self.unwrapped.source_vertices]

    @property
    def shows_backs(self) -> bool:
        """Whether the backs of faces can be seen: of an open surface, and through one that is not opaque."""
        return self.is_open or self.material.alpha_mode != "OPAQUE"

    @property
    def unwrapped_tangents(self) -> NDArray[np.float32]:
        """Tangents of the vertices of `unwrapped`: (W, 4), see `vertex_tangents`."""
        split = self.unwrapped
        return vertex_tangents(split.vertices, split.faces, self.unwrapped_normals, split.uvs)


def thickened(asset: Asset, *, thickness_share: float = THICKNESS_SHARE) -> Asset:
    """An open asset as a body, for formats that need one; both layers show the same part of the texture.

    Args:
        thickness_share: the thickness as a share of the longest side.
    """
    low, high = asset.mesh.bounds()
    body = thicken(asset.mesh, thickness_m=thickness_share * float((high - low).max()))
    faces = body.mesh.faces
    # A vertex of the unwrapped body for each vertex of the body and place in the texture.
    split = asset.unwrapped
    in_texture = split.faces.ravel()[body.source_corners]
    keys = faces.astype(np.int64) * len(split.vertices) + in_texture
    unique, numbers = np.unique(keys.ravel(), return_inverse=True)
    source, place = (unique // len(split.vertices)).astype(np.int32), unique % len(split.vertices)
    unwrapped = UnwrappedMesh(
        body.mesh.vertices[source].astype(np.float32),
        numbers.reshape(-1, 3).astype(np.int32),
        split.uvs[place],
        source,
    )
    colours = asset.vertex_colours
    if colours is not None:
        of_surface = np.zeros(len(body.mesh.vertices), np.int64)
        of_surface[faces.ravel()] = asset.mesh.faces.ravel()[body.source_corners.ravel()]
        colours = colours[of_surface]
    return replace(
        asset,
        mesh=body.mesh,
        normals=body.mesh.vertex_normals(),
        unwrapped=unwrapped,
        vertex_colours=colours,
        is_open=False,
    )
