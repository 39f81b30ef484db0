"""Binary glTF 2.0: one mesh, one PBR material, embedded textures. Equal arrays give equal bytes.

glTF is y-up, in metres, with texture coordinates from the top left, like everything here, so nothing is converted.

Source: Khronos, glTF 2.0 Specification, ISO/IEC 12113:2022; section 4 (GLB), section 5 (properties).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.formats.glb_buffers import GlbBuffers, container
from pipeline.formats.glb_geometry import add_geometry
from pipeline.formats.material_images import MaterialImages
from pipeline.formats.texture import EncodedImage
from pipeline.mesh.material import ALPHA_CUTOFF, METALLIC, ROUGHNESS, Material
from pipeline.version import __version__
from schemas.formats import Compression

LINEAR, LINEAR_MIPMAP_LINEAR, CLAMP_TO_EDGE = 9729, 9987, 33071
PLAIN_GREY = [0.72, 0.72, 0.72, 1.0]
WEBP = "EXT_texture_webp"


def glb_bytes(
    *,
    vertices: NDArray[np.float32],
    faces: NDArray[np.int32],
    normals: NDArray[np.float32],
    uvs: NDArray[np.float32] | None = None,
    material: MaterialImages | None = None,
    tangents: NDArray[np.float32] | None = None,
    compression: Compression = "none",
    double_sided: bool = False,
    name: str = "asset",
) -> bytes:
    """Encode a mesh.

    Args:
        vertices: (V, 3) metres.
        faces: (F, 3), at least one.
        normals: (V, 3) unit vectors; a zero vector is replaced by +Y.
        uvs: (V, 2) in [0, 1], v downwards; None without a texture.
        material: None without a texture.
        tangents: (V, 4), see `pipeline.mesh.tangents`; written if the material has a normal map.
        compression: how the mesh is stored; all but none and WebP images need extensions, which fewer readers have.
        double_sided: whether the backs of faces are seen, as those of an open surface are.
        name: of the node, the mesh, the material and the image, so that assets in one project stay apart.

    Raises:
        ValueError: there is no face, or only one of `uvs` and `material` is given, or a normal map without tangents.
    """
    if len(faces) == 0:
        raise ValueError("a GLB needs at least one face, got none")
    if (uvs is None) != (material is None):
        raise ValueError("uvs and material must both be given or both be None")
    has_normal_map = material is not None and material.material.normal is not None
    if has_normal_map and tangents is None:
        raise ValueError("a normal map needs tangents")
    buffers = GlbBuffers(is_coded=compression == "meshopt")
    geometry = add_geometry(
        buffers,
        vertices=vertices,
        faces=faces,
        normals=unit_normals(normals),
        uvs=uvs,
        tangents=tangents if has_normal_map else None,
        compression=compression,
    )
    extensions = list(geometry.extensions)
    document: dict[str, Any] = {
        "asset": {"version": "2.0", "generator": f"image-to-3d {__version__}"},
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": [{"name": name, "mesh": 0, **geometry.node}],
        "meshes": [{"name": name, "primitives": [{**geometry.primitive, "material": 0}]}],
    }
    if material is None:
        plain = {"baseColorFactor": PLAIN_GREY, "metallicFactor": METALLIC, "roughnessFactor": ROUGHNESS}
        document["materials"] = [{"name": name, "pbrMetallicRoughness": plain}]
    else:
        images = material.packed
        document["materials"] = [
            {"name": name} | _material(material.material, {each: k for k, each in enumerate(images)})
        ]
        document["textures"] = [_texture(source, image) for source, image in enumerate(images.values())]
        extensions += [WEBP] * any(image.texture_format == "webp" for image in images.values())
        document["samplers"] = [
            {
                "magFilter": LINEAR,
                "minFilter": LINEAR_MIPMAP_LINEAR,
                "wrapS": CLAMP_TO_EDGE,
                "wrapT": CLAMP_TO_EDGE,
            }
        ]
        document["images"] = [
            {
                "bufferView": buffers.add_file(image.content),
                "mimeType": image.spec.media_type,
                "name": name if channel == "base_colour" else f"{name}_{channel}",
            }
            for channel, image in images.items()
        ]
    if double_sided:
        document["materials"][0]["doubleSided"] = True
    if extensions:
        document |= {"extensionsUsed": extensions, "extensionsRequired": extensions}
    document |= {"accessors": buffers.accessors, "bufferViews": buffers.views, "buffers": buffers.buffers}
    return container(document, buffers.content)


def unit_normals(normals: NDArray[np.floating]) -> NDArray[np.float32]:
    """Normals of length 1, which the specification requires; zero vectors become +Y: (V, 3) -> (V, 3)."""
    length = np.linalg.norm(normals.astype(np.float64), axis=1, keepdims=True)
    return np.where(length > 1e-6, normals / np.maximum(length, 1e-6), (0.0, 1.0, 0.0)).astype(np.float32)


def _material(material: Material, texture_of: Mapping[str, int]) -> dict[str, Any]:
    """The material's properties.

    Args:
        texture_of: index of the texture of each channel that has one.
    """
    surface: dict[str, Any] = {"baseColorTexture": {"index": texture_of["base_colour"]}}
    if "metallic_roughness" in texture_of:
        surface["metallicRoughnessTexture"] = {"index": texture_of["metallic_roughness"]}
    else:
        surface |= {"metallicFactor": material.metallic, "roughnessFactor": material.roughness}
    properties: dict[str, Any] = {"pbrMetallicRoughness": surface}
    if "normal" in texture_of:
        properties["normalTexture"] = {"index": texture_of["normal"]}
    if material.alpha_mode != "OPAQUE":
        properties["alphaMode"] = material.alpha_mode
    if material.alpha_mode == "MASK":
        properties["alphaCutoff"] = ALPHA_CUTOFF
    return properties


def _texture(source: int, image: EncodedImage) -> dict[str, Any]:
    """The texture of an image; one in WebP is named by an extension."""
    if image.texture_format == "webp":
        return {"sampler": 0, "extensions": {WEBP: {"source": source}}}
    return {"sampler": 0, "source": source}
