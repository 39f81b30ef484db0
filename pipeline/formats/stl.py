"""Binary STL: triangles without colours. Equal arrays give equal bytes."""

from __future__ import annotations

import struct

import numpy as np

from pipeline.mesh.tri_mesh import TriMesh

HEADER_BYTES = 80
TRIANGLE = np.dtype([("normal", "<f4", 3), ("corners", "<f4", (3, 3)), ("attributes", "<u2")])


def stl_bytes(mesh: TriMesh, *, comment: str = "image-to-3d") -> bytes:
    """Encode a mesh.

    A degenerate face gets a zero normal, which tells readers to compute it.

    Args:
        mesh: (V, 3) vertices and (F, 3) faces.
        comment: the header, of at most 80 bytes; not "solid…", which begins the text variant of the format.
    """
    triangles = np.zeros(len(mesh.faces), TRIANGLE)
    cross = mesh.face_cross_products()
    triangles["normal"] = cross / np.maximum(np.linalg.norm(cross, axis=1, keepdims=True), 1e-30)
    triangles["corners"] = mesh.corners
    header = comment.encode()[:HEADER_BYTES].ljust(HEADER_BYTES, b"\0")
    return header + struct.pack("<I", len(triangles)) + triangles.tobytes()
