"""OBJ: read back by trimesh and line by line."""

from __future__ import annotations

import io

import numpy as np
import trimesh

from pipeline.formats.obj import mtl_bytes, obj_bytes
from tests.formats.meshes import FACES, NORMALS, UVS, VERTICES, no_faces


def rows(data: bytes, key: str) -> list[list[str]]:
    return [line.split()[1:] for line in data.decode().splitlines() if line.split()[:1] == [key]]


def test_trimesh_reads_back_the_mesh() -> None:
    data = obj_bytes(vertices=VERTICES, normals=NORMALS, faces=FACES)

    part = trimesh.load(io.BytesIO(data), file_type="obj", process=False)

    np.testing.assert_allclose(part.vertices, VERTICES, atol=1e-7)  # seven digits
    assert np.array_equal(part.faces, FACES)


def test_every_index_refers_to_what_was_given_with_v_upwards() -> None:
    uv_faces = FACES[:, ::-1].copy()

    data = obj_bytes(vertices=VERTICES, normals=NORMALS, faces=FACES, uvs=UVS, uv_faces=uv_faces, material_file="a.mtl")

    np.testing.assert_allclose(np.array(rows(data, "v"), float), VERTICES, atol=1e-7)
    np.testing.assert_allclose(np.array(rows(data, "vn"), float), NORMALS, atol=1e-5)  # five digits
    np.testing.assert_allclose(np.array(rows(data, "vt"), float), np.stack([UVS[:, 0], 1 - UVS[:, 1]], 1), atol=1e-7)
    indices = np.array([[corner.split("/") for corner in row] for row in rows(data, "f")], int) - 1  # (F, 3, 3)
    assert np.array_equal(indices[..., 0], FACES) and np.array_equal(indices[..., 2], FACES)
    assert np.array_equal(indices[..., 1], uv_faces)
    assert rows(data, "mtllib") == [["a.mtl"]] and rows(data, "usemtl") == rows(mtl_bytes(), "newmtl")


def test_without_a_texture_faces_have_no_texture_index() -> None:
    data = obj_bytes(vertices=VERTICES, normals=NORMALS, faces=FACES)

    assert rows(data, "vt") == [] and rows(data, "mtllib") == []
    assert rows(data, "f")[0] == ["1//1", "3//3", "2//2"]


def test_a_mesh_without_faces_gives_a_file_without_faces() -> None:
    data = obj_bytes(vertices=VERTICES[:0], normals=NORMALS[:0], faces=no_faces())

    assert rows(data, "v") == [] and rows(data, "f") == []


def test_a_material_names_its_texture_or_is_grey() -> None:
    assert rows(mtl_bytes(maps={"map_Kd": "a.png"}), "map_Kd") == [["a.png"]]
    assert rows(mtl_bytes(maps={"map_Kd": "a.png"}), "Kd") == [["1", "1", "1"]]
    assert rows(mtl_bytes(), "map_Kd") == []
    assert rows(mtl_bytes(), "Kd") == [["0.72", "0.72", "0.72"]]
