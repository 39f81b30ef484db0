"""Binary glTF 2.0: one mesh, one PBR material, embedded textures. Equal arrays give equal bytes.

glTF is y-up, in metres, with texture coordinates from the top left, like everything here, so nothing is converted.

Source: Khronos, glTF 2.0 Specification, ISO/IEC 12113:2022; section 4 (GLB), section 5 (properties).
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.formats.material_images import MaterialImages
from pipeline.mesh.material import ALPHA_CUTOFF, METALLIC, ROUGHNESS, Material
from pipeline.version import __version__

MAGIC, CONTAINER_VERSION, JSON_CHUNK, BINARY_CHUNK = 0x46546C67, 2, 0x4E4F534A, 0x004E4942
FLOAT, UNSIGNED_SHORT, UNSIGNED_INT = 5126, 5123, 5125
ARRAY_BUFFER, ELEMENT_ARRAY_BUFFER = 34962, 34963
LINEAR, LINEAR_MIPMAP_LINEAR, CLAMP_TO_EDGE = 9729, 9987, 33071
PLAIN_GREY = [0.72, 0.72, 0.72, 1.0]


def glb_bytes(
    *,
    vertices: NDArray[np.float32],
    faces: NDArray[np.int32],
    normals: NDArray[np.float32],
    uvs: NDArray[np.float32] | None = None,
    material: MaterialImages | None = None,
    tangents: NDArray[np.float32] | None = None,
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
    binary = _Binary()
    # 65535 is the primitive restart value of 16-bit indices, which glTF forbids as an index.
    index_type = np.uint16 if len(vertices) < 65535 else np.uint32
    attributes = {
        "POSITION": binary.add_accessor(vertices.astype(np.float32), "VEC3", ARRAY_BUFFER, with_bounds=True),
        "NORMAL": binary.add_accessor(unit_normals(normals), "VEC3", ARRAY_BUFFER),
    }
    if has_normal_map and tangents is not None:
        attributes["TANGENT"] = binary.add_accessor(tangents.astype(np.float32), "VEC4", ARRAY_BUFFER)
    if uvs is not None:
        attributes["TEXCOORD_0"] = binary.add_accessor(uvs.astype(np.float32), "VEC2", ARRAY_BUFFER)
    indices = binary.add_accessor(faces.astype(index_type).ravel(), "SCALAR", ELEMENT_ARRAY_BUFFER)
    document: dict[str, Any] = {
        "asset": {"version": "2.0", "generator": f"image-to-3d {__version__}"},
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": [{"name": name, "mesh": 0}],
        "meshes": [{"name": name, "primitives": [{"attributes": attributes, "indices": indices, "material": 0}]}],
    }
    if material is None:
        plain = {"baseColorFactor": PLAIN_GREY, "metallicFactor": METALLIC, "roughnessFactor": ROUGHNESS}
        document["materials"] = [{"name": name, "pbrMetallicRoughness": plain}]
    else:
        images = material.packed
        document["materials"] = [
            {"name": name} | _material(material.material, {each: k for k, each in enumerate(images)})
        ]
        document["textures"] = [{"sampler": 0, "source": source} for source in range(len(images))]
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
                "bufferView": binary.add_view(content),
                "mimeType": "image/png",
                "name": name if channel == "base_colour" else f"{name}_{channel}",
            }
            for channel, content in images.items()
        ]
    if double_sided:
        document["materials"][0]["doubleSided"] = True
    document |= {
        "accessors": binary.accessors,
        "bufferViews": binary.views,
        "buffers": [{"byteLength": len(binary.content)}],
    }
    return _container(json.dumps(document, separators=(",", ":")).encode(), bytes(binary.content))


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


class _Binary:
    """The binary chunk under construction, with its buffer views and accessors."""

    def __init__(self) -> None:
        self.content = bytearray()
        self.views: list[dict[str, Any]] = []
        self.accessors: list[dict[str, Any]] = []

    def add_view(self, content: bytes, target: int | None = None) -> int:
        """Append bytes at the next multiple of four, as accessors must be aligned; return the view's index."""
        self.content += b"\0" * (-len(self.content) % 4)
        view = {"buffer": 0, "byteOffset": len(self.content), "byteLength": len(content)}
        self.views.append(view if target is None else view | {"target": target})
        self.content += content
        return len(self.views) - 1

    def add_accessor(self, values: NDArray[Any], kind: str, target: int, *, with_bounds: bool = False) -> int:
        """Append an array, (N,) or (N, K); return the accessor's index."""
        component = {"f": FLOAT, "H": UNSIGNED_SHORT, "I": UNSIGNED_INT}[values.dtype.char]
        accessor: dict[str, Any] = {
            "bufferView": self.add_view(np.ascontiguousarray(values).tobytes(), target),
            "componentType": component,
            "count": len(values),
            "type": kind,
        }
        if with_bounds:
            accessor |= {"min": values.min(axis=0).tolist(), "max": values.max(axis=0).tolist()}
        self.accessors.append(accessor)
        return len(self.accessors) - 1


def _container(document: bytes, binary: bytes) -> bytes:
    """Header and both chunks; the JSON is padded with spaces, the binary with zeros, to multiples of four bytes."""
    document += b" " * (-len(document) % 4)
    binary += b"\0" * (-len(binary) % 4)
    length = 12 + 8 + len(document) + 8 + len(binary)
    return b"".join(
        [
            struct.pack("<III", MAGIC, CONTAINER_VERSION, length),
            struct.pack("<II", len(document), JSON_CHUNK),
            document,
            struct.pack("<II", len(binary), BINARY_CHUNK),
            binary,
        ]
    )
