"""Tangents equal those of MikkTSpace itself, which readers compute where a file has none."""

from __future__ import annotations

import json
import subprocess

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.mesh.clean import clean
from pipeline.mesh.simplify import simplify
from pipeline.mesh.tangents import vertex_tangents
from pipeline.mesh.unwrap import unwrap
from tests.mesh.shapes import box, organic, torus
from tests.npm import NoPackages, packages

MANIFEST = json.dumps({"dependencies": {"mikktspace": "1.1.1"}}).encode()
GENERATE = """
const { generateTangents } = require(process.argv[1] + '/node_modules/mikktspace');
let text = '';
process.stdin.on('data', (part) => (text += part)).on('end', () => {
  const given = JSON.parse(text);
  const [positions, normals, uvs] = ['positions', 'normals', 'uvs'].map((name) => new Float32Array(given[name]));
  console.log(JSON.stringify(Array.from(generateTangents(positions, normals, uvs))));
});
"""


def reference(
    corners: NDArray[np.float32], normals: NDArray[np.float32], uvs: NDArray[np.float32]
) -> NDArray[np.float64]:
    """Tangents (N, 4) of N corners, three for each face."""
    try:
        folder = packages(MANIFEST)
    except NoPackages as reason:
        pytest.skip(str(reason))
    given = {"positions": corners.ravel().tolist(), "normals": normals.ravel().tolist(), "uvs": uvs.ravel().tolist()}
    run = subprocess.run(
        ["node", "-e", GENERATE, str(folder)],
        input=json.dumps(given),
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    found = np.array(json.loads(run.stdout)).reshape(-1, 4)
    found[:, 3] *= -1  # it expects v upwards
    return found


@pytest.mark.parametrize("shape", [box, torus, organic])
def test_tangents_are_those_of_mikktspace(shape: type) -> None:
    surface = clean(shape(48))
    mesh = simplify(surface, target_faces=len(surface.faces) // 8)
    split = unwrap(mesh, texture_size=512)
    normals = mesh.vertex_normals()[split.source_vertices]
    ours = vertex_tangents(split.vertices, split.faces, normals, split.uvs)
    corner = split.faces.ravel()
    expected = reference(split.vertices[corner], normals[corner], split.uvs[corner])
    cosine = (ours[corner, :3] * expected[:, :3]).sum(axis=1)
    assert np.array_equal(ours[corner, 3], expected[:, 3])
    assert np.percentile(cosine, 1) > 0.9999, np.percentile(cosine, [0, 0.1, 1, 50])


def test_tangents_lie_across_the_normals_also_where_the_texture_says_nothing() -> None:
    vertices = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0]], np.float32)
    normals = np.tile(np.float32([0, 0, 1]), (3, 1))
    tangents = vertex_tangents(vertices, np.array([[0, 1, 2]], np.int32), normals, np.zeros((3, 2), np.float32))
    np.testing.assert_allclose(np.linalg.norm(tangents[:, :3], axis=1), 1, rtol=1e-6)
    np.testing.assert_allclose(tangents[:, 2], 0, atol=1e-7)
