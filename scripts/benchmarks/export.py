"""Compares the export of a large mesh with a common recipe (pyvista decimation, full xatlas, cv2.inpaint) in one run.

Needs the extra `bench`.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree
from skimage.measure import marching_cubes

from pipeline.mesh.bake import bake, own_texels
from pipeline.mesh.clean import clean
from pipeline.mesh.material import SurfaceAttributes
from pipeline.mesh.simplify import simplify
from pipeline.mesh.tri_mesh import TriMesh
from pipeline.mesh.unwrap import UnwrappedMesh, unwrap

TEXTURE_SIZE = 1024
LEAST_SPEEDUP, MOST_ERROR = 9.0, 1.2


def organic_mesh(cells: int) -> TriMesh:
    """A lumpy closed surface from a grid; 300 cells give about 552,000 faces."""
    axis = np.linspace(-0.5, 0.5, cells).astype(np.float32)
    x, y, z = np.meshgrid(axis, axis, axis, indexing="ij")
    radius = np.sqrt(x * x + y * y + z * z)
    field = radius - 0.34 - 0.04 * np.sin(14 * x) * np.sin(13 * y + 1) * np.sin(15 * z + 2)
    vertices, faces, _, _ = marching_cubes(field, 0.0, gradient_direction="ascent")
    return TriMesh((vertices / (cells - 1) - 0.5).astype(np.float32), faces.astype(np.int32))


def colours(points: NDArray[np.float32]) -> NDArray[np.float32]:
    """A smooth colour field."""
    return (0.5 + 0.4 * np.sin(9 * points + np.float32([0, 1, 2]))).astype(np.float32)


def attributes(points: NDArray[np.float32], normals: NDArray[np.float32]) -> SurfaceAttributes:
    """The same, as a source."""
    return SurfaceAttributes(colours(points))


def sample(mesh: TriMesh, count: int, seed: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Points spread evenly over a surface, and its unit normals there."""
    rng = np.random.default_rng(seed)
    cross = mesh.face_cross_products()
    area = np.linalg.norm(cross, axis=1)
    face = rng.choice(len(area), count, p=area / area.sum())
    weights = rng.dirichlet((1, 1, 1), count)
    points = np.einsum("nk,nki->ni", weights, mesh.corners[face].astype(np.float64))
    return points, cross[face] / area[face, None]


def mean_error(result: TriMesh, truth: TriMesh) -> float:
    """Mean distance, metres, of a surface from the tangent planes of the true one at the nearest points."""
    points, _ = sample(result, 100_000, 1)
    places, normals = sample(truth, 1_500_000, 2)
    nearest = cKDTree(places).query(points)[1]
    return float(np.abs(((points - places[nearest]) * normals[nearest]).sum(axis=1)).mean())


def ours(mesh: TriMesh, target: int, note: Callable[[str, float], None]) -> TriMesh:
    started = time.process_time()
    small = simplify(clean(mesh), target_faces=target)
    note("clean and simplify", time.process_time() - started)
    started = time.process_time()
    unwrapped = unwrap(small, texture_size=TEXTURE_SIZE)
    note("unwrap", time.process_time() - started)
    started = time.process_time()
    normals = small.vertex_normals()[unwrapped.source_vertices]
    bake(unwrapped, normals, attributes, texture_size=TEXTURE_SIZE, chunk_size=8192)
    note("bake and dilate", time.process_time() - started)
    return small


def usual(mesh: TriMesh, target: int, note: Callable[[str, float], None]) -> TriMesh:
    import pyvista
    import xatlas

    started = time.process_time()
    cells = np.column_stack([np.full(len(mesh.faces), 3), mesh.faces]).ravel()
    small = pyvista.PolyData(mesh.vertices, cells).decimate(1 - target / len(mesh.faces))
    vertices = np.asarray(small.points, np.float32)
    faces = np.asarray(small.faces).reshape(-1, 4)[:, 1:].astype(np.int32)
    note("clean and simplify", time.process_time() - started)
    started = time.process_time()
    source, indices, uvs = xatlas.parametrize(vertices, faces.astype(np.uint32))
    note("unwrap", time.process_time() - started)
    started = time.process_time()
    split = UnwrappedMesh(vertices[source], indices.astype(np.int32), uvs, source.astype(np.int32))
    face, weights = own_texels(split, texture_size=TEXTURE_SIZE)
    owned = face >= 0
    points = (split.vertices[split.faces[face[owned]]] * weights[owned][:, :, None]).sum(axis=1)
    texture = np.zeros((TEXTURE_SIZE, TEXTURE_SIZE, 3), np.uint8)
    texture[owned] = (colours(points) * 255).astype(np.uint8)
    cv2.inpaint(texture, (~owned).astype(np.uint8), 3, cv2.INPAINT_TELEA)
    note("bake and dilate", time.process_time() - started)
    return TriMesh(vertices, faces)


def main(argv: list[str]) -> int:
    """Print the table; return 0 if both targets are met."""
    parser = argparse.ArgumentParser(prog="bench.py export", description=__doc__)
    parser.add_argument("--cells", type=int, default=342, help="cells of the grid along each side")
    cells = parser.parse_args(argv).cells
    ours(organic_mesh(40), 500, lambda stage, seconds: None)  # compiles the kernels
    mesh = organic_mesh(cells)
    target = len(mesh.faces) // 10
    results = {}
    for name, recipe in (("ours", ours), ("usual", usual)):
        stages: dict[str, float] = {}
        small = recipe(mesh, target, stages.__setitem__)
        results[name] = stages | {"total": sum(stages.values())}, mean_error(small, mesh) * cells, len(small.faces)
    print(f"{len(mesh.faces)} faces to {target}, texture {TEXTURE_SIZE}")
    for stage in results["ours"][0]:
        first, second = (results[name][0][stage] for name in ("ours", "usual"))
        print(f"{stage:<20} ours {first:7.2f} s   usual {second:7.2f} s   ratio {second / first:5.1f}")
    speedup = results["usual"][0]["total"] / results["ours"][0]["total"]
    error = results["ours"][1] / results["usual"][1]
    print(f"faces                ours {results['ours'][2]}   usual {results['usual'][2]}")
    print(f"mean error, voxels   ours {results['ours'][1]:.4f}   usual {results['usual'][1]:.4f}   ratio {error:.2f}")
    return 0 if speedup >= LEAST_SPEEDUP and error <= MOST_ERROR else 1
