"""The geometry of a GLB in one of four ways of storing it.

| compression | positions | normals | texture coordinates | coded by |
| --- | --- | --- | --- | --- |
| none | 3 x float32 | 3 x float32 | 2 x float32 | |
| quantize | 3 x 14 of 16 bits | 3 x 8 bits | 2 x 16 bits | |
| meshopt | 3 x 14 of 16 bits | 2 x 8 bits, for readers 3 x 8 | 2 x 16 bits | meshopt |
| draco | 3 x 14 bits | 2 x 10 bits | 2 x 15 bits | Draco, which readers get floats from |

Source: Khronos, KHR_mesh_quantization, EXT_meshopt_compression, KHR_draco_mesh_compression.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.formats.glb_buffers import MESHOPT, GlbBuffers
from pipeline.formats.quantize import POSITION_BITS, octahedral, quantize_positions, quantize_to_integers
from pipeline.mesh.reorder import reorder
from schemas.formats import Compression

QUANTIZATION, DRACO = "KHR_mesh_quantization", "KHR_draco_mesh_compression"
DRACO_LEVEL = 7
"""Of 10; above it files stay as large."""
DRACO_NORMAL_BITS = 10
DRACO_UV_BITS = 15
"""An eighth of a texel of the largest texture, 4096."""


@dataclass(frozen=True)
class GlbGeometry:
    """A mesh in glTF's JSON.

    Attributes:
        primitive: what its primitive has beside the material.
        node: the transformation of the node that shows it.
        extensions: those that readers must know.
    """

    primitive: dict[str, Any]
    node: dict[str, Any] = field(default_factory=dict)
    extensions: tuple[str, ...] = ()


def add_geometry(
    buffers: GlbBuffers,
    *,
    vertices: NDArray[np.floating],
    faces: NDArray[np.int32],
    normals: NDArray[np.float32],
    uvs: NDArray[np.float32] | None,
    compression: Compression,
) -> GlbGeometry:
    """Add a mesh to the buffers of a GLB.

    Args:
        buffers: coded by meshopt if that is the compression.
        vertices: (V, 3) metres.
        faces: (F, 3), at least one.
        normals: (V, 3) unit vectors.
        uvs: (V, 2) in [0, 1]; None without a texture.
    """
    if compression == "none":
        attributes = {
            "POSITION": buffers.add_vertices(vertices.astype(np.float32), with_bounds=True),
            "NORMAL": buffers.add_vertices(normals),
        }
        if uvs is not None:
            attributes["TEXCOORD_0"] = buffers.add_vertices(uvs.astype(np.float32))
        return GlbGeometry({"attributes": attributes, "indices": buffers.add_faces(faces, vertices=len(vertices))})
    # Caches of vertices and the codec of triangles use the order.
    faces, old = reorder(faces, len(vertices))
    add = _add_draco if compression == "draco" else _add_quantized
    return add(buffers, vertices[old], faces, normals[old], None if uvs is None else uvs[old])


def _add_quantized(
    buffers: GlbBuffers,
    vertices: NDArray[np.floating],
    faces: NDArray[np.int32],
    normals: NDArray[np.float32],
    uvs: NDArray[np.float32] | None,
) -> GlbGeometry:
    grid = quantize_positions(vertices)
    if buffers.is_coded:
        # The filter's input is the place on the octahedron, the place that means 1, and a byte for the caller.
        places = octahedral(normals)
        coded = np.column_stack([places, np.full(len(places), 127, np.int8), np.zeros(len(places), np.int8)])
    else:
        coded = None
    attributes = {
        "POSITION": buffers.add_vertices(grid.places, with_bounds=True),
        "NORMAL": buffers.add_vertices(quantize_to_integers(normals, np.int8), is_normalized=True, coded=coded),
    }
    if uvs is not None:
        attributes["TEXCOORD_0"] = buffers.add_vertices(quantize_to_integers(uvs, np.uint16), is_normalized=True)
    return GlbGeometry(
        {"attributes": attributes, "indices": buffers.add_faces(faces, vertices=len(vertices))},
        # One scale for all axes: it leaves the directions of normals as they are.
        {"translation": grid.origin.tolist(), "scale": [grid.step] * 3},
        (QUANTIZATION, MESHOPT) if buffers.is_coded else (QUANTIZATION,),
    )


def _add_draco(
    buffers: GlbBuffers,
    vertices: NDArray[np.floating],
    faces: NDArray[np.int32],
    normals: NDArray[np.float32],
    uvs: NDArray[np.float32] | None,
) -> GlbGeometry:
    import DracoPy

    grid = quantize_positions(vertices)
    code = DracoPy.encode(
        grid.positions,
        faces.astype(np.uint32),
        quantization_bits=POSITION_BITS,
        quantization_origin=grid.origin,  # the same grid, on which different vertices have different places
        quantization_range=grid.step * grid.steps,
        compression_level=DRACO_LEVEL,
        normals=normals.astype(np.float64),
        normal_quantization_bits=DRACO_NORMAL_BITS,
        tex_coord=None if uvs is None else uvs.astype(np.float64),
        tex_coord_quantization_bits=DRACO_UV_BITS,
    )
    # Draco joins equal vertices and orders them anew: what the accessors describe is known after decoding.
    decoded = DracoPy.decode(code)
    kinds = DracoPy.AttributeType
    names = {kinds.POSITION: "POSITION", kinds.NORMAL: "NORMAL", kinds.TEX_COORD: "TEXCOORD_0"}
    ids = {names[kinds(each["attribute_type"])]: each["unique_id"] for each in decoded.attributes}
    points = np.asarray(decoded.points, np.float32)
    bounds = {"min": points.min(axis=0).tolist(), "max": points.max(axis=0).tolist()}
    attributes = {
        "POSITION": buffers.add_description(points, "VEC3", **bounds),
        "NORMAL": buffers.add_description(points, "VEC3"),
    }
    if uvs is not None:
        attributes["TEXCOORD_0"] = buffers.add_description(points, "VEC2")
    indices = np.asarray(decoded.faces, np.uint32).ravel()
    return GlbGeometry(
        {
            "attributes": attributes,
            "indices": buffers.add_description(indices, "SCALAR"),
            "extensions": {DRACO: {"bufferView": buffers.add_file(code), "attributes": ids}},
        },
        extensions=(DRACO,),
    )
