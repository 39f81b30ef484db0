"""A finished surface with its material, not yet encoded: what every format is written from."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from pipeline.mesh.material import Material
from pipeline.mesh.tangents import vertex_tangents
from pipeline.mesh.tri_mesh import TriMesh
from pipeline.mesh.unwrap import UnwrappedMesh


@dataclass(frozen=True, eq=False)
class Body:
    """What stands for an open surface in formats whose readers need a body.

    Attributes:
        mesh: closed manifolds, wound outward.
        thickness_share: thickness of what had a border, as a share of the surface's longest side.
        vertex_colours: as those of `Asset`.
    """

    mesh: TriMesh
    thickness_share: float
    vertex_colours: NDArray[np.uint8] | None


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
        body: of an open surface, where a format needs one.
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
    body: Body | None = None
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


def unmapped(mesh: TriMesh) -> UnwrappedMesh:
    """A mesh as one without seams, whose places in the texture are all zero."""
    count = len(mesh.vertices)
    uvs, numbers = np.zeros((count, 2), np.float32), np.arange(count, dtype=np.int32)
    return UnwrappedMesh(mesh.vertices.astype(np.float32), mesh.faces, uvs, numbers)


def as_body(asset: Asset) -> Asset:
    """An open asset as its body, without places in the texture.

    Raises:
        ValueError: it has no body.
    """
    if asset.body is None:
        raise ValueError("the asset was made without a body")
    mesh, colours = asset.body.mesh, asset.body.vertex_colours
    normals = mesh.vertex_normals()
    return replace(
        asset, mesh=mesh, normals=normals, unwrapped=unmapped(mesh), vertex_colours=colours, is_open=False, body=None
    )
