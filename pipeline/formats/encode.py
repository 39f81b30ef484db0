"""One encoder per format: an asset becomes the files of that format. Equal assets give equal bytes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from pipeline.formats.glb import glb_bytes
from pipeline.formats.obj import mtl_bytes, obj_bytes
from pipeline.formats.ply import ply_bytes
from pipeline.formats.png import png_bytes
from pipeline.formats.stl import stl_bytes
from pipeline.mesh.asset import Asset, thickened
from schemas.formats import FORMATS, OutputFormat


class AssetEncoder:
    """Writes an asset in any of the formats; what several of them need is made once."""

    def __init__(self, asset: Asset) -> None:
        self._asset = asset

    def asset_in(self, output_format: str) -> Asset:
        """The asset as a format holds it: where the format needs a body, an open surface has a thickness."""
        return self._body if self._asset.is_open and FORMATS[output_format].needs_body else self._asset

    @cached_property
    def _body(self) -> Asset:
        return thickened(self._asset)

    @cached_property
    def colour_png(self) -> bytes | None:
        """The base colour as a PNG file; None without a texture."""
        return png_bytes(self._asset.texture) if self._asset.is_textured else None

    def files(self, output_formats: Sequence[OutputFormat], *, stem: str) -> dict[str, bytes]:
        """The content of each model and of its companions by file name, each model before its companions.

        Args:
            stem: what the names of the files begin with.
        """
        contents: dict[str, bytes] = {}
        for output_format in output_formats:
            contents |= ENCODERS[output_format](self.asset_in(output_format), self, stem)
        return contents


def _glb(asset: Asset, encoder: AssetEncoder, stem: str) -> dict[str, bytes]:
    split = asset.unwrapped
    content = glb_bytes(
        vertices=split.vertices,
        faces=split.faces,
        normals=asset.unwrapped_normals,
        uvs=split.uvs if asset.is_textured else None,
        texture_png=encoder.colour_png,
        double_sided=asset.is_open,
    )
    return {f"{stem}.glb": content}


def _obj(asset: Asset, encoder: AssetEncoder, stem: str) -> dict[str, bytes]:
    spec, split = FORMATS["obj"], asset.unwrapped
    texture_name, material_name = f"{stem}{spec.texture_file}", f"{stem}{spec.material_file}"
    files = {
        f"{stem}.obj": obj_bytes(
            vertices=asset.mesh.vertices,
            normals=asset.normals,
            faces=asset.mesh.faces,
            uvs=split.uvs if asset.is_textured else None,
            uv_faces=split.faces if asset.is_textured else None,
            material_file=material_name,
        ),
        material_name: mtl_bytes(texture_file=texture_name if asset.is_textured else None),
    }
    return files | ({} if encoder.colour_png is None else {texture_name: encoder.colour_png})


def _stl(asset: Asset, encoder: AssetEncoder, stem: str) -> dict[str, bytes]:
    return {f"{stem}.stl": stl_bytes(asset.mesh)}


def _ply(asset: Asset, encoder: AssetEncoder, stem: str) -> dict[str, bytes]:
    mesh = asset.mesh
    content = ply_bytes(vertices=mesh.vertices, faces=mesh.faces, normals=asset.normals, colours=asset.vertex_colours)
    return {f"{stem}.ply": content}


def _usdz(asset: Asset, encoder: AssetEncoder, stem: str) -> dict[str, bytes]:
    from pipeline.formats.usdz import usdz_bytes  # its package is large, and an extra

    split = asset.unwrapped
    content = usdz_bytes(
        name=stem,
        vertices=asset.mesh.vertices,
        faces=asset.mesh.faces,
        normals=asset.normals,
        uvs=split.uvs if asset.is_textured else None,
        uv_faces=split.faces if asset.is_textured else None,
        texture_png=encoder.colour_png,
        is_double_sided=asset.is_open,
    )
    return {f"{stem}.usdz": content}


def _3mf(asset: Asset, encoder: AssetEncoder, stem: str) -> dict[str, bytes]:
    from pipeline.formats.threemf import threemf_bytes

    vertices = upright(asset.mesh.vertices) * FORMATS["3mf"].units_per_metre
    content = threemf_bytes(name=stem, vertices=vertices, faces=asset.mesh.faces, colours=asset.vertex_colours)
    return {f"{stem}.3mf": content}


def upright(vectors: NDArray[np.floating]) -> NDArray[np.floating]:
    """Vectors of a y-up frame in a z-up one, where the front looks along -Y: (V, 3)."""
    return np.stack([vectors[:, 0], -vectors[:, 2], vectors[:, 1]], axis=1)


ENCODERS: Mapping[str, Callable[[Asset, AssetEncoder, str], dict[str, bytes]]] = {
    "glb": _glb,
    "obj": _obj,
    "stl": _stl,
    "ply": _ply,
    "usdz": _usdz,
    "3mf": _3mf,
}
