"""The mesh of a request, as a stranger sends it: formats, axes, and what is no mesh."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import trimesh

from pipeline.errors import InvalidRequest
from pipeline.mesh.voxelize import voxelize
from pipeline.stages import given_mesh
from pipeline.stages.given_mesh import read_voxels, voxels_of_file
from tests.mesh.shapes import cuboid

MESH = cuboid((1.0, 0.5, 0.25))


def file_of(file_type: str) -> bytes:
    mesh = trimesh.Trimesh(MESH.vertices, MESH.faces, process=False)
    content: Any = mesh.export(file_type=file_type)
    return content.encode() if isinstance(content, str) else content


@pytest.mark.parametrize(
    ("file_type", "longest_to_shortest"), [("glb", "xzy"), ("obj", "xzy"), ("stl", "xyz"), ("ply", "xyz")]
)
def test_every_format_is_read_with_its_own_axis_up(file_type: str, longest_to_shortest: str) -> None:
    cells = read_voxels(file_of(file_type))

    extents = dict(zip("xyz", (cells.max(axis=0) - cells.min(axis=0)).tolist(), strict=True))
    # The cuboid is 1 along x, 0.5 along y and 0.25 along z; a GLB's y is the z of the voxels.
    assert "".join(sorted(extents, key=lambda axis: -extents[axis])) == longest_to_shortest


def test_a_file_is_read_in_another_process_with_the_same_result() -> None:
    cells = voxels_of_file(file_of("ply"))

    assert np.array_equal(cells, voxelize(MESH.vertices, MESH.faces.astype(np.int64)))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is no obj file that can be read|has no faces|the mesh has no"),
        (b"\x89PNG\r\n\x1a\n", "is no obj file|the mesh has no"),
        (b"glTF\x02\0\0\0", "is no glb file that can be read"),
        (b"ply\nformat ascii 1.0\n", "is no ply file that can be read"),
        (b"PK\x03\x04", "must be a mesh as glb, obj, stl, ply, got"),
        (b"v 0 0 0\nv 0 0 0\nv 0 0 0\nf 1 2 3\n", "the mesh has no extent"),
    ],
)
def test_what_is_no_mesh_is_refused_in_one_sentence(content: bytes, message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        read_voxels(content)


def test_a_refusal_of_the_other_process_is_a_sentence_about_the_field() -> None:
    with pytest.raises(InvalidRequest, match=r"^init_mesh is no glb file that can be read$"):
        voxels_of_file(b"glTF\x02\0\0\0")


def test_a_mesh_of_too_many_faces_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(given_mesh, "MAX_FACES", 11)

    with pytest.raises(InvalidRequest, match="must have at most 11 faces, got 12"):
        read_voxels(file_of("stl"))
