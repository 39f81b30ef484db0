"""Reads 3D files as trimesh scenes: its own formats, compressed GLBs, and with their own libraries 3MF and USDZ.

(trimesh reads 3MF only where lxml and networkx are installed, and leaves its colours out.)
"""

# The names of pxr are bound at run time.
# pyright: reportAttributeAccessIssue=false
from __future__ import annotations

import io
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import trimesh
from PIL import Image
from trimesh.visual import TextureVisuals
from trimesh.visual.material import PBRMaterial

from pipeline.formats.glb_reading import plain_glb


def read_scene(
    source: Path | BinaryIO, *, file_type: str, companions: Mapping[str, bytes] | None = None
) -> trimesh.Scene:
    """Read a 3D file, with its vertices as they are.

    Units are those of the file for the formats that state none, and metres for 3MF and USDZ.

    Args:
        companions: the files that it may refer to, by name; by default those in its folder.

    Raises:
        Exception: whatever the reader of the format raises of a file that it cannot read.
    """
    if file_type in READERS:
        content = source.read_bytes() if isinstance(source, Path) else source.read()
        return READERS[file_type](content)
    resolver: Any = None if companions is None else dict(companions)
    return trimesh.load_scene(source, file_type=file_type, process=False, resolver=resolver)


def read_3mf(content: bytes) -> trimesh.Scene:
    """The mesh objects of a 3MF file, in metres, with the colours of a colour group at their vertices."""
    import lib3mf

    metres = {"MicroMeter": 1e-6, "MilliMeter": 1e-3, "CentiMeter": 1e-2, "Inch": 0.0254, "Foot": 0.3048, "Meter": 1.0}
    model: Any = lib3mf.get_wrapper().CreateModel()
    model.QueryReader("3mf").ReadFromBuffer(content)
    scale = metres[model.GetUnit().name]
    scene = trimesh.Scene()
    objects = model.GetMeshObjects()
    while objects.MoveNext():
        each = objects.GetCurrentMeshObject()
        vertices = np.array([tuple(vertex.Coordinates) for vertex in each.GetVertices()], np.float64) * scale
        faces = np.array([tuple(face.Indices) for face in each.GetTriangleIndices()], np.int64)
        part = trimesh.Trimesh(vertices, faces, process=False)
        colours = _colours_of_3mf(model, each, faces)
        if colours is not None:
            part.visual = trimesh.visual.ColorVisuals(part, vertex_colors=colours)
        scene.add_geometry(part, geom_name=each.GetName())
    return scene


def _colours_of_3mf(model: Any, mesh: Any, faces: Any) -> Any:
    """The colour of each vertex, (V, 4) uint8, by the last of its faces; None where there is no colour group."""
    groups = model.GetColorGroups()
    if not groups.MoveNext():
        return None
    group = groups.GetCurrentColorGroup()
    palette = {each: group.GetColor(each) for each in group.GetAllPropertyIDs()}
    table = {each: (colour.Red, colour.Green, colour.Blue, colour.Alpha) for each, colour in palette.items()}
    ids = np.array([tuple(each.PropertyIDs) for each in mesh.GetAllTriangleProperties()])
    colours = np.zeros((mesh.GetVertexCount(), 4), np.uint8)
    colours[faces.ravel()] = [table[each] for each in ids.ravel()]
    return colours


def read_usdz(content: bytes) -> trimesh.Scene:
    """The meshes of a USDZ file, in metres, vertices split where their texture coordinates differ."""
    from pxr import Usd, UsdGeom

    scene = trimesh.Scene()
    with tempfile.TemporaryDirectory(prefix="image-to-3d-") as folder:
        path = Path(folder) / "scene.usdz"
        path.write_bytes(content)
        stage = Usd.Stage.Open(str(path))
        scale = UsdGeom.GetStageMetersPerUnit(stage)
        image = _image_of_usdz(content)
        for prim in stage.Traverse():
            if prim.IsA(UsdGeom.Mesh):
                part = _part_of_usd(UsdGeom.Mesh(prim), scale, image)
                scene.add_geometry(part, geom_name=prim.GetName())
    return scene


def _part_of_usd(mesh: Any, scale: float, image: Image.Image | None) -> trimesh.Trimesh:
    from pxr import Usd, UsdGeom

    transform = np.array(UsdGeom.Xformable(mesh).ComputeLocalToWorldTransform(Usd.TimeCode.Default()))
    points = np.array(mesh.GetPointsAttr().Get(), np.float64)
    points = (points @ transform[:3, :3] + transform[3, :3]) * scale
    corners = np.array(mesh.GetFaceVertexIndicesAttr().Get(), np.int64)
    if set(mesh.GetFaceVertexCountsAttr().Get()) != {3}:
        raise ValueError("only triangles are read")
    st = UsdGeom.PrimvarsAPI(mesh).GetPrimvar("st")
    if not st or st.GetInterpolation() != UsdGeom.Tokens.faceVarying:
        return trimesh.Trimesh(points, corners.reshape(-1, 3), process=False)
    coordinates = np.array(st.ComputeFlattened(), np.float64)
    places, split = np.unique(np.column_stack([corners, coordinates]), axis=0, return_inverse=True)
    visual = TextureVisuals(uv=places[:, 1:], material=PBRMaterial(baseColorTexture=image))
    vertices = points[places[:, 0].astype(np.int64)]
    return trimesh.Trimesh(vertices, split.reshape(-1, 3), visual=visual, process=False)


def _image_of_usdz(content: bytes) -> Image.Image | None:
    """The first image of a package."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        for name in archive.namelist():
            if name.lower().endswith((".png", ".jpg", ".jpeg")):
                return Image.open(io.BytesIO(archive.read(name)))
    return None


def read_glb(content: bytes) -> trimesh.Scene:
    """The scene of a GLB, which may be compressed, with its nodes."""
    return trimesh.load_scene(io.BytesIO(plain_glb(content)), file_type="glb", process=False)


READERS = {"3mf": read_3mf, "glb": read_glb, "usdz": read_usdz}
