"""Attributes read from voxels: those of the field, on the side of the surface that is asked for."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.engines.trellis2.attributes import VoxelAttributes
from pipeline.engines.trellis2.engine import VERTEX_BITS
from pipeline.mesh.bake import bake
from pipeline.mesh.clean import clean
from pipeline.mesh.packing import on_grid
from pipeline.mesh.simplify import simplify
from pipeline.mesh.tri_mesh import TriMesh
from pipeline.mesh.unwrap import unwrap
from tests.mesh.shapes import joined, torus
from tests.mesh.texels import psnr, spread

RESOLUTION, SIZE = 256, 2048


def field(points: NDArray[np.floating]) -> NDArray[np.float64]:
    """Six smooth channels in the project's frame: (P, 3) -> (P, 6) in [0, 1]."""
    return 0.5 + 0.4 * np.sin(5 * points.sum(axis=1)[:, None] + 3 * points[:, :1] + np.arange(6))


def voxels_around(surface: TriMesh) -> VoxelAttributes:
    """The voxels that the vertices and middles of faces lie in or next to, with the field's values at their centres."""
    points = np.concatenate([surface.vertices, surface.corners.mean(axis=1)])
    x, y, z = points.T
    model = np.stack([x, -z, y], axis=1)
    low = np.floor((model + 0.5) * RESOLUTION - 0.5).astype(int)
    steps = np.stack(np.meshgrid([0, 1], [0, 1], [0, 1]), axis=-1).reshape(-1, 3)
    coords = np.unique((low[:, None] + steps).reshape(-1, 3), axis=0)
    centres = (coords + 0.5) / RESOLUTION - 0.5
    values = field(np.stack([centres[:, 0], centres[:, 2], -centres[:, 1]], axis=1))
    return VoxelAttributes(surface, coords.astype(np.int16), np.round(values * 255).astype(np.uint8), RESOLUTION)


def test_a_bake_equals_the_field_of_every_channel() -> None:
    surface = clean(torus(120))
    source = voxels_around(surface)
    mesh = simplify(surface, target_faces=len(surface.faces) // 10)
    split = unwrap(mesh, texture_size=SIZE)
    normals = mesh.vertex_normals()[split.source_vertices]
    material = bake(split, normals, source.attributes_at, texture_size=SIZE, chunk_size=8192)
    samples = spread(split, normals, texture_size=SIZE)
    truth = field(samples.points)
    assert material.metallic_roughness is not None and material.alpha_mode == "BLEND"
    found = np.column_stack([samples.read(material.base_colour)[:, :3], samples.read(material.metallic_roughness)])
    for channel in range(5):
        assert psnr(found[:, channel] - truth[:, channel]) >= 38, channel
    assert psnr(samples.read(material.base_colour)[:, 3] - truth[:, 5]) >= 38


def test_a_badly_wound_surface_gives_the_same() -> None:
    surface = clean(torus(60))
    flipped = surface.faces.copy()
    flipped[::2] = flipped[::2, ::-1]
    points, normals = surface.vertices[:300].astype(np.float32), surface.vertex_normals()[:300]
    expected = voxels_around(surface).attributes_at(points, normals)
    found = voxels_around(TriMesh(surface.vertices, flipped)).attributes_at(points, normals)
    np.testing.assert_allclose(found.base_colour, expected.base_colour, atol=1e-6)


def test_a_point_between_voxels_that_do_not_exist_takes_those_nearby() -> None:
    surface = clean(torus(60))
    whole = voxels_around(surface)
    sparse = VoxelAttributes(surface, whole.coords[::3], whole.values[::3], RESOLUTION)
    points, normals = surface.vertices[:300].astype(np.float32), surface.vertex_normals()[:300]
    colours = sparse.attributes_at(points, normals).base_colour
    assert np.abs(colours - field(points)[:, :3]).max() < 0.1


def wavy_sheet(cells: int, *, height: float) -> TriMesh:
    """A sheet that faces +Y, of two waves."""
    axis = np.linspace(-0.4, 0.4, cells + 1)
    x, z = np.meshgrid(axis, axis, indexing="ij")
    number = np.arange(x.size).reshape(x.shape)
    a, b, c, d = (part.ravel() for part in (number[:-1, :-1], number[1:, :-1], number[1:, 1:], number[:-1, 1:]))
    faces = np.concatenate([np.stack([a, c, b], axis=1), np.stack([a, d, c], axis=1)])
    points = np.stack([x, height + 0.05 * np.sin(6 * x) * np.cos(5 * z), z], axis=-1).reshape(-1, 3)
    return TriMesh(points.astype(np.float32), faces.astype(np.int32))


def voxels_of(points: NDArray[np.floating]) -> NDArray[np.int64]:
    """The distinct voxels that points lie in, in the model's frame: (P, 3) -> (N, 3)."""
    x, y, z = points.T
    return np.unique(np.floor((np.stack([x, -z, y], axis=1) + 0.5) * RESOLUTION).astype(np.int64), axis=0)


@pytest.mark.parametrize("faces", [150, 2000])
@pytest.mark.parametrize("gap_voxels", [2, 3, 6])
def test_each_of_two_near_sheets_takes_the_colour_of_its_own_voxels(gap_voxels: int, faces: int) -> None:
    """From two voxels apart on: the trilinear weights of nearer sheets reach into each other's voxels, as published."""
    heights = (0.0011 + gap_voxels / 2 / RESOLUTION, 0.0011 - gap_voxels / 2 / RESOLUTION)
    upper, lower = (wavy_sheet(180, height=height) for height in heights)
    surface = joined(upper, TriMesh(lower.vertices, lower.faces[:, ::-1].copy()))
    red, blue = (voxels_of(wavy_sheet(800, height=height).vertices) for height in heights)
    coords = np.concatenate([red, blue])
    values = np.zeros((len(coords), 6), np.uint8)
    values[: len(red), [0, 5]] = values[len(red) :, [2, 5]] = 255
    order = np.lexsort(coords.T[::-1])
    source = VoxelAttributes(surface, coords[order].astype(np.int16), values[order], RESOLUTION)

    simplified = simplify(surface, target_faces=faces)
    weights = np.random.default_rng(0).dirichlet((1, 1, 1), (len(simplified.faces), 40))
    points = np.einsum("fnk,fki->fni", weights, simplified.corners).reshape(-1, 3).astype(np.float32)
    cross = np.repeat(simplified.face_cross_products(), 40, axis=0)
    normals = (cross / np.linalg.norm(cross, axis=1, keepdims=True)).astype(np.float32)
    colours = source.attributes_at(points, normals).base_colour

    is_upper = normals[:, 1] > 0
    assert 0.4 < is_upper.mean() < 0.6
    assert colours[is_upper, 0].min() > 0.99 and colours[is_upper, 2].max() < 0.01
    assert colours[~is_upper, 2].min() > 0.99 and colours[~is_upper, 0].max() < 0.01


def test_a_million_voxels_with_their_surface_are_pickled_in_less_than_16_bytes_each() -> None:
    """At a twentieth of that number; a surface has two faces for a voxel, which `surface` here has as well."""
    surface = torus(160)
    surface = TriMesh(on_grid(surface.vertices, bits=VERTEX_BITS), surface.faces)
    around = voxels_around(surface)
    voxels = np.sort(np.random.default_rng(0).permutation(len(around.coords))[: len(surface.vertices)])
    source = VoxelAttributes(surface, around.coords[voxels], around.values[voxels], RESOLUTION)
    content = pickle.dumps((surface, source))
    mesh, found = pickle.loads(content)

    assert len(content) < 16 * len(voxels)
    assert found.surface is mesh and found.resolution == RESOLUTION
    assert found.coords.tobytes() == source.coords.tobytes() and found.values.tobytes() == source.values.tobytes()
    assert mesh.vertices.tobytes() == surface.vertices.tobytes()
