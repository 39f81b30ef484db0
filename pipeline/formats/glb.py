"""Binary glTF 2.0: one mesh, one PBR material, an embedded texture. Equal arrays give equal bytes.

glTF is y-up, in metres, with texture coordinates from the top left, like everything here, so nothing is converted.

Source: Khronos, glTF 2.0 Specification, ISO/IEC 12113:2022; section 4 (GLB), section 5 (properties).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.formats.glb_buffers import GlbBuffers, container
from pipeline.formats.glb_geometry import add_geometry
from pipeline.formats.texture import EncodedImage
from pipeline.version import __version__
from schemas.formats import Compression

LINEAR, LINEAR_MIPMAP_LINEAR, CLAMP_TO_EDGE = 9729, 9987, 33071
ROUGHNESS = 0.9
PLAIN_GREY = [0.72, 0.72, 0.72, 1.0]
WEBP = "EXT_texture_webp"


def glb_bytes(
    *,
    vertices: NDArray[np.float32],
    faces: NDArray[np.int32],
    normals: NDArray[np.float32],
    uvs: NDArray[np.float32] | None = None,
    texture: EncodedImage | None = None,
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
        texture: the base colour; None without a texture.
        compression: how the mesh is stored; all but none and a WebP texture need extensions, which fewer readers have.
        double_sided: whether the backs of faces are seen, as those of an open surface are.
        name: of the node, the mesh, the material and the image, so that assets in one project stay apart.

    Raises:
        ValueError: there is no face, or only one of `uvs` and `texture` is given.
    """
    if len(faces) == 0:
        raise ValueError("a GLB needs at least one face, got none")
    if (uvs is None) != (texture is None):
        raise ValueError("uvs and texture must both be given or both be None")
    buffers = GlbBuffers(is_coded=compression == "meshopt")
    geometry = add_geometry(
        buffers, vertices=vertices, faces=faces, normals=unit_normals(normals), uvs=uvs, compression=compression
    )
    extensions = list(geometry.extensions)
    document: dict[str, Any] = {
        "asset": {"version": "2.0", "generator": f"image-to-3d {__version__}"},
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": [{"name": name, "mesh": 0, **geometry.node}],
        "meshes": [{"name": name, "primitives": [{**geometry.primitive, "material": 0}]}],
        "materials": [{"name": name} | _material(is_textured=texture is not None, double_sided=double_sided)],
    }
    if texture is not None:
        is_webp = texture.texture_format == "webp"
        extensions += [WEBP] * is_webp
        document["textures"] = [{"sampler": 0} | ({"extensions": {WEBP: {"source": 0}}} if is_webp else {"source": 0})]
        document["samplers"] = [
            {
                "magFilter": LINEAR,
                "minFilter": LINEAR_MIPMAP_LINEAR,
                "wrapS": CLAMP_TO_EDGE,
                "wrapT": CLAMP_TO_EDGE,
            }
        ]
        image = {"bufferView": buffers.add_file(texture.content), "mimeType": texture.spec.media_type, "name": name}
        document["images"] = [image]
    if extensions:
        document |= {"extensionsUsed": extensions, "extensionsRequired": extensions}
    document |= {"accessors": buffers.accessors, "bufferViews": buffers.views, "buffers": buffers.buffers}
    return container(document, buffers.content)


def unit_normals(normals: NDArray[np.floating]) -> NDArray[np.float32]:
    """Normals of length 1, which the specification requires; zero vectors become +Y: (V, 3) -> (V, 3)."""
    length = np.linalg.norm(normals.astype(np.float64), axis=1, keepdims=True)
    return np.where(length > 1e-6, normals / np.maximum(length, 1e-6), (0.0, 1.0, 0.0)).astype(np.float32)


def _material(*, is_textured: bool, double_sided: bool) -> dict[str, Any]:
    colour = {"baseColorTexture": {"index": 0}} if is_textured else {"baseColorFactor": PLAIN_GREY}
    material = {"pbrMetallicRoughness": {**colour, "metallicFactor": 0.0, "roughnessFactor": ROUGHNESS}}
    return material | ({"doubleSided": True} if double_sided else {})
