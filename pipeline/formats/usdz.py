"""USDZ for Apple's Quick Look and other USD readers: a mesh, a UsdPreviewSurface, textures. Equal arrays, equal bytes.

The package keeps the rules that ARKit sets beyond USD's own: a binary (usdc) root layer, PNG or JPEG textures, y-up,
nothing outside of the package.

Source: https://openusd.org/release/spec_usdz.html, https://openusd.org/release/spec_usdpreviewsurface.html.
"""

# The names of pxr are bound at run time.
# pyright: reportAttributeAccessIssue=false
from __future__ import annotations

import io
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pxr import Gf, Sdf, Tf, Usd, UsdGeom, UsdShade, Vt

from pipeline.formats.archive import FIXED_TIME
from pipeline.formats.glb import PLAIN_GREY, ROUGHNESS, unit_normals
from pipeline.formats.texture import EncodedImage
from pipeline.version import __version__
from schemas.request import UpAxis

ALIGNMENT = 64
"""Every file begins at a multiple of so many bytes, so that readers can map it into memory."""
LOCAL_HEADER_BYTES, FIELD_HEADER_BYTES = 30, 4
PADDING_FIELD = 0x1986
"""The id of the extra field that holds the padding, as USD's own writer has it."""


def usdz_bytes(
    *,
    name: str,
    vertices: NDArray[np.floating],
    faces: NDArray[np.int32],
    normals: NDArray[np.floating],
    uvs: NDArray[np.floating] | None = None,
    uv_faces: NDArray[np.int32] | None = None,
    texture: EncodedImage | None = None,
    is_double_sided: bool = False,
    up_axis: UpAxis = "y",
) -> bytes:
    """Encode a mesh. Texture coordinates have their own indices, so vertices are not split at seams.

    Args:
        name: what the scene is called; names of its parts are derived from it.
        vertices: (V, 3) metres.
        faces: (F, 3) indices into `vertices`, at least one.
        normals: (V, 3) unit vectors.
        uvs: (T, 2) in [0, 1], v downwards; written with v upwards, as USD defines it. None without a texture.
        uv_faces: (F, 3) indices into `uvs`.
        texture: the base colour as a PNG or JPEG; None without a texture.
        is_double_sided: whether the backs of faces are seen.
        up_axis: of the vertices; the file states it. ARKit takes only y.

    Raises:
        ValueError: there is no face, or only some of `uvs`, `uv_faces` and `texture` are given.
    """
    if len(faces) == 0:
        raise ValueError("a USDZ needs at least one face, got none")
    if not (uvs is None) == (uv_faces is None) == (texture is None):
        raise ValueError("uvs, uv_faces and texture must all be given or all be None")
    identifier = Tf.MakeValidIdentifier(name)
    texture_name = None if texture is None else f"textures/{identifier}{texture.spec.ending}"
    stage = Usd.Stage.CreateInMemory()
    UsdGeom.SetStageUpAxis(stage, UsdGeom.Tokens.y if up_axis == "y" else UsdGeom.Tokens.z)
    UsdGeom.SetStageMetersPerUnit(stage, 1.0)
    stage.GetRootLayer().customLayerData = {"creator": f"image-to-3d {__version__}"}
    root = UsdGeom.Xform.Define(stage, f"/{identifier}")
    root.GetPrim().SetDisplayName(name)
    stage.SetDefaultPrim(root.GetPrim())
    Usd.ModelAPI(root).SetKind("component")
    mesh = _define_mesh(stage, f"/{identifier}/{identifier}", vertices, faces, normals)
    mesh.CreateDoubleSidedAttr(is_double_sided)
    if uvs is not None and uv_faces is not None:
        st = UsdGeom.PrimvarsAPI(mesh).CreatePrimvar(
            "st", Sdf.ValueTypeNames.TexCoord2fArray, UsdGeom.Tokens.faceVarying
        )
        upwards = np.column_stack([uvs[:, 0], 1 - uvs[:, 1]]).astype(np.float32)
        st.Set(Vt.Vec2fArray.FromNumpy(upwards))
        st.SetIndices(Vt.IntArray.FromNumpy(np.ascontiguousarray(uv_faces, np.int32).ravel()))
    material = _define_material(stage, f"/{identifier}/material", texture_name)
    UsdShade.MaterialBindingAPI.Apply(mesh.GetPrim()).Bind(material)
    files = {f"{identifier}.usdc": _binary_layer(stage.GetRootLayer())}
    if texture is not None and texture_name is not None:
        files[texture_name] = texture.content
    return package(files)


def _define_mesh(
    stage: Usd.Stage,
    path: str,
    vertices: NDArray[np.floating],
    faces: NDArray[np.int32],
    normals: NDArray[np.floating],
) -> UsdGeom.Mesh:
    mesh = UsdGeom.Mesh.Define(stage, path)
    points = np.ascontiguousarray(vertices, np.float32)
    mesh.CreatePointsAttr(Vt.Vec3fArray.FromNumpy(points))
    mesh.CreateFaceVertexCountsAttr(Vt.IntArray(len(faces), 3))
    mesh.CreateFaceVertexIndicesAttr(Vt.IntArray.FromNumpy(np.ascontiguousarray(faces, np.int32).ravel()))
    mesh.CreateSubdivisionSchemeAttr(UsdGeom.Tokens.none)
    mesh.CreateOrientationAttr(UsdGeom.Tokens.rightHanded)
    mesh.CreateNormalsAttr(Vt.Vec3fArray.FromNumpy(np.ascontiguousarray(unit_normals(normals))))
    mesh.SetNormalsInterpolation(UsdGeom.Tokens.vertex)
    mesh.CreateExtentAttr([Gf.Vec3f(*map(float, corner)) for corner in (points.min(axis=0), points.max(axis=0))])
    return mesh


def _define_material(stage: Usd.Stage, path: str, texture_name: str | None) -> UsdShade.Material:
    material = UsdShade.Material.Define(stage, path)
    surface = UsdShade.Shader.Define(stage, f"{path}/surface")
    surface.CreateIdAttr("UsdPreviewSurface")
    surface.CreateInput("metallic", Sdf.ValueTypeNames.Float).Set(0.0)
    surface.CreateInput("roughness", Sdf.ValueTypeNames.Float).Set(ROUGHNESS)
    colour = surface.CreateInput("diffuseColor", Sdf.ValueTypeNames.Color3f)
    if texture_name is None:
        colour.Set(Gf.Vec3f(*PLAIN_GREY[:3]))
    else:
        colour.ConnectToSource(_define_texture(stage, path, texture_name).ConnectableAPI(), "rgb")
    surface.CreateOutput("surface", Sdf.ValueTypeNames.Token)
    material.CreateSurfaceOutput().ConnectToSource(surface.ConnectableAPI(), "surface")
    return material


def _define_texture(stage: Usd.Stage, path: str, texture_name: str) -> UsdShade.Shader:
    coordinates = UsdShade.Shader.Define(stage, f"{path}/coordinates")
    coordinates.CreateIdAttr("UsdPrimvarReader_float2")
    coordinates.CreateInput("varname", Sdf.ValueTypeNames.String).Set("st")
    coordinates.CreateOutput("result", Sdf.ValueTypeNames.Float2)
    texture = UsdShade.Shader.Define(stage, f"{path}/base_colour")
    texture.CreateIdAttr("UsdUVTexture")
    texture.CreateInput("file", Sdf.ValueTypeNames.Asset).Set(Sdf.AssetPath(texture_name))
    texture.CreateInput("sourceColorSpace", Sdf.ValueTypeNames.Token).Set("sRGB")
    for axis in ("wrapS", "wrapT"):
        texture.CreateInput(axis, Sdf.ValueTypeNames.Token).Set("clamp")
    texture.CreateInput("st", Sdf.ValueTypeNames.Float2).ConnectToSource(coordinates.ConnectableAPI(), "result")
    texture.CreateOutput("rgb", Sdf.ValueTypeNames.Float3)
    return texture


def _binary_layer(layer: Sdf.Layer) -> bytes:
    """The content of a layer as a usdc file; USD writes to paths only."""
    with tempfile.TemporaryDirectory(prefix="image-to-3d-") as folder:
        path = Path(folder) / "layer.usdc"
        layer.Export(str(path))
        return path.read_bytes()


def package(files: Mapping[str, bytes]) -> bytes:
    """A USDZ archive: stored files, each aligned to `ALIGNMENT` bytes, the root layer first."""
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_STORED) as writer:
        for name, content in files.items():
            entry = zipfile.ZipInfo(name, FIXED_TIME)
            begins_at = archive.tell() + LOCAL_HEADER_BYTES + len(name.encode()) + FIELD_HEADER_BYTES
            padding = -begins_at % ALIGNMENT
            entry.extra = PADDING_FIELD.to_bytes(2, "little") + padding.to_bytes(2, "little") + bytes(padding)
            writer.writestr(entry, content)
    return archive.getvalue()
