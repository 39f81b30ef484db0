"""Binary PLY with a normal and optionally a colour per vertex. Equal arrays give equal bytes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

VERTEX = [("x", "<f4"), ("y", "<f4"), ("z", "<f4"), ("nx", "<f4"), ("ny", "<f4"), ("nz", "<f4")]
COLOUR = [("red", "u1"), ("green", "u1"), ("blue", "u1"), ("alpha", "u1")]
FACE = np.dtype([("count", "u1"), ("corners", "<i4", 3)])


def ply_bytes(
    *,
    vertices: NDArray[np.floating],
    faces: NDArray[np.int32],
    normals: NDArray[np.floating],
    colours: NDArray[np.uint8] | None = None,
    comment: str = "image-to-3d",
) -> bytes:
    """Encode a mesh.

    Args:
        vertices: (V, 3).
        faces: (F, 3).
        normals: (V, 3) unit vectors.
        colours: (V, 3) sRGB, or (V, 4) with linear alpha; None omits them.
        comment: of the header, one line.
    """
    fields = VERTEX + (COLOUR[: colours.shape[1]] if colours is not None else [])
    table = np.zeros(len(vertices), fields)
    columns = [*vertices.T, *normals.T, *(colours.T if colours is not None else ())]
    for (name, _), column in zip(fields, columns, strict=True):
        table[name] = column
    triangles = np.zeros(len(faces), FACE)
    triangles["count"] = 3
    triangles["corners"] = faces
    header = ["ply", "format binary_little_endian 1.0", f"comment {comment}"]
    header.append(f"element vertex {len(vertices)}")
    header += [f"property {'uchar' if kind == 'u1' else 'float'} {name}" for name, kind in fields]
    header += [f"element face {len(faces)}", "property list uchar int vertex_indices", "end_header", ""]
    return "\n".join(header).encode() + table.tobytes() + triangles.tobytes()
