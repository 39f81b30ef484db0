from __future__ import annotations

import numpy as np

from pipeline.formats.splat import PROPERTIES, splat_ply_bytes


def test_a_splat_file_reads_back_as_what_viewers_undo() -> None:
    rng = np.random.default_rng(0)
    xyz, dc = rng.normal(size=(5, 3)), rng.normal(size=(5, 3))
    opacity, scaling = rng.uniform(0.01, 0.99, 5), rng.uniform(1e-3, 1, (5, 3))
    rotation = rng.normal(size=(5, 4))

    data = splat_ply_bytes(xyz=xyz, features_dc=dc, opacity=opacity, scaling=scaling, rotation=rotation)

    header, body = data.split(b"end_header\n", 1)
    lines = header.decode("ascii").splitlines()
    assert lines[:3] == ["ply", "format binary_little_endian 1.0", "element vertex 5"]
    assert lines[3:] == [f"property float {name}" for name in PROPERTIES]
    table = np.frombuffer(body, "<f4").reshape(5, len(PROPERTIES))
    column = {name: table[:, i] for i, name in enumerate(PROPERTIES)}
    np.testing.assert_allclose(table[:, :3], xyz, rtol=1e-6)
    np.testing.assert_allclose(1 / (1 + np.exp(-column["opacity"])), opacity, rtol=1e-5)
    np.testing.assert_allclose(np.exp(column["scale_1"]), scaling[:, 1], rtol=1e-5)
    np.testing.assert_allclose(column["rot_3"], rotation[:, 3], rtol=1e-6)


def test_a_solid_splat_stays_finite() -> None:
    one = np.ones((1, 3))

    data = splat_ply_bytes(xyz=one, features_dc=one, opacity=np.ones(1), scaling=one, rotation=np.ones((1, 4)))

    body = data.split(b"end_header\n", 1)[1]
    assert np.isfinite(np.frombuffer(body, "<f4")).all()


def test_no_gaussians_make_a_file_without_rows() -> None:
    none = np.zeros((0, 3))

    data = splat_ply_bytes(xyz=none, features_dc=none, opacity=none[:, 0], scaling=none, rotation=np.zeros((0, 4)))

    assert b"element vertex 0\n" in data
    assert data.endswith(b"end_header\n")
