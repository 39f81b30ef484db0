"""PLY: read back by trimesh and by numpy."""

from __future__ import annotations

import io

import numpy as np
import trimesh

from pipeline.formats.ply import ply_bytes
from tests.formats.meshes import COLOURS, FACES, NORMALS, VERTICES, no_faces


def test_trimesh_reads_back_the_mesh_and_its_colours() -> None:
    data = ply_bytes(vertices=VERTICES, faces=FACES, normals=NORMALS, colours=COLOURS)

    part = trimesh.load(io.BytesIO(data), file_type="ply", process=False)

    assert np.array_equal(part.vertices, VERTICES) and np.array_equal(part.faces, FACES)
    assert np.array_equal(part.visual.vertex_colors[:, :3], COLOURS)


def test_the_table_has_the_columns_that_the_header_names() -> None:
    data = ply_bytes(vertices=VERTICES, faces=FACES, normals=NORMALS)

    header, body = data.split(b"end_header\n", 1)
    lines = header.decode().splitlines()
    assert lines[:2] == ["ply", "format binary_little_endian 1.0"]
    assert [line.split()[-1] for line in lines if line.startswith("property float")] == [
        "x",
        "y",
        "z",
        "nx",
        "ny",
        "nz",
    ]
    table = np.frombuffer(body[: 4 * 24], "<f4").reshape(4, 6)
    assert np.array_equal(table[:, :3], VERTICES) and np.array_equal(table[:, 3:], NORMALS)
    faces = np.frombuffer(body[4 * 24 :], np.dtype([("count", "u1"), ("corners", "<i4", 3)]))
    assert (faces["count"] == 3).all() and np.array_equal(faces["corners"], FACES)


def test_a_mesh_without_vertices_gives_a_header_alone() -> None:
    data = ply_bytes(vertices=VERTICES[:0], faces=no_faces(), normals=NORMALS[:0])

    assert b"element vertex 0\n" in data and b"element face 0\n" in data and data.endswith(b"end_header\n")
