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
from pipeline.formats.glb import PLAIN_GREY, unit_normals
from pipeline.formats.material_images import MaterialImages
from pipeline.mesh.material import ALPHA_CUTOFF, METALLIC, ROUGHNESS
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
    material: MaterialImages | None = None,
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
        material: with PNG or JPEG images; None without a texture.
        is_double_sided: whether the backs of faces are seen.
        up_axis: of the vertices; the file states it. ARKit takes only y.

    Raises:
        ValueError: there is no face, or only some of `uvs`, `uv_faces` and `material` are given.
    """
    if len(faces) == 0:
        raise ValueError("a USDZ needs at least one face, got none")
    if not (uvs is None) == (uv_faces is None) == (material is None):
        raise ValueError("uvs, uv_faces and material must all be given or all be None")
    identifier = Tf.MakeValidIdentifier(name)
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
    textures = {} if material is None else _texture_files(material, identifier)
    names = {channel: name for channel, (name, _) in textures.items()}
    shader = _define_material(stage, f"/{identifier}/material", material, names)
    UsdShade.MaterialBindingAPI.Apply(mesh.GetPrim()).Bind(shader)
    return package({f"{identifier}.usdc": _binary_layer(stage.GetRootLayer()), **dict(textures.values())})


def _texture_files(material: MaterialImages, identifier: str) -> dict[str, tuple[str, bytes]]:
    """Name and content of the image of each channel."""
    files = {}
    for channel, image in material.packed.items():
        suffix = "" if channel == "base_colour" else f"_{channel}"
        files[channel] = f"textures/{identifier}{suffix}{image.spec.ending}", image.content
    return files


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


def _define_material(
    stage: Usd.Stage, path: str, material: MaterialImages | None, texture_names: Mapping[str, str]
) -> UsdShade.Material:
    """A UsdPreviewSurface, with the textures that there are."""
    defined = UsdShade.Material.Define(stage, path)
    surface = UsdShade.Shader.Define(stage, f"{path}/surface")
    surface.CreateIdAttr("UsdPreviewSurface")
    metallic = surface.CreateInput("metallic", Sdf.ValueTypeNames.Float)
    roughness = surface.CreateInput("roughness", Sdf.ValueTypeNames.Float)
    if "metallic_roughness" in texture_names:
        packed = _define_texture(stage, path, "metallic_roughness", texture_names["metallic_roughness"])
        metallic.ConnectToSource(packed.ConnectableAPI(), "b")
        roughness.ConnectToSource(packed.ConnectableAPI(), "g")
    else:
        metallic.Set(METALLIC if material is None else material.material.metallic)
        roughness.Set(ROUGHNESS if material is None else material.material.roughness)
    colour = surface.CreateInput("diffuseColor", Sdf.ValueTypeNames.Color3f)
    if material is None:
        colour.Set(Gf.Vec3f(*PLAIN_GREY[:3]))
    else:
        texture = _define_texture(stage, path, "base_colour", texture_names["base_colour"])
        colour.ConnectToSource(texture.ConnectableAPI(), "rgb")
        if material.material.alpha_mode != "OPAQUE":
            texture.CreateOutput("a", Sdf.ValueTypeNames.Float)
            opacity = surface.CreateInput("opacity", Sdf.ValueTypeNames.Float)
            opacity.ConnectToSource(texture.ConnectableAPI(), "a")
        if material.material.alpha_mode == "MASK":  # without a threshold the surface is blended
            surface.CreateInput("opacityThreshold", Sdf.ValueTypeNames.Float).Set(ALPHA_CUTOFF)
    if "normal" in texture_names:
        texture = _define_texture(stage, path, "normal", texture_names["normal"])
        # From bytes in [0, 1] to components in [-1, 1], as the specification asks of 8-bit normal maps.
        texture.CreateInput("scale", Sdf.ValueTypeNames.Float4).Set(Gf.Vec4f(2, 2, 2, 1))
        texture.CreateInput("bias", Sdf.ValueTypeNames.Float4).Set(Gf.Vec4f(-1, -1, -1, 0))
        surface.CreateInput("normal", Sdf.ValueTypeNames.Normal3f).ConnectToSource(texture.ConnectableAPI(), "rgb")
    surface.CreateOutput("surface", Sdf.ValueTypeNames.Token)
    defined.CreateSurfaceOutput().ConnectToSource(surface.ConnectableAPI(), "surface")
    return defined


OUTPUTS = {
    "base_colour": {"rgb": Sdf.ValueTypeNames.Float3},
    "metallic_roughness": {"g": Sdf.ValueTypeNames.Float, "b": Sdf.ValueTypeNames.Float},
    "normal": {"rgb": Sdf.ValueTypeNames.Float3},
}
"""What is always read of the texture of each channel."""


def _define_texture(stage: Usd.Stage, path: str, channel: str, texture_name: str) -> UsdShade.Shader:
    """The texture of a channel; all of them share one reader of texture coordinates."""
    coordinates = UsdShade.Shader.Define(stage, f"{path}/coordinates")
    coordinates.CreateIdAttr("UsdPrimvarReader_float2")
    coordinates.CreateInput("varname", Sdf.ValueTypeNames.String).Set("st")
    coordinates.CreateOutput("result", Sdf.ValueTypeNames.Float2)
    texture = UsdShade.Shader.Define(stage, f"{path}/{channel}")
    texture.CreateIdAttr("UsdUVTexture")
    texture.CreateInput("file", Sdf.ValueTypeNames.Asset).Set(Sdf.AssetPath(texture_name))
    space = "sRGB" if channel == "base_colour" else "raw"
    texture.CreateInput("sourceColorSpace", Sdf.ValueTypeNames.Token).Set(space)
    for axis in ("wrapS", "wrapT"):
        texture.CreateInput(axis, Sdf.ValueTypeNames.Token).Set("clamp")
    texture.CreateInput("st", Sdf.ValueTypeNames.Float2).ConnectToSource(coordinates.ConnectableAPI(), "result")
    for output, kind in OUTPUTS[channel].items():
        texture.CreateOutput(output, kind)
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
