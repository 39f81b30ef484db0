"""A whole material in each format: the images where the format's readers look for them."""

from __future__ import annotations

import io
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import trimesh
from PIL import Image
from scipy.spatial import KDTree

from pipeline.formats.encode import AssetEncoder
from pipeline.formats.glb import glb_bytes
from pipeline.formats.glb_reading import plain_glb, split
from pipeline.formats.material_images import MaterialImages
from pipeline.formats.ply import ply_bytes
from pipeline.formats.reading import read_glb
from pipeline.mesh.asset import Asset
from pipeline.mesh.material import AlphaMode, Material
from pipeline.mesh.placement import Placement
from pipeline.mesh.unwrap import unwrap
from schemas.formats import TEXTURE_FORMATS, Compression, TextureFormat
from tests.formats.meshes import FACES, NORMALS, UVS, VERTICES
from tests.gltf import document_of, issues_of
from tests.mesh.shapes import cuboid

RNG = np.random.default_rng(5)
COLOUR = RNG.integers(0, 255, (16, 16, 4), np.uint8)
BOTH = RNG.integers(0, 255, (16, 16, 2), np.uint8)
NORMAL = np.full((16, 16, 3), (128, 128, 255), np.uint8)


def asset(*, mode: AlphaMode = "BLEND", has_images: bool = True) -> Asset:
    """A box with a material of noise."""
    colour = COLOUR if mode != "OPAQUE" else np.ascontiguousarray(COLOUR[..., :3])
    material = Material(colour, mode, BOTH if has_images else None, 0.25, 0.5, NORMAL if has_images else None)
    mesh = cuboid()
    colours = RNG.integers(0, 255, (len(mesh.vertices), 4), np.uint8)
    return Asset(mesh, mesh.vertex_normals(), unwrap(mesh, texture_size=64), material, True, colours, name="toy")


def image_of(content: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(content)))


def images_in(glb: bytes) -> list[np.ndarray]:
    """The images of a GLB by index."""
    document = document_of(glb)
    start = len(glb) - document["buffers"][0]["byteLength"] - (-document["buffers"][0]["byteLength"] % 4)
    views = [document["bufferViews"][image["bufferView"]] for image in document["images"]]
    return [image_of(glb[start + view["byteOffset"] :][: view["byteLength"]]) for view in views]


@pytest.mark.parametrize("mode", ["OPAQUE", "MASK", "BLEND"])
@pytest.mark.parametrize("has_images", [True, False])
def test_a_glb_has_the_material_and_is_valid(mode: AlphaMode, has_images: bool, tmp_path: Path) -> None:
    glb = AssetEncoder(asset(mode=mode, has_images=has_images)).files("glb", stem="toy")["toy.glb"]
    (material,) = document_of(glb)["materials"]
    images = images_in(glb)
    surface = material["pbrMetallicRoughness"]
    assert material.get("alphaMode", "OPAQUE") == mode
    assert material.get("alphaCutoff") == (0.5 if mode == "MASK" else None)
    assert material.get("doubleSided", False) == (mode != "OPAQUE")  # what lies behind is seen
    assert np.array_equal(images[surface["baseColorTexture"]["index"]], COLOUR[..., : 3 if mode == "OPAQUE" else 4])
    if has_images:
        packed = images[surface["metallicRoughnessTexture"]["index"]]
        assert np.array_equal(packed[..., 2], BOTH[..., 0]) and np.array_equal(packed[..., 1], BOTH[..., 1])
        assert np.array_equal(images[material["normalTexture"]["index"]], NORMAL)
        assert "metallicFactor" not in surface  # 1 by default: the image alone decides
    else:
        assert (surface["metallicFactor"], surface["roughnessFactor"]) == (0.25, 0.5)
        assert len(images) == 1
    path = tmp_path / "toy.glb"
    path.write_bytes(glb)
    issues = issues_of(path)
    assert (issues["numErrors"], issues["numWarnings"]) == (0, 0), issues["messages"]


@pytest.mark.parametrize("compression", get_args(Compression))
@pytest.mark.parametrize("texture_format", TEXTURE_FORMATS)
def test_a_small_glb_has_the_whole_material_and_is_valid(
    compression: Compression, texture_format: TextureFormat, tmp_path: Path
) -> None:
    encoder = AssetEncoder(asset(mode="BLEND"), texture_format=texture_format, compression=compression)
    glb = encoder.files("glb", stem="toy")["toy.glb"]

    (material,), images = document_of(glb)["materials"], document_of(glb)["images"]
    assert {"pbrMetallicRoughness", "normalTexture", "alphaMode"} <= material.keys()
    kinds = [image["mimeType"] for image in images]
    # JPEG has no alpha.
    assert kinds == [f"image/{'png' if texture_format == 'jpeg' else texture_format}", *kinds[1:]]
    assert set(kinds[1:]) == {f"image/{texture_format}"}
    path = tmp_path / "toy.glb"
    path.write_bytes(glb)
    issues = issues_of(path)
    assert (issues["numErrors"], issues["numWarnings"]) == (0, 0), issues["messages"][:3]


@pytest.mark.parametrize("compression", get_args(Compression))
def test_tangents_of_a_small_glb_belong_to_their_vertices(compression: Compression) -> None:
    made = asset()
    glb = AssetEncoder(made, Placement(origin="center"), compression=compression).files("glb", stem="toy")["toy.glb"]

    read, binary = split(plain_glb(glb))
    attributes = read["meshes"][0]["primitives"][0]["attributes"]
    accessor = read["accessors"][attributes["TANGENT"]]
    start = read["bufferViews"][accessor["bufferView"]]["byteOffset"]
    tangents = np.frombuffer(binary, np.float32, 4 * accessor["count"], start).reshape(-1, 4)
    (part,) = read_glb(glb).geometry.values()
    normals = np.asarray(part.vertex_normals)
    # The tangents of a box's vertex in two of its charts point elsewhere, at equal normals.
    exact = KDTree(np.hstack([made.unwrapped_normals, made.unwrapped_tangents, made.unwrapped.uvs]))
    distance, which = exact.query(np.hstack([normals, tangents, part.visual.uv * [1, -1] + [0, 1]]))
    assert distance.max() < 0.03 and len(np.unique(which)) == len(tangents) == len(made.unwrapped.vertices)


def test_a_glb_with_a_normal_map_needs_tangents() -> None:
    material = MaterialImages(Material(COLOUR[..., :3].copy(), normal=NORMAL))
    with pytest.raises(ValueError, match="needs tangents"):
        glb_bytes(vertices=VERTICES, faces=FACES, normals=NORMALS, uvs=UVS, material=material)


def test_an_obj_has_each_channel_in_a_file_of_its_own() -> None:
    files = AssetEncoder(asset()).files("obj", stem="my toy")
    keys = dict(line.split(" ", 1) for line in files["my_toy.mtl"].decode().splitlines())
    expected = {
        "map_Kd": COLOUR[..., :3],
        "map_d": COLOUR[..., 3],
        "map_Pm": BOTH[..., 0],
        "map_Pr": BOTH[..., 1],
        "norm": NORMAL,
    }
    for key, image in expected.items():
        assert " " not in keys[key] and np.array_equal(image_of(files[keys[key]]), image), key
    assert float(keys["Pm"]) == pytest.approx(BOTH[..., 0].mean() / 255, abs=1e-4)
    assert float(keys["Pr"]) == pytest.approx(BOTH[..., 1].mean() / 255, abs=1e-4)
    assert set(files) == {"my toy.obj", "my_toy.mtl", *(keys[key] for key in expected)}


def test_readers_of_the_classic_keys_see_the_metal_as_a_highlight() -> None:
    files = AssetEncoder(asset(mode="OPAQUE", has_images=False)).files("obj", stem="toy")
    lines = files["toy.mtl"].decode().splitlines()
    assert "Ks 0.25 0.25 0.25" in lines and "Ns 250" in lines and "illum 2" in lines


@pytest.mark.parametrize("mode", ["OPAQUE", "MASK", "BLEND"])
def test_a_usdz_has_the_material_and_passes_its_validators(mode: AlphaMode, tmp_path: Path) -> None:
    pytest.importorskip("pxr")
    from pxr import Usd, UsdShade

    from tests.usd import issues_of as usd_issues_of

    path = tmp_path / "toy.usdz"
    path.write_bytes(AssetEncoder(asset(mode=mode)).files("usdz", stem="toy")["toy.usdz"])
    assert usd_issues_of(path) == []
    stage = Usd.Stage.Open(str(path))
    surface = UsdShade.Shader(stage.GetPrimAtPath("/toy/material/surface"))

    def source_of(name: str) -> tuple[str, str] | None:
        """The texture and its output that an input is connected to."""
        given = surface.GetInput(name)
        if not given or not given.HasConnectedSource():
            return None
        source, output, _ = given.GetConnectedSource()
        return source.GetPath().name, output

    assert source_of("diffuseColor") == ("base_colour", "rgb")
    assert source_of("metallic") == ("metallic_roughness", "b")
    assert source_of("roughness") == ("metallic_roughness", "g")
    assert source_of("normal") == ("normal", "rgb")
    assert source_of("opacity") == (None if mode == "OPAQUE" else ("base_colour", "a"))
    threshold = surface.GetInput("opacityThreshold")
    assert (threshold.Get() if threshold else None) == (0.5 if mode == "MASK" else None)


def test_a_ply_and_a_3mf_have_alpha_at_the_vertices() -> None:
    made = asset()
    assert made.vertex_colours is not None
    ply = AssetEncoder(made).files("ply", stem="toy")["toy.ply"]
    read = trimesh.load(io.BytesIO(ply), file_type="ply", process=False)
    assert np.array_equal(read.visual.vertex_colors, made.vertex_colours)
    opaque = ply_bytes(vertices=VERTICES, faces=FACES, normals=NORMALS, colours=np.zeros((len(VERTICES), 3), np.uint8))
    assert b"alpha" not in opaque
    lib3mf = pytest.importorskip("lib3mf")
    model = lib3mf.get_wrapper().CreateModel()
    content = AssetEncoder(made).files("3mf", stem="toy")["toy.3mf"]
    model.QueryReader("3mf").ReadFromBuffer(list(content))
    groups = model.GetColorGroups()
    assert groups.MoveNext()
    group = groups.GetCurrentColorGroup()
    found = {(c.Red, c.Green, c.Blue, c.Alpha) for c in map(group.GetColor, group.GetAllPropertyIDs())}
    assert found == {tuple(map(int, colour)) for colour in made.vertex_colours}
