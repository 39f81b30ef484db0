"""The geometry of a GLB in one of four ways of storing it.

| compression | positions | normals, tangents | texture coordinates | coded by |
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
from scipy.spatial import KDTree

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


@dataclass(frozen=True, eq=False)
class _Vertices:
    """Attributes of vertices, as for `add_geometry`."""

    positions: NDArray[np.floating]
    normals: NDArray[np.float32]
    uvs: NDArray[np.float32] | None
    tangents: NDArray[np.float32] | None

    def __getitem__(self, chosen: NDArray[np.integer]) -> _Vertices:
        return _Vertices(
            self.positions[chosen],
            self.normals[chosen],
            None if self.uvs is None else self.uvs[chosen],
            None if self.tangents is None else self.tangents[chosen],
        )


def add_geometry(
    buffers: GlbBuffers,
    *,
    vertices: NDArray[np.floating],
    faces: NDArray[np.int32],
    normals: NDArray[np.float32],
    uvs: NDArray[np.float32] | None,
    tangents: NDArray[np.float32] | None,
    compression: Compression,
) -> GlbGeometry:
    """Add a mesh to the buffers of a GLB.

    Args:
        buffers: coded by meshopt if that is the compression.
        vertices: (V, 3) metres.
        faces: (F, 3), at least one.
        normals: (V, 3) unit vectors.
        uvs: (V, 2) in [0, 1]; None without a texture.
        tangents: (V, 4) unit vectors and the sign of the bitangent; None without a normal map.
    """
    attributes = _Vertices(vertices, normals, uvs, tangents)
    if compression == "none":
        return _add_floats(buffers, attributes, faces)
    # Caches of vertices and the codec of triangles make use of the order.
    faces, old = reorder(faces, len(vertices))
    return {"quantize": _add_quantized, "meshopt": _add_quantized, "draco": _add_draco}[compression](
        buffers, attributes[old], faces
    )


def _add_floats(buffers: GlbBuffers, vertices: _Vertices, faces: NDArray[np.int32]) -> GlbGeometry:
    attributes = {
        "POSITION": buffers.add_vertices(vertices.positions.astype(np.float32), with_bounds=True),
        "NORMAL": buffers.add_vertices(vertices.normals),
    }
    if vertices.tangents is not None:
        attributes["TANGENT"] = buffers.add_vertices(vertices.tangents.astype(np.float32))
    if vertices.uvs is not None:
        attributes["TEXCOORD_0"] = buffers.add_vertices(vertices.uvs.astype(np.float32))
    indices = buffers.add_faces(faces, vertices=len(vertices.positions))
    return GlbGeometry({"attributes": attributes, "indices": indices})


def _add_quantized(buffers: GlbBuffers, vertices: _Vertices, faces: NDArray[np.int32]) -> GlbGeometry:
    grid = quantize_positions(vertices.positions)
    attributes = {
        "POSITION": buffers.add_vertices(grid.places, with_bounds=True),
        "NORMAL": _add_directions(buffers, vertices.normals),
    }
    if vertices.tangents is not None:
        attributes["TANGENT"] = _add_directions(buffers, vertices.tangents)
    if vertices.uvs is not None:
        uvs = quantize_to_integers(vertices.uvs, np.uint16)
        attributes["TEXCOORD_0"] = buffers.add_vertices(uvs, is_normalized=True)
    return GlbGeometry(
        {"attributes": attributes, "indices": buffers.add_faces(faces, vertices=len(grid.places))},
        # One scale for all axes: it leaves the directions of normals as they are.
        {"translation": grid.origin.tolist(), "scale": [grid.step] * 3},
        (QUANTIZATION, MESHOPT) if buffers.is_coded else (QUANTIZATION,),
    )


def _add_directions(buffers: GlbBuffers, directions: NDArray[np.float32]) -> int:
    """Add normals, (V, 3), or tangents, (V, 4), of 8 bits; returns their accessor's index."""
    integers = quantize_to_integers(directions, np.int8)
    if not buffers.is_coded:
        return buffers.add_vertices(integers, is_normalized=True)
    # What the filter reads: a place on the octahedron, the place that means 1, and what stays as it is.
    coded = np.zeros((len(directions), 4), np.int8)
    coded[:, :2] = octahedral(directions[:, :3])
    coded[:, 2] = 127
    coded[:, 3 : directions.shape[1]] = integers[:, 3:]
    return buffers.add_vertices(integers, is_normalized=True, coded=coded)


def _add_draco(buffers: GlbBuffers, vertices: _Vertices, faces: NDArray[np.int32]) -> GlbGeometry:
    import DracoPy

    grid = quantize_positions(vertices.positions)
    code = DracoPy.encode(
        grid.positions,
        faces.astype(np.uint32),
        quantization_bits=POSITION_BITS,
        quantization_origin=grid.origin,  # the same grid, on which different vertices have different places
        quantization_range=grid.step * grid.steps,
        compression_level=DRACO_LEVEL,
        normals=vertices.normals.astype(np.float64),
        normal_quantization_bits=DRACO_NORMAL_BITS,
        tex_coord=None if vertices.uvs is None else vertices.uvs.astype(np.float64),
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
    extensions = (DRACO,)
    if vertices.uvs is not None:
        attributes["TEXCOORD_0"] = buffers.add_description(points, "VEC2")
    if vertices.uvs is not None and vertices.tangents is not None:
        # Draco has no attribute for tangents that readers know: they are stored beside it, in its order.
        places = KDTree(np.column_stack([grid.positions, vertices.uvs]))
        _, source = places.query(np.column_stack([points, decoded.tex_coord]))
        attributes["TANGENT"] = _add_directions(buffers, vertices.tangents[source])
        extensions = (DRACO, QUANTIZATION)
    indices = np.asarray(decoded.faces, np.uint32).ravel()
    return GlbGeometry(
        {
            "attributes": attributes,
            "indices": buffers.add_description(indices, "SCALAR"),
            "extensions": {DRACO: {"bufferView": buffers.add_file(code), "attributes": ids}},
        },
        extensions=extensions,
    )
