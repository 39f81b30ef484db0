"""One encoder per format: an asset becomes the files of that format. Equal assets give equal bytes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from pipeline.formats.glb import glb_bytes
from pipeline.formats.obj import mtl_bytes, obj_bytes
from pipeline.formats.ply import ply_bytes
from pipeline.formats.stl import stl_bytes
from pipeline.formats.texture import EncodedImage, encode_image
from pipeline.mesh.asset import Asset, thickened
from pipeline.mesh.bake import NO_FACE, own_texels
from pipeline.mesh.placement import Placement
from pipeline.storage.base import companion_names
from schemas.formats import FORMATS, Compression, OutputFormat, TextureFormat
from schemas.request import UpAxis


class AssetEncoder:
    """Writes an asset in any of the formats; what several of them need is made once.

    Args:
        asset: +Y up, of any size.
        placement: where the caller wants it in the files.
        texture_format: what the images of textures are, where a format allows it.
        compression: of a GLB.
    """

    def __init__(
        self,
        asset: Asset,
        placement: Placement | None = None,
        *,
        texture_format: TextureFormat = "png",
        compression: Compression = "none",
    ) -> None:
        self.texture_format: TextureFormat = texture_format
        self.compression: Compression = compression
        self._asset = asset
        self._placement = placement or Placement()
        self._colours: dict[TextureFormat, EncodedImage] = {}
        self._placed: dict[str, Asset] = {}

    def asset_in(self, output_format: str) -> Asset:
        """The asset as a format holds it: placed, and with a thickness where it is open and the format needs a body."""
        if output_format not in self._placed:
            asset, placement = self._asset, self._placement
            if self.is_thickened_in(output_format):  # which changes its bounds
                asset, placement = self._body, replace(placement, bounds=None)
            self._placed[output_format] = placement.in_format(asset, FORMATS[output_format])
        return self._placed[output_format]

    def is_thickened_in(self, output_format: str) -> bool:
        """Whether the format needs a body where the surface is open."""
        return self._asset.is_open and FORMATS[output_format].needs_body

    def comment_in(self, output_format: str) -> str:
        """What a format without a place for units and axes says of them in a comment, with the asset's name."""
        spec = FORMATS[output_format]
        unit = {1.0: "metres", 1000.0: "millimetres"}[spec.units_per_metre]
        return f"image-to-3d {self._asset.name}, {self.up_axis_in(output_format)}-up, {unit}"

    def up_axis_in(self, output_format: str) -> UpAxis:
        """The axis that points up in a format's files."""
        return self._placement.up_axis or FORMATS[output_format].up_axis

    @cached_property
    def _body(self) -> Asset:
        return thickened(self._asset)

    @cached_property
    def _shown_texels(self) -> NDArray[np.bool_]:
        """Which texels the surface shows: (S, S)."""
        face, _ = own_texels(self._asset.unwrapped, texture_size=self._asset.texture.shape[0])
        return face != NO_FACE

    def colour_in(self, output_format: str) -> EncodedImage | None:
        """The base colour as a file for a format; None without a texture."""
        if not self._asset.is_textured:
            return None
        texture_format = FORMATS[output_format].texture_format(self.texture_format)
        if texture_format not in self._colours:
            shown = None if texture_format == "png" else self._shown_texels
            self._colours[texture_format] = encode_image(self._asset.texture, texture_format, shown=shown)
        return self._colours[texture_format]

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
        texture=encoder.colour_in("glb"),
        compression=encoder.compression,
        double_sided=asset.is_open,
        name=asset.name,
    )
    return {f"{stem}.glb": content}


def _obj(asset: Asset, encoder: AssetEncoder, stem: str) -> dict[str, bytes]:
    split = asset.unwrapped
    material_name, *texture_names = companion_names(
        "obj", file_prefix=stem, is_textured=asset.is_textured, texture_format=encoder.texture_format
    )
    texture_name = texture_names[0] if texture_names else None
    files = {
        f"{stem}.obj": obj_bytes(
            vertices=asset.mesh.vertices,
            normals=asset.normals,
            faces=asset.mesh.faces,
            uvs=split.uvs if asset.is_textured else None,
            uv_faces=split.faces if asset.is_textured else None,
            material_file=material_name,
            name=asset.name,
            comment=encoder.comment_in("obj"),
        ),
        material_name: mtl_bytes(texture_file=texture_name, name=asset.name),
    }
    colour = encoder.colour_in("obj")
    if texture_name is not None and colour is not None:
        files[texture_name] = colour.content
    return files


def _stl(asset: Asset, encoder: AssetEncoder, stem: str) -> dict[str, bytes]:
    return {f"{stem}.stl": stl_bytes(asset.mesh, comment=encoder.comment_in("stl"))}


def _ply(asset: Asset, encoder: AssetEncoder, stem: str) -> dict[str, bytes]:
    content = ply_bytes(
        vertices=asset.mesh.vertices,
        faces=asset.mesh.faces,
        normals=asset.normals,
        colours=asset.vertex_colours,
        comment=encoder.comment_in("ply"),
    )
    return {f"{stem}.ply": content}


def _usdz(asset: Asset, encoder: AssetEncoder, stem: str) -> dict[str, bytes]:
    from pipeline.formats.usdz import usdz_bytes  # its package is large, and an extra

    split = asset.unwrapped
    content = usdz_bytes(
        name=asset.name,
        vertices=asset.mesh.vertices,
        faces=asset.mesh.faces,
        normals=asset.normals,
        uvs=split.uvs if asset.is_textured else None,
        uv_faces=split.faces if asset.is_textured else None,
        texture=encoder.colour_in("usdz"),
        is_double_sided=asset.is_open,
        up_axis=encoder.up_axis_in("usdz"),
    )
    return {f"{stem}.usdz": content}


def _3mf(asset: Asset, encoder: AssetEncoder, stem: str) -> dict[str, bytes]:
    from pipeline.formats.threemf import threemf_bytes

    content = threemf_bytes(
        name=asset.name, vertices=asset.mesh.vertices, faces=asset.mesh.faces, colours=asset.vertex_colours
    )
    return {f"{stem}.3mf": content}


ENCODERS: Mapping[str, Callable[[Asset, AssetEncoder, str], dict[str, bytes]]] = {
    "glb": _glb,
    "obj": _obj,
    "stl": _stl,
    "ply": _ply,
    "usdz": _usdz,
    "3mf": _3mf,
}
