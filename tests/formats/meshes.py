"""A small mesh with normals, colours and texture coordinates for the tests of the formats."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pipeline.mesh.tri_mesh import TriMesh

VERTICES = np.float32([[0, 0, 0], [0.5, 0, 0], [0, 0.25, 0], [0, 0, 1 / 3]])
FACES = np.array([[0, 2, 1], [0, 1, 3], [0, 3, 2], [1, 2, 3]], np.int32)
MESH = TriMesh(VERTICES, FACES)
NORMALS = MESH.vertex_normals()
COLOURS = np.array([[255, 0, 1], [2, 254, 3], [4, 5, 253], [128, 127, 126]], np.uint8)
UVS = np.float32([[0, 0], [1, 0], [0, 1], [0.25, 0.75]])
TEXTURE = np.arange(4 * 4 * 3, dtype=np.uint8).reshape(4, 4, 3) * 5


def no_faces() -> NDArray[np.int32]:
    return np.zeros((0, 3), np.int32)
