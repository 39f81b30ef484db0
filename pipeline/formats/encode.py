"""One encoder per format: an asset becomes the files of that format. Equal assets give equal bytes."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from pipeline.formats.glb import glb_bytes
from pipeline.formats.obj import mtl_bytes, obj_bytes
from pipeline.formats.ply import ply_bytes
from pipeline.formats.png import png_bytes
from pipeline.formats.stl import stl_bytes
from pipeline.mesh.asset import Asset, thickened
from schemas.formats import FORMATS, OutputFormat


def encode(asset: Asset, output_format: OutputFormat, *, stem: str) -> dict[str, bytes]:
    """Write an asset in one format; an open surface gets a thickness where the format needs a body.

    Args:
        stem: what the names of the files begin with.

    Returns:
        The content of the model and of its companions by file name, the model first.
    """
    if asset.is_open and FORMATS[output_format].needs_body:
        asset = thickened(asset)
    return ENCODERS[output_format](asset, stem)


def _glb(asset: Asset, stem: str) -> dict[str, bytes]:
    split = asset.unwrapped
    content = glb_bytes(
        vertices=split.vertices,
        faces=split.faces,
        normals=asset.unwrapped_normals,
        uvs=split.uvs if asset.is_textured else None,
        texture_png=png_bytes(asset.texture) if asset.is_textured else None,
        double_sided=asset.is_open,
    )
    return {f"{stem}.glb": content}


def _obj(asset: Asset, stem: str) -> dict[str, bytes]:
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
    return files | ({texture_name: png_bytes(asset.texture)} if asset.is_textured else {})


def _stl(asset: Asset, stem: str) -> dict[str, bytes]:
    return {f"{stem}.stl": stl_bytes(asset.mesh)}


def _ply(asset: Asset, stem: str) -> dict[str, bytes]:
    mesh = asset.mesh
    content = ply_bytes(vertices=mesh.vertices, faces=mesh.faces, normals=asset.normals, colours=asset.vertex_colours)
    return {f"{stem}.ply": content}


ENCODERS: Mapping[str, Callable[[Asset, str], dict[str, bytes]]] = {"glb": _glb, "obj": _obj, "stl": _stl, "ply": _ply}
