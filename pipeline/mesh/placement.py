"""Size, origin and up axis of a delivered asset. Knows nothing of textures and formats."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from pipeline.mesh.asset import Asset
from pipeline.mesh.clean import separate_coincident_vertices
from pipeline.mesh.tri_mesh import TriMesh
from schemas.formats import FormatSpec
from schemas.request import Origin, UpAxis


@dataclass(frozen=True, eq=False)
class Placement:
    """Where the caller wants an asset.

    Attributes:
        size_m: longest side of the bounding box in metres; None leaves it to the format.
        origin: as for `place`.
        up_axis: None leaves it to the format.
        bounds: lowest and highest corner, (2, 3), that size and origin are measured on, so that levels of detail lie on
            each other; None for those of the asset itself.
    """

    size_m: float | None = None
    origin: Origin = "bottom"
    up_axis: UpAxis | None = None
    bounds: NDArray[np.float64] | None = None

    def in_format(self, asset: Asset, spec: FormatSpec) -> Asset:
        """The asset in the units and the frame of a format's files."""
        size_m = spec.default_size_m if self.size_m is None else self.size_m
        return place(
            asset,
            size=size_m * spec.units_per_metre,
            origin=self.origin,
            up_axis=self.up_axis or spec.up_axis,
            bounds=self.bounds,
        )


def place(
    asset: Asset, *, size: float, origin: Origin, up_axis: UpAxis, bounds: NDArray[np.float64] | None = None
) -> Asset:
    """Scale, move and turn an asset; texture and topology stay.

    Args:
        asset: +Y up, its front towards +Z.
        size: longest side of the bounding box, in the units of the result.
        origin: `bottom`: the base lies at height 0, centred over the origin; `center`: the middle of the bounding box
            is the origin.
        up_axis: `y`: as it is; `z`: turned by 90 degrees around the x axis, so that the front is towards -Y, as
            importers that turn y-up files place them.
        bounds: as for `Placement`.
    """
    low, high = asset.mesh.bounds() if bounds is None else bounds
    scale = size / max(float((high - low).max()), 1e-12)
    middle = (low + high) / 2
    if origin == "bottom":
        middle[1] = low[1]
    vertices = _turned((asset.mesh.vertices.astype(np.float64) - middle) * scale, up_axis)
    mesh = TriMesh(vertices.astype(np.float32), asset.mesh.faces)
    if scale < 1:  # what readers merge is a fixed distance, which has become a larger part of the asset
        mesh = separate_coincident_vertices(mesh)
    return replace(
        asset,
        mesh=mesh,
        normals=_turned(asset.normals, up_axis),
        unwrapped=replace(asset.unwrapped, vertices=mesh.vertices[asset.unwrapped.source_vertices]),
    )


def _turned(vectors: NDArray[np.floating], up_axis: UpAxis) -> NDArray[np.floating]:
    """Vectors (N, 3) with +Y up, with the named axis up."""
    if up_axis == "y":
        return vectors
    x, y, z = vectors.T
    return np.stack([x, -z, y], axis=1)
