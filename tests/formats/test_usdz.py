"""USDZ: read back by USD, clean for its validators, and as the specification of the package lays it out."""

from __future__ import annotations

import io
import struct
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("pxr")

from pipeline.formats.material_images import MaterialImages
from pipeline.formats.reading import read_usdz
from pipeline.formats.usdz import usdz_bytes
from pipeline.mesh.material import Material
from schemas.request import UpAxis
from tests.formats.meshes import FACES, NORMALS, TEXTURE, UVS, VERTICES, no_faces
from tests.usd import ALIGNMENT, issues_of


def encoded(
    *, name: str = "toy", is_textured: bool = True, is_double_sided: bool = False, up_axis: UpAxis = "y"
) -> bytes:
    texture = {"uvs": UVS, "uv_faces": FACES, "material": MaterialImages(Material(TEXTURE))} if is_textured else {}
    return usdz_bytes(
        name=name,
        vertices=VERTICES,
        faces=FACES,
        normals=NORMALS,
        is_double_sided=is_double_sided,
        up_axis=up_axis,
        **texture,
    )


def test_usd_reads_back_the_mesh_and_its_texture() -> None:
    (part,) = read_usdz(encoded()).geometry.values()

    np.testing.assert_allclose(part.triangles, VERTICES[FACES], atol=1e-6)
    np.testing.assert_allclose(part.visual.uv[part.faces][..., 0], UVS[FACES][..., 0], atol=1e-6)
    np.testing.assert_allclose(part.visual.uv[part.faces][..., 1], 1 - UVS[FACES][..., 1], atol=1e-6)
    assert np.array_equal(np.asarray(part.visual.material.baseColorTexture.convert("RGB")), TEXTURE)


@pytest.mark.parametrize("name", ["toy", "1 rob-öt.v2", "-"])
@pytest.mark.parametrize("is_textured", [True, False])
def test_the_validators_and_the_rules_of_arkit_find_nothing(tmp_path: Path, name: str, is_textured: bool) -> None:
    path = tmp_path / "toy.usdz"
    path.write_bytes(encoded(name=name, is_textured=is_textured))

    assert issues_of(path) == []


def test_the_stage_states_what_readers_need(tmp_path: Path) -> None:
    from pxr import Usd, UsdGeom, UsdShade

    path = tmp_path / "toy.usdz"
    path.write_bytes(encoded(name="my robot", is_double_sided=True))
    stage = Usd.Stage.Open(str(path))
    root = stage.GetDefaultPrim()
    mesh = UsdGeom.Mesh(stage.GetPrimAtPath("/my_robot/my_robot"))

    assert (root.GetName(), root.GetDisplayName()) == ("my_robot", "my robot")
    assert UsdGeom.GetStageMetersPerUnit(stage) == 1 and UsdGeom.GetStageUpAxis(stage) == "Y"
    assert mesh.GetSubdivisionSchemeAttr().Get() == "none" and mesh.GetDoubleSidedAttr().Get()
    np.testing.assert_allclose(mesh.GetExtentAttr().Get(), [VERTICES.min(axis=0), VERTICES.max(axis=0)], atol=1e-6)
    material, _ = UsdShade.MaterialBindingAPI(mesh).ComputeBoundMaterial()
    shader, _, _ = material.ComputeSurfaceSource()
    assert shader.GetIdAttr().Get() == "UsdPreviewSurface" and shader.GetInput("metallic").Get() == 0


def test_the_stage_states_the_axis_that_points_up(tmp_path: Path) -> None:
    from pxr import Usd, UsdGeom

    path = tmp_path / "toy.usdz"
    path.write_bytes(encoded(up_axis="z"))
    assert UsdGeom.GetStageUpAxis(Usd.Stage.Open(str(path))) == "Z"


def test_every_file_of_the_package_is_stored_and_aligned() -> None:
    content = encoded(name="a name of another length")
    entries = zipfile.ZipFile(io.BytesIO(content)).infolist()

    assert [Path(entry.filename).suffix for entry in entries] == [".usdc", ".png"]
    for entry in entries:
        name_bytes, extra_bytes = struct.unpack_from("<2H", content, entry.header_offset + 26)
        begins_at = entry.header_offset + 30 + name_bytes + extra_bytes
        assert begins_at % ALIGNMENT == 0 and entry.compress_type == zipfile.ZIP_STORED
        assert content[begins_at : begins_at + 4] in (b"PXR-", b"\x89PNG")


def test_equal_meshes_give_equal_bytes_at_any_time(monkeypatch: pytest.MonkeyPatch) -> None:
    first, now_s = encoded(), time.time()
    monkeypatch.setattr(time, "time", lambda: now_s + 86400)

    assert encoded() == first


def test_a_mesh_without_faces_and_half_a_texture_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one face"):
        usdz_bytes(name="toy", vertices=VERTICES, faces=no_faces(), normals=NORMALS)
    with pytest.raises(ValueError, match="must all be given or all be None"):
        usdz_bytes(name="toy", vertices=VERTICES, faces=FACES, normals=NORMALS, uvs=UVS)
