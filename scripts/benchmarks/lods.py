"""Compares textures for levels of detail: one of their own, of three sizes, or that of the asset by the nearest points.

Prints the mean error of renderings against those of the asset, the bytes of a GLB, and the CPU seconds of the texture.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
from scipy.spatial import cKDTree

from pipeline.engines.base import Generation, GenerationOptions
from pipeline.engines.preview.engine import PreviewEngine
from pipeline.formats.glb import glb_bytes, unit_normals
from pipeline.formats.material_images import MaterialImages
from pipeline.imaging.decode import decode_image
from pipeline.mesh.bake import bake
from pipeline.mesh.clean import clean
from pipeline.mesh.material import Material
from pipeline.mesh.simplify import simplify
from pipeline.mesh.tri_mesh import TriMesh
from pipeline.mesh.unwrap import unwrap
from pipeline.render.mesh_view import RenderMesh, turntable

RESOLUTION, TEXTURE_SIZE, VIEWS, VIEW_SIZE = 192, 1024, 6, 256
SIZES = (1024, 512, 256)
POINTS_PER_FACE = 12
INSIDE = 0.02
"""How far corners are drawn to the middle of their face, so that the three of them find the same chart."""


def with_own_texture(mesh: TriMesh, generation: Generation, *, texture_size: int) -> RenderMesh:
    """Unwrap and bake, as the export does."""
    normals = unit_normals(mesh.vertex_normals())
    split = unwrap(mesh, texture_size=texture_size)
    of_split = normals[split.source_vertices]
    attributes_at = generation.attribute_source.attributes_at
    material = bake(split, of_split, attributes_at, texture_size=texture_size, chunk_size=8192)
    return RenderMesh(split.vertices, split.faces, of_split, split.uvs, material.base_colour)


def with_shared_texture(mesh: TriMesh, finest: RenderMesh) -> RenderMesh:
    """Give every corner the place in the asset's texture that the nearest point of the asset has."""
    rng = np.random.default_rng(0)
    weights = rng.dirichlet((1, 1, 1), (len(finest.faces), POINTS_PER_FACE))
    points = np.einsum("fkc,fci->fki", weights, finest.vertices[finest.faces]).reshape(-1, 3)
    places = np.einsum("fkc,fci->fki", weights, finest.uvs[finest.faces]).reshape(-1, 2)
    corners = mesh.corners * (1 - INSIDE) + mesh.corners.mean(axis=1, keepdims=True) * INSIDE
    uvs = places[cKDTree(points).query(corners.reshape(-1, 3))[1]].astype(np.float32)
    faces = np.arange(3 * len(mesh.faces), dtype=np.int32).reshape(-1, 3)
    normals = unit_normals(mesh.vertex_normals())[mesh.faces.ravel()]
    return RenderMesh(mesh.corners.reshape(-1, 3).astype(np.float32), faces, normals, uvs, finest.texture)


def glb_size(mesh: RenderMesh) -> int:
    """Bytes of the GLB."""
    material = MaterialImages(Material(mesh.texture))
    return len(
        glb_bytes(vertices=mesh.vertices, faces=mesh.faces, normals=mesh.normals, uvs=mesh.uvs, material=material)
    )


def main(argv: list[str]) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m scripts.benchmarks lods", description=__doc__)
    parser.add_argument("image", type=Path, help="a cut-out")
    parser.add_argument("--faces", type=int, nargs="+", default=[5000, 1000])
    arguments = parser.parse_args(argv)
    image = decode_image(arguments.image.read_bytes())
    generation = PreviewEngine().generate([image], GenerationOptions(seed=1, resolution=RESOLUTION))
    asset = simplify(clean(generation.mesh), target_faces=len(generation.mesh.faces) // 10)
    finest = with_own_texture(asset, generation, texture_size=TEXTURE_SIZE)  # compiles the kernels too
    truth = list(turntable(finest, frames=VIEWS, size=VIEW_SIZE))

    def psnr(mesh: RenderMesh) -> float:
        frames = zip(truth, turntable(mesh, frames=VIEWS, size=VIEW_SIZE), strict=True)
        return float(10 * np.log10(255**2 / np.mean([np.mean((a.astype(float) - b) ** 2) for a, b in frames])))

    print(f"{len(asset.faces)} faces, texture {TEXTURE_SIZE}")
    for count in arguments.faces:
        level = simplify(asset, target_faces=count)
        for size in SIZES:
            started_s = time.process_time()
            own = with_own_texture(level, generation, texture_size=size)
            seconds = time.process_time() - started_s
            print(f"{count:6} faces, own {size:4}: {psnr(own):5.2f} dB  {glb_size(own):8} bytes  {seconds:5.2f} s")
        started_s = time.process_time()
        shared = with_shared_texture(level, finest)
        seconds = time.process_time() - started_s
        print(f"{count:6} faces, shared  : {psnr(shared):5.2f} dB  {seconds:23.2f} s")
    return 0
