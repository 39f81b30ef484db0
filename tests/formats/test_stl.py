"""STL: read back by trimesh and by numpy."""

from __future__ import annotations

import io

import numpy as np
import trimesh

from pipeline.formats.stl import stl_bytes
from pipeline.mesh.tri_mesh import TriMesh
from tests.formats.meshes import MESH, no_faces

TRIANGLE = np.dtype([("normal", "<f4", 3), ("corners", "<f4", (3, 3)), ("attributes", "<u2")])


def test_trimesh_reads_back_the_triangles() -> None:
    part = trimesh.load(io.BytesIO(stl_bytes(MESH)), file_type="stl", process=False)

    assert np.array_equal(part.triangles, MESH.corners)
    assert part.is_volume or part.volume > 0


def test_the_file_is_an_84_byte_head_and_50_bytes_a_triangle_with_outward_normals() -> None:
    data = stl_bytes(MESH)

    assert len(data) == 84 + 50 * 4 and not data.startswith(b"solid")  # "solid" would announce the text format
    assert int.from_bytes(data[80:84], "little") == 4
    triangles = np.frombuffer(data[84:], TRIANGLE)
    np.testing.assert_allclose(np.linalg.norm(triangles["normal"], axis=1), 1, atol=1e-6)
    centre = MESH.vertices.mean(axis=0)
    assert (np.einsum("fi,fi->f", triangles["normal"], triangles["corners"][:, 0] - centre) > 0).all()


def test_a_degenerate_face_has_a_zero_normal() -> None:
    flat = TriMesh(np.float32([[0, 0, 0], [1, 0, 0], [2, 0, 0]]), np.array([[0, 1, 2]], np.int32))

    triangles = np.frombuffer(stl_bytes(flat)[84:], TRIANGLE)

    assert triangles["normal"].tolist() == [[0, 0, 0]]


def test_a_mesh_without_faces_gives_a_head_alone() -> None:
    data = stl_bytes(TriMesh(np.zeros((0, 3), np.float32), no_faces()))

    assert len(data) == 84 and data[80:] == bytes(4)
