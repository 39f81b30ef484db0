"""Binary STL: triangles without colours. Equal arrays give equal bytes."""

from __future__ import annotations

import struct

import numpy as np

from pipeline.mesh.tri_mesh import TriMesh

HEADER = b"image-to-3d, y-up, metres"
TRIANGLE = np.dtype([("normal", "<f4", 3), ("corners", "<f4", (3, 3)), ("attributes", "<u2")])


def stl_bytes(mesh: TriMesh) -> bytes:
    """Encode a mesh, (V, 3) vertices and (F, 3) faces.

    A degenerate face gets a zero normal, which tells readers to compute it.
    """
    triangles = np.zeros(len(mesh.faces), TRIANGLE)
    cross = mesh.face_cross_products()
    triangles["normal"] = cross / np.maximum(np.linalg.norm(cross, axis=1, keepdims=True), 1e-30)
    triangles["corners"] = mesh.corners
    return HEADER.ljust(80, b"\0") + struct.pack("<I", len(triangles)) + triangles.tobytes()
