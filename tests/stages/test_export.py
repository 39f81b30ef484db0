"""Stage 3 as a whole: every format of a real generation, opened by third-party readers."""

from __future__ import annotations

import math
import subprocess
import zipfile
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, get_args
from uuid import uuid4

import imageio_ffmpeg
import lib3mf
import numpy as np
import pytest
import trimesh
from numpy.typing import NDArray
from PIL import Image

from pipeline.engines.base import Generation, GenerationOptions, ignore_steps
from pipeline.engines.preview.engine import PreviewEngine
from pipeline.errors import Cancelled, ExportFailed
from pipeline.imaging.background_removal import Cutout
from pipeline.inspection import inspect, inspect_print
from pipeline.mesh.asset import Asset
from pipeline.mesh.clean_open import clean_open
from pipeline.mesh.material import Material
from pipeline.mesh.measure import measure
from pipeline.mesh.placement import Placement
from pipeline.mesh.tri_mesh import TriMesh
from pipeline.mesh.unwrap import UnwrappedMesh
from pipeline.render.mesh_view import RenderMesh, render_view
from pipeline.render.orbit import Camera, intrinsics_of, look_at
from pipeline.stages.export import export, make_levels, render_mesh_of
from pipeline.storage.base import OutputFile
from schemas.formats import FORMATS, OUTPUT_FORMATS, TEXTURE_FORMATS, Compression
from schemas.names import safe_name
from schemas.request import ImageTo3DRequest, parse_request
from tests.fakes.images import draw_figure, mask_iou
from tests.gltf import document_of, issues_of
from tests.mesh.shapes import border_distance, joined, leaf, sphere, turned_over, welded_report

SIDE = 384


@cache
def generation() -> Generation:
    return PreviewEngine().generate([draw_figure(SIDE)], GenerationOptions(seed=1, resolution=128))


def request_for(**fields: Any) -> ImageTo3DRequest:
    return parse_request({"image": "x", "texture_size": 512, "resolution": 128, "seed": 1, **fields}).request


@pytest.fixture
def exported(tmp_path: Path) -> Callable[..., dict[str, OutputFile]]:
    def run(folder: str = "files", **fields: Any) -> dict[str, OutputFile]:
        files = export(
            generation(),
            request=request_for(**fields),
            file_prefix="toy",
            folder=tmp_path / folder,
            on_step=ignore_steps,
        ).files
        return {file.path.name: file for file in files}

    return run


def opened(path: Path) -> tuple[trimesh.Trimesh, TriMesh]:
    """The file as trimesh reads it, and its mesh as ours."""
    loaded = trimesh.load(path, process=False)
    (part,) = loaded.geometry.values() if isinstance(loaded, trimesh.Scene) else [loaded]
    return part, TriMesh(np.asarray(part.vertices, np.float32), np.asarray(part.faces, np.int32))


@pytest.mark.parametrize("format", ["glb", "obj", "stl", "ply"])
def test_every_format_opens_in_other_readers_as_a_closed_mesh(exported: Callable, format: str) -> None:
    files = exported(output_format=format)
    part, mesh = opened(files[f"toy.{format}"].path)
    closed, consistent, non_manifold, volume = welded_report(mesh)
    assert closed and consistent and non_manifold == 0 and volume > 0
    assert len(mesh.faces) == pytest.approx(0.1 * len(generation().mesh.faces), rel=0.01)
    if format == "ply":
        assert part.visual.kind == "vertex" and part.visual.vertex_colors[:, :3].std() > 10
    if format in ("glb", "obj"):
        material = part.visual.material
        image = getattr(material, "baseColorTexture", None) or material.image
        assert image.size == (512, 512) and np.asarray(image.convert("RGB")).std() > 10


@pytest.mark.parametrize("compression", get_args(Compression))
@pytest.mark.parametrize("texture", [*({"texture_format": name} for name in TEXTURE_FORMATS), {"no_texture": True}])
def test_khronos_validator_finds_nothing_in_a_glb(exported: Callable, compression: str, texture: dict) -> None:
    path = exported(compression=compression, **texture)["toy.glb"].path

    issues = issues_of(path)
    assert (issues["numErrors"], issues["numWarnings"]) == (0, 0), issues["messages"][:3]
    report = inspect(path)
    assert report.is_watertight and report.is_winding_consistent and report.non_manifold_edges == 0
    assert report.texture_size == (None if "no_texture" in texture else (512, 512))


@pytest.mark.parametrize("compression", get_args(Compression))
def test_a_compressed_glb_has_the_faces_the_size_and_the_place_of_the_asset(
    exported: Callable, compression: str
) -> None:
    exact, report = (
        inspect(exported(way, compression=way, texture_format="webp")["toy.glb"].path) for way in ("none", compression)
    )

    assert (report.faces, report.vertices, report.components) == (exact.faces, exact.vertices, exact.components)
    assert report.volume == pytest.approx(exact.volume, rel=1e-4)
    assert np.subtract((*report.lowest, *report.highest), (*exact.lowest, *exact.highest)) == pytest.approx(
        0, abs=0.5 / 16383 + 1e-7
    )


def test_the_smallest_glb_is_a_fraction_of_the_usual_one(exported: Callable, tmp_path: Path) -> None:
    request = request_for(texture_format="webp", compression="meshopt")
    made = export(generation(), request=request, file_prefix="toy", folder=tmp_path, on_step=ignore_steps)

    size = made.files[0].path.stat().st_size
    assert size < exported("usual")["toy.glb"].path.stat().st_size / 4
    told = made.meta["mesh"]
    assert told["file_bytes"] == size and 0 < told["texture_bytes"] < size and made.warnings == ()


def test_a_format_that_has_no_webp_gets_a_jpeg_and_says_so(tmp_path: Path) -> None:
    request = request_for(output_formats="obj,glb,usdz,stl", texture_format="webp", compression="draco")
    made = export(generation(), request=request, file_prefix="toy", folder=tmp_path, on_step=ignore_steps)

    assert (tmp_path / "toy_texture.jpg").read_bytes().startswith(b"\xff\xd8\xff")
    assert "map_Kd toy_texture.jpg" in (tmp_path / "toy.mtl").read_text()
    with zipfile.ZipFile(tmp_path / "toy.usdz") as package:
        assert package.namelist() == ["toy.usdc", "textures/toy.jpg"]
    assert made.warnings == (
        "The OBJ has textures as jpeg: OBJ has no webp.",
        "The USDZ has textures as jpeg: USDZ has no webp.",
    )
    assert made.meta["mesh"]["texture_bytes"] == (tmp_path / "toy_texture.jpg").stat().st_size


def test_a_compression_without_a_glb_says_that_it_had_no_effect(tmp_path: Path) -> None:
    request = request_for(output_format="stl", compression="draco", texture_format="webp")
    made = export(generation(), request=request, file_prefix="toy", folder=tmp_path, on_step=ignore_steps)

    assert made.warnings == ("compression draco had no effect: it is for GLB alone.",)


def front_camera() -> Camera:
    """A camera so far in front that its rays are almost parallel; it sees 0.5 m to each side of the origin."""
    far = 5000.0
    return Camera(look_at(np.array([0.0, -far, 0.0]), np.zeros(3)), intrinsics_of(2 * math.atan(0.5 / far)))


def unlit(mesh: RenderMesh) -> RenderMesh:
    """The mesh with all normals towards the front, so that the front is rendered in the texture's own colours."""
    return replace(mesh, normals=np.tile(np.float32([0, 0, 1]), (len(mesh.vertices), 1)))


def test_the_front_looks_like_the_input_image() -> None:
    (asset,) = make_levels(generation(), request=request_for(texture_size=1024), on_step=ignore_steps)
    figure = draw_figure(SIDE)
    solid = figure[..., 3] >= 128
    rows, columns = np.flatnonzero(solid.any(axis=1)), np.flatnonzero(solid.any(axis=0))
    height, width = rows[-1] + 1 - rows[0], columns[-1] + 1 - columns[0]
    side = max(height, width)
    crop = np.zeros((side, side, 4), np.uint8)
    top, left = (side - height) // 2, (side - width) // 2
    crop[top : top + height, left : left + width] = figure[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    image = render_view(unlit(render_mesh_of(asset)), front_camera(), size=side)
    assert mask_iou(image[..., 3] >= 128, crop[..., 3] >= 128) >= 0.97
    both = (image[..., 3] == 255) & (crop[..., 3] == 255)
    error = np.mean((image[both][:, :3].astype(float) - crop[both][:, :3]) ** 2)
    assert 10 * np.log10(255**2 / error) >= 26


@pytest.mark.parametrize("output_format", OUTPUT_FORMATS)
def test_one_subject_stands_the_same_way_in_every_format(exported: Callable, output_format: str) -> None:
    report = inspect(exported(output_format=output_format)[f"toy.{output_format}"].path)
    spec = FORMATS[output_format]
    size = spec.default_size_m
    low, high = np.array(report.lowest) / size, np.array(report.highest) / size
    up, depth = (1, 2) if spec.up_axis == "y" else (2, 1)
    sides = make_levels(generation(), request=request_for(), on_step=ignore_steps)[0].mesh.bounds()
    width, height, thickness = (sides[1] - sides[0]) / (sides[1] - sides[0]).max()
    assert high - low == pytest.approx([width, thickness, height] if up == 2 else [width, height, thickness], rel=1e-3)
    assert low[up] == pytest.approx(0, abs=1e-4)
    assert (low + high)[[0, depth]] == pytest.approx((0, 0), abs=1e-4)


def test_size_origin_and_up_axis_are_those_of_the_request(exported: Callable) -> None:
    fields = {"size": 0.25, "origin": "center", "up_axis": "z"}
    files = exported(output_formats=["glb", "stl"], **fields)
    for output_format in ("glb", "stl"):
        report = inspect(files[f"toy.{output_format}"].path)
        low, high = np.array(report.lowest), np.array(report.highest)
        assert (high - low).max() == pytest.approx(0.25, rel=1e-3) and report.is_watertight
        assert low + high == pytest.approx((0, 0, 0), abs=1e-3)
        assert np.argmax(high - low) == 2
    assert b"toy, z-up, millimetres" in files["toy.stl"].path.read_bytes()[:80]


LARGEST_AND_UP = {
    "glb": (1.0, 1),
    "obj": (1.0, 1),
    "ply": (1.0, 2),
    "stl": (100.0, 2),
    "usdz": (1.0, 1),
    "3mf": (100.0, 2),
}
"""Longest side in the file's own numbers, and the axis that its readers take for up, by format: metres and y where glTF
and USD say so and importers of OBJ assume it; slicers read STL and 3MF in millimetres, z up, and importers PLY z up."""


def numbers_in(path: Path) -> NDArray[np.floating]:
    """Coordinates of the vertices (V, 3) as they stand in a file, by readers that know nothing of this project."""
    if path.suffix == ".usdz":
        usd = pytest.importorskip("pxr.UsdGeom"), pytest.importorskip("pxr.Usd")
        stage = usd[1].Stage.Open(str(path))
        assert (usd[0].GetStageMetersPerUnit(stage), usd[0].GetStageUpAxis(stage)) == (1.0, "Y")
        (mesh,) = (prim for prim in stage.Traverse() if prim.IsA(usd[0].Mesh))
        to_stage = np.array(usd[0].Imageable(mesh).ComputeLocalToWorldTransform(0))
        return np.array(usd[0].Mesh(mesh).GetPointsAttr().Get()) @ to_stage[:3, :3] + to_stage[3, :3]
    if path.suffix == ".3mf":
        model = lib3mf.get_wrapper().CreateModel()
        model.QueryReader("3mf").ReadFromFile(str(path))
        assert model.GetUnit() == lib3mf.ModelUnit.MilliMeter
        meshes = model.GetMeshObjects()
        assert meshes.MoveNext()
        return np.array([tuple(vertex.Coordinates) for vertex in meshes.GetCurrentMeshObject().GetVertices()])
    return np.asarray(opened(path)[0].vertices)


@pytest.mark.parametrize("output_format", OUTPUT_FORMATS)
def test_readers_find_the_subject_standing_in_the_size_of_their_format(exported: Callable, output_format: str) -> None:
    largest, up = LARGEST_AND_UP[output_format]
    points = numbers_in(exported(output_format=output_format)[f"toy.{output_format}"].path)
    low, high = points.min(axis=0), points.max(axis=0)
    level = [0, 3 - up]

    assert (high - low)[up] == pytest.approx(largest, rel=1e-3)
    assert (high - low)[level].max() < 0.8 * largest  # the figure is taller than wide and deep
    assert low[up] == pytest.approx(0, abs=1e-4 * largest)
    assert (low + high)[level] == pytest.approx((0, 0), abs=1e-3 * largest)


@pytest.mark.parametrize("prefix", ["my robot", "my  robot", "car -s 2", "Grün Käfer", "fig #2 50%"])
def test_companions_have_names_that_every_reader_takes_for_one_word(tmp_path: Path, prefix: str) -> None:
    request = request_for(output_format="obj")
    done = export(generation(), request=request, file_prefix=prefix, folder=tmp_path, on_step=ignore_steps)
    model, material, texture, *_ = (file.path for file in done.files)
    word = safe_name(prefix)
    assert (model.name, material.name, texture.name) == (f"{prefix}.obj", f"{word}.mtl", f"{word}_texture.png")
    lines = model.read_text().splitlines()
    assert [line for line in lines if line.startswith(("mtllib", "o ", "usemtl"))] == [
        f"mtllib {word}.mtl",
        f"o {word}",
        f"usemtl {word}",
    ]
    assert f"newmtl {word}" in material.read_text() and f"map_Kd {word}_texture.png" in material.read_text()


def test_the_parts_of_a_glb_are_named_after_the_asset_not_after_a_random_prefix(tmp_path: Path) -> None:
    def document(prefix: str, **fields: Any) -> dict[str, Any]:
        folder = tmp_path / prefix
        request = request_for(**fields)
        done = export(generation(), request=request, file_prefix=prefix, folder=folder, on_step=ignore_steps)
        return document_of(done.files[0].path.read_bytes())

    named = document("robot")
    assert {part["name"] for kind in ("nodes", "meshes", "materials", "images") for part in named[kind]} == {"robot"}
    first, second, other = document(str(uuid4())), document(str(uuid4())), document(str(uuid4()), target_faces=500)
    assert first == second and first["nodes"][0]["name"].startswith("asset_")
    assert first["nodes"][0]["name"] != other["nodes"][0]["name"]


def test_files_have_the_documented_order_and_names_that_resolve(exported: Callable) -> None:
    files = exported(output_format="obj", render=True)
    assert [(name, file.kind) for name, file in files.items()] == [
        ("toy.obj", "model"),
        ("toy.mtl", "companion"),
        ("toy_texture.png", "companion"),
        ("toy.mp4", "turntable"),
        ("toy_thumbnail.png", "thumbnail"),
    ]
    assert "mtllib toy.mtl" in files["toy.obj"].path.read_text()
    assert "map_Kd toy_texture.png" in files["toy.mtl"].path.read_text()


def test_several_formats_have_the_bytes_of_each_alone_with_their_companions_and_one_order(exported: Callable) -> None:
    formats = ("stl", "obj", "glb")
    together = exported(output_formats=formats)

    names = ["toy.stl", "toy.obj", "toy.mtl", "toy_texture.png", "toy.glb", "toy_thumbnail.png"]
    assert [*together] == names
    for format in formats:
        for name, file in exported(format, output_format=format).items():
            assert together[name].path.read_bytes() == file.path.read_bytes(), name


def test_levels_of_detail_have_their_counts_are_closed_and_leave_the_asset_as_it_is(exported: Callable) -> None:
    counts = (600, 200, 4000)
    files = exported(output_formats="glb,obj", target_faces=1500, lods=counts)
    alone = exported("alone", output_formats="glb,obj", target_faces=1500)

    for name, file in alone.items():
        assert files[name].path.read_bytes() == file.path.read_bytes(), name
    levels = [file for file in files.values() if file.kind == "lod"]
    assert [file.path.name for file in levels] == [
        f"toy_lod{n}.{ending}" for n in (1, 2, 3) for ending in ("glb", "obj")
    ]
    for file, count in zip(levels, np.repeat(counts, 2), strict=True):
        part, mesh = opened(file.path)
        closed, consistent, non_manifold, volume = welded_report(mesh)
        assert closed and consistent and non_manifold == 0 and volume > 0
        assert len(mesh.faces) == file.faces == pytest.approx(count, rel=0.01)
        material = part.visual.material
        assert (getattr(material, "baseColorTexture", None) or material.image).size == (256, 256)
    assert "map_Kd toy_lod2_texture.png" in files["toy_lod2.mtl"].path.read_text()


def test_a_count_that_the_surface_cannot_have_is_reported(tmp_path: Path) -> None:
    request = request_for(output_format="stl", target_faces=2_000_000, lods=[1000, 1_000_000])
    made = export(generation(), request=request, file_prefix="toy", folder=tmp_path, on_step=ignore_steps)

    asset, level = (file.faces for file in made.files if file.path.name in ("toy.stl", "toy_lod2.stl"))
    assert made.warnings == (
        f"toy.stl has {asset:,} faces instead of 2,000,000: the surface has no more.",
        f"toy_lod2.stl has {level:,} faces instead of 1,000,000: the surface has no more.",
    )


def test_the_mesh_is_measured_for_the_answer(tmp_path: Path) -> None:
    request = request_for(output_formats="obj,stl", size=1, up_axis="y")
    made = export(generation(), request=request, file_prefix="toy", folder=tmp_path, on_step=ignore_steps)
    told, (_, written) = made.meta["mesh"], opened(tmp_path / "toy.stl")

    assert told["faces"] == len(written.faces) == made.files[0].faces
    assert told["watertight"] is True and told["components"] >= 1 and told["vertices"] < told["faces"]
    assert told["volume"] == pytest.approx(written.volume() / 1000**3, rel=1e-4)  # an STL is in millimetres
    assert np.allclose(told["bounds"], written.bounds() / 1000, atol=1e-5)
    assert told["texture_size"] == 512
    assert told["texture_bytes"] == (tmp_path / "toy_texture.png").stat().st_size
    assert told["file_bytes"] == sum(
        (tmp_path / f"toy{end}").stat().st_size for end in (".obj", ".mtl", "_texture.png")
    )


def test_a_turntable_plays_in_browsers(exported: Callable) -> None:
    path = exported(render=True)["toy.mp4"].path
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-i", str(path), "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    decoded = subprocess.run(command, capture_output=True, check=True, timeout=60)
    stream = next(line for line in decoded.stderr.decode().splitlines() if "Video: h264" in line)
    assert "yuv420p" in stream and "512x512" in stream
    frames = np.frombuffer(decoded.stdout, np.uint8).reshape(-1, 512, 512, 3)
    assert len(frames) == 120
    assert np.abs(frames[0].astype(int) - frames[30]).mean() > 1  # the subject turns
    content = path.read_bytes()
    assert content.index(b"moov") < content.index(b"mdat")  # the index precedes the frames


def test_the_same_request_gives_the_same_bytes(exported: Callable) -> None:
    every = {"output_formats": "glb,obj,ply,usdz,3mf"}
    small = {"compression": "meshopt", "texture_format": "webp"}
    for fields in ({"render": True}, every, every | small, {"compression": "draco", "texture_format": "jpeg"}):
        first, second = exported("first", **fields), exported("second", **fields)
        assert {n: f.path.read_bytes() for n, f in first.items()} == {n: f.path.read_bytes() for n, f in second.items()}


def test_files_without_texture_do_not_refer_to_one(exported: Callable) -> None:
    files = exported(output_format="obj", no_texture=True)
    assert "toy_texture.png" not in files and "map_Kd" not in files["toy.mtl"].path.read_text()


def test_a_cancelled_export_stops_and_leaves_no_files(tmp_path: Path) -> None:
    def cancel_late(share: float) -> None:
        if share > 0.5:
            raise Cancelled("stop")

    with pytest.raises(Cancelled):
        export(generation(), request=request_for(), file_prefix="toy", folder=tmp_path / "files", on_step=cancel_late)
    assert not (tmp_path / "files").exists()


def test_a_surface_that_encloses_nothing_is_an_error(tmp_path: Path) -> None:
    flat = TriMesh(np.eye(3, dtype=np.float32), np.array([[0, 1, 2], [0, 2, 1]], np.int32))
    empty = Generation(flat, generation().attribute_source, engine="preview", seed=1)
    with pytest.raises(ExportFailed, match="encloses nothing"):
        export(empty, request=request_for(), file_prefix="toy", folder=tmp_path, on_step=ignore_steps)


def test_what_is_exported_is_what_was_measured() -> None:
    (asset,) = make_levels(generation(), request=request_for(mesh_simplify=0.95), on_step=ignore_steps)
    report = measure(asset.mesh)
    assert report.is_watertight and report.faces == pytest.approx(0.05 * len(generation().mesh.faces), rel=0.01)


def test_a_cut_out_that_was_made_here_is_delivered_small(tmp_path: Path) -> None:
    made = Cutout(np.dstack([draw_figure(900)[..., :3], draw_figure(900)[..., 3]]), was_removed=True, confidence=0.9)
    own = Cutout(draw_figure(64))
    request = request_for(no_texture=True, output_format="stl")

    def names_of(*cutouts: Cutout) -> list[str]:
        files = export(
            generation(), request=request, file_prefix="toy", folder=tmp_path, on_step=ignore_steps, cutouts=cutouts
        ).files
        return [file.path.name for file in files]

    assert names_of(own) == ["toy.stl", "toy_thumbnail.png"]
    assert names_of(made) == ["toy.stl", "toy_thumbnail.png", "toy_cutout.png"]
    assert names_of(own, made, made)[2:] == ["toy_2_cutout.png", "toy_3_cutout.png"]
    image = np.asarray(Image.open(tmp_path / "toy_cutout.png"))
    assert image.shape == (512, 512, 4) and not image[image[..., 3] == 0].any()
    assert mask_iou(image[..., 3] >= 128, draw_figure(512)[..., 3] >= 128) > 0.98
    assert (tmp_path / "toy_cutout.png").stat().st_size < 100_000


def open_generation() -> Generation:
    """A leaf with three holes, which encloses nothing."""
    return replace(generation(), mesh=leaf(), is_closed=False)


def as_delivered(mesh: TriMesh, output_format: str) -> TriMesh:
    """A mesh where a format has it by default."""
    split = UnwrappedMesh(
        mesh.vertices, mesh.faces, mesh.vertices[:, :2], np.arange(len(mesh.vertices), dtype=np.int32)
    )
    asset = Asset(mesh, mesh.vertex_normals(), split, Material(np.zeros((1, 1, 3), np.uint8)), False)
    return Placement().in_format(asset, FORMATS[output_format]).mesh


@pytest.mark.parametrize("output_format", ["glb", "obj", "ply"])
def test_an_open_surface_stays_open(tmp_path: Path, output_format: str) -> None:
    done = export(
        open_generation(),
        request=request_for(target_faces=1500, output_format=output_format),
        file_prefix="leaf",
        folder=tmp_path,
        on_step=ignore_steps,
    )
    _, mesh = opened(done.files[0].path)
    report = measure(clean_open(mesh))
    assert done.warnings == ()
    assert report.boundary_edges > 0 and report.is_winding_consistent and report.non_manifold_edges == 0
    assert 2 - (report.vertices - (3 * report.faces + report.boundary_edges) // 2 + report.faces) == 4
    assert abs(report.faces - 1500) <= 15
    assert border_distance(as_delivered(leaf(), output_format), clean_open(mesh)) < 0.5 / 96
    if output_format == "glb":
        assert document_of(done.files[0].path.read_bytes())["materials"][0]["doubleSided"] is True


def test_an_open_surface_becomes_a_body_where_slicers_read_it(tmp_path: Path) -> None:
    request = request_for(target_faces=1500, output_format="stl")
    done = export(open_generation(), request=request, file_prefix="leaf", folder=tmp_path, on_step=ignore_steps)
    _, mesh = opened(done.files[0].path)
    assert abs(len(mesh.faces) - 1500) <= 15 and done.files[0].faces == len(mesh.faces)
    closed, consistent, non_manifold, volume = welded_report(mesh)
    assert closed and consistent and non_manifold == 0 and volume > 0
    (warning,) = done.warnings
    assert "encloses nothing" in warning and "STL" in warning


def test_a_body_that_an_engine_calls_open_stays_a_body(tmp_path: Path) -> None:
    made = replace(generation(), is_closed=False)
    request = request_for(output_format="stl")
    done = export(made, request=request, file_prefix="toy", folder=tmp_path, on_step=ignore_steps)
    same = export(generation(), request=request, file_prefix="toy", folder=tmp_path / "b", on_step=ignore_steps)
    assert done.warnings == () and done.files[0].faces == same.files[0].faces


def parts_of_two() -> Generation:
    """A figure, a cavity inside of it, and a ball beside it that touches nothing."""
    body = generation().mesh
    ball, hollow = sphere(24, 0.1), turned_over(sphere(20, 0.04))
    right = body.bounds()[1, 0]
    beside = TriMesh(ball.vertices + np.float32([right + 0.12, 0, 0]), ball.faces)
    return replace(generation(), mesh=joined(body, beside, hollow))


def test_print_ready_delivers_one_shell_on_a_flat_base_in_every_format(tmp_path: Path) -> None:
    request = request_for(output_formats=["stl", "3mf", "glb"], print_ready=True, target_faces=4000)
    exported = export(parts_of_two(), request=request, file_prefix="toy", folder=tmp_path, on_step=ignore_steps)

    for name in ("stl", "3mf", "glb"):
        report = inspect_print(tmp_path / f"toy.{name}")
        assert (report.is_closed, report.shells, report.cavities) == (True, 1, 0), name
        assert report.is_standing and max(report.size_mm) == pytest.approx(1000 if name == "glb" else 100, rel=1e-3)
    assert exported.meta["mesh"]["faces"] == pytest.approx(4000, rel=0.01)
    assert exported.meta["print"].items() >= {"closed": True, "shells": 1, "cavities": 0, "stands": True}.items()
    assert exported.meta["print"]["base_mm2"] == pytest.approx(inspect_print(tmp_path / "toy.stl").base_mm2, rel=0.01)
    (changed,) = [each for each in exported.warnings if each.startswith("Made ready to print at 100 mm: ")]
    assert "pins of 3.0 mm" in changed and "base" in changed


def test_print_ready_keeps_the_texture(tmp_path: Path) -> None:
    plain, ready = (
        make_levels(generation(), request=request_for(print_ready=value), on_step=ignore_steps)[0]
        for value in (False, True)
    )
    for asset in (plain, ready):
        assert asset.is_textured
    pictures = [render_view(unlit(render_mesh_of(asset)), front_camera(), size=256) for asset in (plain, ready)]
    body = (pictures[0][..., 3] > 0) & (pictures[1][..., 3] > 0)
    assert np.abs(pictures[0][body].astype(int) - pictures[1][body]).mean() < 4


def test_walls_that_are_thin_at_the_size_of_the_print_are_named(tmp_path: Path) -> None:
    def warnings(**fields: Any) -> list[str]:
        request = request_for(output_format="stl", print_ready=True, **fields)
        exported = export(generation(), request=request, file_prefix="toy", folder=tmp_path, on_step=ignore_steps)
        return [each for each in exported.warnings if "walls thinner than" in each]

    assert warnings() == []  # the antennae are 2 mm thick
    assert "thinner than 0.8 mm" in warnings(size=0.02)[0] and "a print of 20 mm" in warnings(size=0.02)[0]
    assert "thinner than 5 mm" in warnings(min_wall_mm=5)[0]


def test_without_print_ready_nothing_is_changed_or_measured(tmp_path: Path) -> None:
    request = request_for(output_format="stl")
    exported = export(parts_of_two(), request=request, file_prefix="toy", folder=tmp_path, on_step=ignore_steps)

    assert "print" not in exported.meta and inspect_print(tmp_path / "toy.stl").shells == 2


def test_an_open_surface_is_made_ready_to_print_as_a_body(tmp_path: Path) -> None:
    sheet = replace(generation(), mesh=leaf(), is_closed=False)
    request = request_for(output_format="glb", print_ready=True)
    exported = export(sheet, request=request, file_prefix="leaf", folder=tmp_path, on_step=ignore_steps)

    report = inspect_print(tmp_path / "leaf.glb")
    assert (report.is_closed, report.shells, report.is_standing) == (True, 1, True)
    assert "What encloses nothing was made 1.5 mm thick, on a grid of 0.39 mm." in exported.warnings[0]
