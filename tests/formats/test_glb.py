"""GLB: read back by trimesh and as the specification lays it out."""

from __future__ import annotations

import io
import struct

import numpy as np
import pytest
import trimesh
from PIL import Image

from pipeline.formats.glb import glb_bytes, unit_normals
from pipeline.formats.material_images import MaterialImages
from pipeline.mesh.material import Material
from tests.formats.meshes import FACES, MESH, NORMALS, TEXTURE, UVS, VERTICES, no_faces
from tests.gltf import document_of


def textured() -> bytes:
    return glb_bytes(
        vertices=VERTICES, faces=FACES, normals=NORMALS, uvs=UVS, material=MaterialImages(Material(TEXTURE))
    )


def test_trimesh_reads_back_the_mesh_and_its_texture() -> None:
    scene = trimesh.load(io.BytesIO(textured()), file_type="glb", process=False)
    (part,) = scene.geometry.values()

    assert np.array_equal(part.vertices, VERTICES) and np.array_equal(part.faces, FACES)
    np.testing.assert_allclose(part.vertex_normals, NORMALS, atol=1e-6)  # float32
    np.testing.assert_allclose(part.visual.uv, np.stack([UVS[:, 0], 1 - UVS[:, 1]], 1), atol=1e-6)  # trimesh flips v
    image = part.visual.material.baseColorTexture
    assert np.array_equal(np.asarray(image.convert("RGB")), TEXTURE)


def test_without_a_texture_the_material_is_plain_grey() -> None:
    document = document_of(glb_bytes(vertices=VERTICES, faces=FACES, normals=NORMALS))

    assert "textures" not in document and "images" not in document
    assert document["materials"][0]["pbrMetallicRoughness"]["baseColorFactor"] == [0.72, 0.72, 0.72, 1.0]
    assert set(document["meshes"][0]["primitives"][0]["attributes"]) == {"POSITION", "NORMAL"}


def test_lengths_and_alignment_are_those_of_the_specification() -> None:
    data = textured()
    magic, version, total = struct.unpack_from("<4sII", data)
    json_length = struct.unpack_from("<I", data, 12)[0]
    binary_length, kind = struct.unpack_from("<I4s", data, 20 + json_length)

    assert (magic, version, total) == (b"glTF", 2, len(data))
    assert json_length % 4 == 0 and binary_length % 4 == 0 and kind == b"BIN\0"
    assert 28 + json_length + binary_length == len(data)
    document = document_of(data)
    assert all(view["byteOffset"] % 4 == 0 for view in document["bufferViews"])
    position = document["accessors"][document["meshes"][0]["primitives"][0]["attributes"]["POSITION"]]
    assert (position["min"], position["max"]) == (VERTICES.min(axis=0).tolist(), VERTICES.max(axis=0).tolist())
    last = document["bufferViews"][-1]
    start = 28 + json_length + last["byteOffset"]
    assert Image.open(io.BytesIO(data[start : start + last["byteLength"]])).size == (4, 4)


@pytest.mark.parametrize(("count", "component"), [(3, 5123), (65534, 5123), (65535, 5125)])
def test_indices_have_16_bits_as_long_as_the_restart_value_is_not_needed(count: int, component: int) -> None:
    vertices = np.zeros((count, 3), np.float32)
    faces = np.array([[0, 1, count - 1]], np.int32)

    data = glb_bytes(vertices=vertices, faces=faces, normals=vertices)

    document = document_of(data)
    accessor = document["accessors"][document["meshes"][0]["primitives"][0]["indices"]]
    assert (accessor["componentType"], accessor["count"]) == (component, 3)


def test_normals_become_unit_vectors_and_zero_becomes_upward() -> None:
    normals = unit_normals(np.array([[3.0, 0, 4], [0, 0, 0], [0, -1e-9, 0]]))

    np.testing.assert_allclose(normals, [[0.6, 0, 0.8], [0, 1, 0], [0, 1, 0]], atol=1e-7)


def test_equal_arrays_give_equal_bytes() -> None:
    assert textured() == textured()


def test_a_mesh_without_faces_and_half_a_texture_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one face, got none"):
        glb_bytes(vertices=VERTICES, faces=no_faces(), normals=NORMALS)
    with pytest.raises(ValueError, match="both be given or both be None"):
        glb_bytes(vertices=MESH.vertices.astype(np.float32), faces=FACES, normals=NORMALS, uvs=UVS)
