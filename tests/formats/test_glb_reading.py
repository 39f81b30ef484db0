"""Compressed GLBs as plain ones: every way of storing the geometry gives the same mesh, within its bits."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import trimesh
from numpy.typing import NDArray
from scipy.spatial import KDTree

from pipeline.errors import InvalidRequest
from pipeline.formats.glb import glb_bytes
from pipeline.formats.glb_buffers import container
from pipeline.formats.glb_reading import plain_glb, split
from pipeline.formats.material_images import MaterialImages
from pipeline.formats.reading import read_glb
from pipeline.inspection import inspect
from pipeline.mesh.material import Material
from schemas.formats import Compression
from tests.formats.meshes import TEXTURE
from tests.mesh.shapes import organic

SHAPE = organic()
UVS = (np.random.default_rng(0).random((len(SHAPE.vertices), 2))).astype(np.float32)
COMPRESSED = [each for each in get_args(Compression) if each != "none"]


def encoded(compression: Compression) -> bytes:
    return glb_bytes(
        vertices=SHAPE.vertices,
        faces=SHAPE.faces,
        normals=SHAPE.vertex_normals(),
        uvs=UVS,
        material=MaterialImages(Material(TEXTURE)),
        compression=compression,
    )


def parts(content: bytes) -> trimesh.Trimesh:
    (part,) = read_glb(content).dump()
    return part


def normals_of(content: bytes) -> NDArray[np.float64]:
    """Those that the file states; the nodes do not turn them."""
    (part,) = read_glb(content).geometry.values()
    return part.vertex_normals / np.linalg.norm(part.vertex_normals, axis=1, keepdims=True)


@pytest.mark.parametrize("compression", COMPRESSED)
def test_vertices_normals_and_coordinates_are_those_of_the_mesh(compression: Compression) -> None:
    exact, read = parts(encoded("none")), parts(encoded(compression))

    assert len(read.faces) == len(exact.faces) == len(SHAPE.faces)
    # Vertices are found again by position and coordinates together: some lie closer than the grid is fine.
    places = KDTree(np.column_stack([exact.vertices, exact.visual.uv]))
    _, which = places.query(np.column_stack([read.vertices, read.visual.uv]))
    assert np.array_equal(np.unique(which), np.arange(len(SHAPE.vertices)))
    step = np.ptp(SHAPE.vertices, axis=0).max() / 16383
    moved = np.linalg.norm(read.vertices - exact.vertices[which], axis=1)
    assert moved.max() <= 2 * step and np.mean(moved <= np.sqrt(3) / 2 * step) > 0.99
    assert np.abs(read.visual.uv - exact.visual.uv[which]).max() <= 1 / 32767
    cosines = (normals_of(encoded(compression)) * normals_of(encoded("none"))[which]).sum(axis=1)
    assert np.degrees(np.arccos(np.clip(cosines, -1, 1))).max() < 1.0
    faces = np.sort(which[read.faces], axis=1)
    assert np.array_equal(np.unique(faces, axis=0), np.unique(np.sort(exact.faces, axis=1), axis=0))
    assert read.volume == pytest.approx(exact.volume, rel=1e-4)


@pytest.mark.parametrize("compression", COMPRESSED)
def test_a_compressed_file_is_smaller_and_equal_for_equal_arrays(compression: Compression) -> None:
    assert encoded(compression) == encoded(compression)
    assert len(encoded(compression)) < 0.65 * len(encoded("none"))


def test_a_file_without_compression_is_returned_as_it_is() -> None:
    assert plain_glb(encoded("none")) == encoded("none")


@pytest.mark.parametrize("extension", ["KHR_meshopt_compression", "KHR_texture_basisu"])
def test_an_extension_that_is_not_read_is_named(extension: str) -> None:
    document, binary = split(encoded("none"))
    document |= {"extensionsRequired": [extension]}

    with pytest.raises(ValueError, match=f"needs {extension}, which is not read"):
        plain_glb(container(document, binary))


def test_what_is_no_glb_is_refused() -> None:
    with pytest.raises(ValueError, match="no JSON chunk"):
        plain_glb(b"glTF" + bytes(8))


def test_normalized_integers_of_an_interleaved_view_are_read() -> None:
    """As other writers store them: positions as shorts, each beside a pair of texture coordinates."""
    rows = np.zeros(3, [("at", "<u2", 3), ("pad", "<u2"), ("uv", "<u2", 2)])
    rows["at"], rows["uv"] = [[0, 0, 0], [65535, 0, 0], [0, 65535, 0]], [[0, 0], [65535, 32768], [13107, 0]]
    indices = np.uint16([0, 1, 2]).tobytes()
    accessor = {"bufferView": 0, "componentType": 5123, "normalized": True, "count": 3}
    document = {
        "asset": {"version": "2.0"},
        "scenes": [{"nodes": [0]}],
        "nodes": [{"mesh": 0, "scale": [2, 2, 2]}],
        "meshes": [{"primitives": [{"attributes": {"POSITION": 0, "TEXCOORD_0": 1}, "indices": 2}]}],
        "accessors": [
            accessor | {"type": "VEC3", "min": [0, 0, 0], "max": [65535, 65535, 0]},
            accessor | {"type": "VEC2", "byteOffset": 8},
            {"bufferView": 1, "componentType": 5123, "count": 3, "type": "SCALAR"},
        ],
        "bufferViews": [
            {"buffer": 0, "byteLength": 36, "byteStride": 12},
            {"buffer": 0, "byteOffset": 36, "byteLength": 6},
        ],
        "buffers": [{"byteLength": 42}],
        "extensionsRequired": ["KHR_mesh_quantization"],
    }

    content = container(document, rows.tobytes() + indices)

    assert parts(content).vertices.tolist() == [[0, 0, 0], [2, 0, 0], [0, 2, 0]]
    plain, binary = split(plain_glb(content))
    assert [each["componentType"] for each in plain["accessors"]] == [5126, 5126, 5123]
    start = plain["bufferViews"][plain["accessors"][1]["bufferView"]]["byteOffset"]
    uvs = np.frombuffer(binary, np.float32, 6, start).reshape(3, 2)
    assert uvs == pytest.approx(np.array([[0, 0], [1, 32768 / 65535], [0.2, 0]]))


def test_inspect_says_what_it_cannot_read(tmp_path: Path) -> None:
    document, binary = split(encoded("none"))
    path = tmp_path / "other.glb"
    path.write_bytes(container(document | {"extensionsRequired": ["KHR_meshopt_compression"]}, binary))

    with pytest.raises(InvalidRequest, match=r"other\.glb: needs KHR_meshopt_compression, which is not read$"):
        inspect(path)
