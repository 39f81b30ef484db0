"""One encoder per format: an asset becomes the files of that format. Equal assets give equal bytes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from pipeline.formats.glb import glb_bytes
from pipeline.formats.material_images import MaterialImages
from pipeline.formats.obj import MTL_KEYS, mtl_bytes, obj_bytes
from pipeline.formats.ply import ply_bytes
from pipeline.formats.stl import stl_bytes
from pipeline.formats.texture import EncodedImage
from pipeline.mesh.asset import Asset, as_body
from pipeline.mesh.bake import NO_FACE, own_texels
from pipeline.mesh.placement import Placement
from pipeline.storage.base import companion_names, map_name
from schemas.formats import FORMATS, Compression, TextureFormat
from schemas.request import UpAxis


class AssetEncoder:
    """Writes an asset in any of the formats; what several of them need is made once.

    Args:
        asset: +Y up, of any size.
        placement: where the caller wants it in the files.
        texture_format: of the images, where a format allows it.
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
        self._images: dict[TextureFormat, MaterialImages] = {}
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
        return as_body(self._asset)

    @cached_property
    def _shown_texels(self) -> NDArray[np.bool_]:
        """Which texels the surface shows: (S, S)."""
        face, _ = own_texels(self._asset.unwrapped, texture_size=self._asset.material.base_colour.shape[0])
        return face != NO_FACE

    def images_in(self, output_format: str) -> MaterialImages:
        """The images of the material; formats with the same kind of images share them."""
        image_format = FORMATS[output_format].texture_format(self.texture_format)
        if image_format not in self._images:
            shown = None if image_format == "png" or not self._asset.is_textured else self._shown_texels
            images = MaterialImages(self._asset.material, self._asset.is_textured, image_format, shown)
            self._images[image_format] = images
        return self._images[image_format]

    def textures_in(self, output_format: str) -> dict[str, EncodedImage]:
        """The images that a format's files have, by channel."""
        kind = FORMATS[output_format].texture
        if kind == "embedded":
            return self.images_in(output_format).packed
        return self.images_in(output_format).separate if kind == "companion" else {}

    def files(self, output_format: str, *, stem: str) -> dict[str, bytes]:
        """The content of the model and of its companions by file name, the model first.

        Args:
            stem: what the names of the files begin with.
        """
        return ENCODERS[output_format](self.asset_in(output_format), self, stem)


def _glb(asset: Asset, encoder: AssetEncoder, stem: str) -> dict[str, bytes]:
    split = asset.unwrapped
    content = glb_bytes(
        vertices=split.vertices,
        faces=split.faces,
        normals=asset.unwrapped_normals,
        uvs=split.uvs if asset.is_textured else None,
        material=encoder.images_in("glb") if asset.is_textured else None,
        compression=encoder.compression,
        tangents=asset.unwrapped_tangents if asset.material.normal is not None else None,
        double_sided=asset.shows_backs,
        name=asset.name,
    )
    return {f"{stem}.glb": content}


def _obj(asset: Asset, encoder: AssetEncoder, stem: str) -> dict[str, bytes]:
    split = asset.unwrapped
    (material_name,) = companion_names("obj", file_prefix=stem, is_textured=False)
    textures = encoder.textures_in("obj")
    names = {
        channel: map_name(stem, "texture" if channel == "base_colour" else channel, image.texture_format)
        for channel, image in textures.items()
    }
    return {
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
        material_name: mtl_bytes(
            material=asset.material, maps={MTL_KEYS[channel]: name for channel, name in names.items()}, name=asset.name
        ),
        **{names[channel]: image.content for channel, image in textures.items()},
    }


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
        material=encoder.images_in("usdz") if asset.is_textured else None,
        is_double_sided=asset.shows_backs,
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
