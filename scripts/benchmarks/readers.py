"""Opens the files of one asset with the software that people open them with, and prints what each found as a table.

A reader that is not installed is left out of the table. The packages of npm are installed at the first run; assimp and
PrusaSlicer are Debian's `assimp-utils` and `prusa-slicer`; Blender is any Python with the `bpy` wheel, named by
`--blender`; Open3D is named likewise by `--open3d`, since its wheel fixes versions of packages that this project uses.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import GenerationResult, generate, inspect
from schemas.formats import FORMATS, OUTPUT_FORMATS
from scripts.assets.draw_sample import draw
from tests.npm import packages

JS = Path(__file__).with_name("readers_js")
NAME = "robot"
LIMIT_S = 300
TOLERANCE = 0.01
"""Of an extent, relative."""


@dataclass(frozen=True)
class Found:
    """What a reader found in a file; None where it does not tell.

    Attributes:
        extents: sides of the bounding box along x, y, z, as the reader shows them to its user.
        texture: whether there are colours: a texture, or colours of vertices.
        material: whether the surface is rough and not metallic.
        names: names of objects and materials.
    """

    extents: tuple[float, ...] | None = None
    texture: bool | None = None
    material: bool | None = None
    names: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Reader:
    """A reader, the formats that it opens, and how it shows them.

    Attributes:
        read: opens a file; raises where it cannot.
        turns_up: whether it turns a y-up file so that z is up.
    """

    name: str
    formats: tuple[str, ...]
    read: Callable[[Path], Found]
    turns_up: bool = False


def _run(*command: str | Path) -> str:
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=LIMIT_S, check=False)
    if done.returncode:
        raise RuntimeError((done.stderr or done.stdout).strip().splitlines()[-1])
    return done.stdout


def _node(library: str) -> Callable[[Path], Found]:
    folder = packages((JS / "package.json").read_bytes())
    script = folder / "read.mjs"
    shutil.copy(JS / "read.mjs", script)
    return lambda path: _found(json.loads(_run("node", script, library, path)))


def _found(values: dict[str, Any]) -> Found:
    extents, names = values.get("extents"), values.get("names")
    return Found(
        None if extents is None else tuple(extents),
        values.get("texture"),
        values.get("material"),
        None if names is None else tuple(filter(None, names)),
    )


def _trimesh(path: Path) -> Found:
    import trimesh

    scene = trimesh.load_scene(path, process=False)
    (part,) = scene.geometry.values()
    material = getattr(part.visual, "material", None)
    image = getattr(material, "baseColorTexture", None) or getattr(material, "image", None)
    roughness = getattr(material, "roughnessFactor", None)
    return Found(
        tuple(scene.extents),
        image is not None or part.visual.kind == "vertex",
        None if roughness is None else roughness < 1 and material.metallicFactor == 0,
        (*scene.geometry, *filter(None, [getattr(material, "name", None)])),
    )


def _assimp(path: Path) -> Found:
    text = _run("assimp", "info", path)
    low, high = (
        [float(value) for value in found.groups()]
        for kind in ("Minimum", "Maximum")
        if (found := re.search(rf"{kind} point\s+\(([-\d.e]+) ([-\d.e]+) ([-\d.e]+)\)", text))
    )
    return Found(
        tuple(b - a for a, b in zip(low, high, strict=True)),
        "Texture Refs" in text or bool(re.search(r"Textures \(embed\.\):\s+[1-9]", text)) or ".png" in text,
        None,
        tuple(re.findall(r"[\w ]+", text)) if NAME in text.split(path.name)[-1] else (),
    )


OPEN3D = """
import sys, json, open3d as o3d, numpy as np
path = sys.argv[1]
model = o3d.io.read_triangle_model(path)
meshes = [each.mesh for each in model.meshes] or [o3d.io.read_triangle_mesh(path)]
points = np.concatenate([np.asarray(mesh.vertices) for mesh in meshes])
material = model.materials[0] if model.materials else None
image = material is not None and material.albedo_img is not None and np.asarray(material.albedo_img).size > 0
rough = None if material is None else bool(material.base_roughness < 1 and material.base_metallic == 0)
print(json.dumps({"extents": np.ptp(points, axis=0).tolist(), "texture": bool(image or meshes[0].has_vertex_colors()),
                  "material": rough, "names": [each.mesh_name for each in model.meshes]}))
"""
BLENDER = """
import sys, json, bpy
path = sys.argv[1]
bpy.ops.wm.read_factory_settings(use_empty=True)
operators = {"glb": bpy.ops.import_scene.gltf, "obj": bpy.ops.wm.obj_import, "stl": bpy.ops.wm.stl_import,
             "ply": bpy.ops.wm.ply_import, "usdz": bpy.ops.wm.usd_import}
operators[path.rsplit(".", 1)[1]](filepath=path)
made = [each for each in bpy.data.objects if each.type == "MESH"]
corners = [each.matrix_world @ vertex.co for each in made for vertex in each.data.vertices]
names, image, rough = [each.name for each in bpy.data.objects], False, None
for material in bpy.data.materials:
    names.append(material.name)
    nodes = material.node_tree.nodes if material.node_tree else []
    image |= any(node.type == "TEX_IMAGE" and node.image and node.image.size[0] > 0 for node in nodes)
    for node in nodes:
        if node.type == "BSDF_PRINCIPLED":
            rough = node.inputs["Roughness"].default_value < 1 and node.inputs["Metallic"].default_value == 0
image |= any(len(each.data.color_attributes) for each in made)
extents = [max(c[axis] for c in corners) - min(c[axis] for c in corners) for axis in range(3)]
print("\\n" + json.dumps({"extents": extents, "texture": bool(image), "material": rough, "names": names}))
"""


def _python(interpreter: str, script: str) -> Callable[[Path], Found]:
    command = interpreter.split()
    return lambda path: _found(json.loads(_run(*command, "-c", script, path).strip().splitlines()[-1]))


def _prusa(path: Path) -> Found:
    text = _run("prusa-slicer", "--info", path)
    values = dict(re.findall(r"^(\w+) = (\S+)$", text, re.MULTILINE))
    if values["manifold"] != "yes":
        raise RuntimeError("not manifold")
    return Found(tuple(float(values[f"size_{axis}"]) for axis in "xyz"))


def _usd(path: Path) -> Found:
    from pxr import Usd

    from tests.usd import issues_of

    if issues := issues_of(path):
        raise RuntimeError(issues[0])
    report = inspect(path)
    extents = tuple(np.subtract(report.highest, report.lowest))
    stage = Usd.Stage.Open(str(path))
    names = tuple(prim.GetName() for prim in stage.Traverse())
    rough = any(prim.GetAttribute("inputs:roughness").Get() or 0 for prim in stage.Traverse())
    return Found(extents, report.texture_size is not None, rough, names)


def _lib3mf(path: Path) -> Found:
    import lib3mf

    model: Any = lib3mf.get_wrapper().CreateModel()
    reader = model.QueryReader("3mf")
    reader.SetStrictModeActive(True)
    reader.ReadFromFile(str(path))
    objects = model.GetMeshObjects()
    objects.MoveNext()
    mesh = objects.GetCurrentMeshObject()
    points = np.array([tuple(vertex.Coordinates) for vertex in mesh.GetVertices()])
    return Found(tuple(np.ptp(points, axis=0)), model.GetColorGroups().Count() > 0, None, (mesh.GetName(),))


def readers(*, blender: str | None, open3d: str | None) -> list[Reader]:
    """Those that are installed here."""
    found = [Reader("trimesh", ("glb", "obj", "stl", "ply", "3mf"), _trimesh)]
    if shutil.which("npm"):
        names = {"three": "three.js GLTFLoader", "gltf-transform": "gltf-transform", "gltf-validator": "gltf-validator"}
        found += [Reader(title, ("glb",), _node(name)) for name, title in names.items()]
    if shutil.which("assimp"):
        found.append(Reader("assimp", ("glb", "obj", "stl", "ply", "3mf"), _assimp))
    if open3d:
        found.append(Reader("Open3D", ("glb", "obj", "stl", "ply"), _python(open3d, OPEN3D)))
    if shutil.which("prusa-slicer"):
        found.append(Reader("PrusaSlicer", ("obj", "stl", "3mf"), _prusa))
    if importlib.util.find_spec("pxr"):
        found.append(Reader("usd-core", ("usdz",), _usd))
    found.append(Reader("lib3mf", ("3mf",), _lib3mf))
    if blender:
        formats = ("glb", "obj", "stl", "ply", "usdz")
        found.append(Reader("Blender", formats, _python(blender, BLENDER), turns_up=True))
    return found


def cell(reader: Reader, result: GenerationResult, output_format: str, path: Path) -> str:
    """What one reader found in one file, in a few words."""
    if output_format not in reader.formats:
        return "–"
    try:
        found = reader.read(path)
    except Exception as error:  # noqa: BLE001  # readers raise anything
        return f"fails: {error}"[:60].replace("|", " ").replace("\n", " ")
    words = ["opens"]
    if found.extents is not None:
        low, high = np.array(result.meta["mesh"]["bounds"])
        spec = FORMATS[output_format]
        expected = (high - low) * (spec.default_size_m / FORMATS["glb"].default_size_m * spec.units_per_metre)
        is_z_up = spec.up_axis == "z" or reader.turns_up
        if np.allclose(sorted(found.extents), sorted(expected), rtol=TOLERANCE):
            words.append("size")
        if np.allclose(found.extents, expected[[0, 2, 1]] if is_z_up else expected, rtol=TOLERANCE):
            words.append("upright")
    words += ["colours"] * bool(found.texture) + ["material"] * bool(found.material)
    words += ["names"] * any(NAME in name for name in found.names or ())
    return ", ".join(words)


def main(argv: list[str]) -> int:
    """Print the table; return 0 if every reader opens every file."""
    parser = argparse.ArgumentParser(prog="python -m scripts.benchmarks readers", description=__doc__)
    parser.add_argument("--blender", help="a Python with bpy")
    parser.add_argument("--open3d", help="a Python with open3d")
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        fields = {"resolution": 96, "texture_size": 512, "seed": 7, "file_prefix": NAME}
        result = generate(draw(), output_formats=OUTPUT_FORMATS, **fields)
        result.save(folder)
        rows = [
            [reader.name, *(cell(reader, result, name, Path(folder, f"{NAME}.{name}")) for name in OUTPUT_FORMATS)]
            for reader in readers(blender=arguments.blender, open3d=arguments.open3d)
        ]
    print(f"| reader | {' | '.join(name.upper() for name in OUTPUT_FORMATS)} |")
    print(f"| --- {'| --- ' * len(OUTPUT_FORMATS)}|")
    for row in rows:
        print(f"| {' | '.join(row)} |")
    return int(any("fails" in each for row in rows for each in row))
