"""Unwrapping and baking: no texel with two owners, and a texture that equals the surface, seams included."""

from __future__ import annotations

from functools import cache

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.mesh.bake import NO_FACE, bake, colour_vertices, own_texels
from pipeline.mesh.clean import clean
from pipeline.mesh.material import SurfaceAttributes
from pipeline.mesh.simplify import simplify
from pipeline.mesh.tri_mesh import TriMesh
from pipeline.mesh.unwrap import UnwrappedMesh, unwrap
from tests.mesh.shapes import box, of_field, organic, stalks, tetrahedron, torus
from tests.mesh.texels import psnr, spread, times_owned

SIZE = 1024
SHAPES = {"torus": torus, "box": box, "organic": organic}


def colour_at(points: NDArray[np.float32]) -> NDArray[np.float32]:
    """A colour that is known everywhere; it does not depend on how many points are asked for at once."""
    return (0.5 + 0.4 * np.sin(11 * points + np.float32([0, 1, 2]))).astype(np.float32)


def field(points: NDArray[np.float32], normals: NDArray[np.float32]) -> SurfaceAttributes:
    """A source of colours alone."""
    return SurfaceAttributes(colour_at(points))


@cache
def small(name: str) -> TriMesh:
    mesh = clean(SHAPES[name](80))
    return simplify(mesh, target_faces=len(mesh.faces) // 10)


@cache
def unwrapped_of(name: str) -> UnwrappedMesh:
    return unwrap(small(name), texture_size=SIZE)


def texture_of(
    unwrapped: UnwrappedMesh, mesh: TriMesh, *, size: int = SIZE, chunk_size: int = 8192
) -> NDArray[np.uint8]:
    normals = mesh.vertex_normals()[unwrapped.source_vertices]
    return bake(unwrapped, normals, field, texture_size=size, chunk_size=chunk_size).base_colour


@pytest.mark.parametrize("name", SHAPES)
def test_no_texel_has_two_owners(name: str) -> None:
    assert times_owned(unwrapped_of(name), SIZE).max() == 1


def test_folded_and_thin_shapes_have_no_texel_with_two_owners_either() -> None:
    for mesh in (stalks(), of_field(np.random.default_rng(2).normal(size=(12, 12, 12)))):
        unwrapped = unwrap(clean(mesh), texture_size=512)
        assert times_owned(unwrapped, 512).max() == 1
        assert unwrapped.uvs.min() >= 0 and unwrapped.uvs.max() <= 1


@pytest.mark.parametrize("name", SHAPES)
def test_the_texture_equals_the_field_at_seams_too(name: str) -> None:
    mesh, unwrapped = small(name), unwrapped_of(name)
    samples = spread(unwrapped, mesh.vertex_normals()[unwrapped.source_vertices], texture_size=SIZE)
    difference = samples.read(texture_of(unwrapped, mesh)) - colour_at(samples.points)
    assert samples.at_edge.sum() > 300
    assert psnr(difference) >= 38
    assert psnr(difference[samples.at_edge]) >= psnr(difference[~samples.at_edge]) - 2


def test_chunk_size_changes_only_the_points_per_call() -> None:
    mesh, asked = small("box"), []

    def counting(points: NDArray[np.float32], normals: NDArray[np.float32]) -> SurfaceAttributes:
        asked.append(len(points))
        return field(points, normals)

    unwrapped = unwrapped_of("box")
    normals = mesh.vertex_normals()[unwrapped.source_vertices]
    baked = [bake(unwrapped, normals, counting, texture_size=SIZE, chunk_size=size) for size in (997, 12_000)]
    assert (
        np.array_equal(*(material.base_colour for material in baked)) and max(asked) <= 12_000 and min(asked[:5]) == 997
    )
    vertices = [colour_vertices(mesh, mesh.vertex_normals(), field, chunk_size=size) for size in (1, 5000)]
    assert np.array_equal(*vertices)


def test_dilation_repeats_owned_texels() -> None:
    mesh = tetrahedron(scale=0.5)
    unwrapped = unwrap(mesh, texture_size=512)
    texture = texture_of(unwrapped, mesh, size=512)
    owned = own_texels(unwrapped, texture_size=512)[0] != NO_FACE
    colours = {tuple(colour) for colour in texture[owned].tolist()}
    assert owned.any() and not owned.all()
    assert {tuple(colour) for colour in texture[~owned].tolist()} <= colours


def test_unwrapping_keeps_the_faces_and_is_repeatable() -> None:
    mesh = small("torus")
    first, second = (unwrap(mesh, texture_size=512) for _ in range(2))
    assert np.array_equal(first.uvs, second.uvs) and np.array_equal(first.faces, second.faces)
    assert np.array_equal(first.source_vertices[first.faces], mesh.faces)


def test_a_mesh_without_faces_has_no_atlas() -> None:
    with pytest.raises(ValueError, match="no atlas"):
        unwrap(TriMesh(np.zeros((0, 3), np.float32), np.zeros((0, 3), np.int32)), texture_size=512)


def seam_steps(unwrapped: UnwrappedMesh, texture: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Largest difference of a channel across the middle of each seam edge, where both charts are read: (E,)."""
    pairs: dict[tuple[int, int], list[NDArray[np.float32]]] = {}
    for face in unwrapped.faces:
        for start, end in zip(face, np.roll(face, -1), strict=True):
            a, b = (int(unwrapped.source_vertices[corner]) for corner in (start, end))
            pairs.setdefault((min(a, b), max(a, b)), []).append(unwrapped.uvs[[start, end]].mean(axis=0))
    both = np.array([uvs for uvs in pairs.values() if len(uvs) == 2 and not np.allclose(*uvs, atol=1e-6)])
    size = len(texture)
    at = (both * size - 0.5).astype(np.float32)
    x, y = at[..., 0], at[..., 1]
    read = cv2.remap(texture.astype(np.float32), x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return np.abs(read[:, 0] - read[:, 1]).max(axis=1)


@pytest.mark.parametrize("name", SHAPES)
def test_no_seam_is_seen_in_the_first_mipmap_levels(name: str) -> None:
    """At level 4 a texel, of 16 x 16, is as wide as the gap between these charts; behind it, neighbours' colours reach
    in. What is left there, 8 to 10, is the field's own change within a texel."""
    unwrapped = unwrapped_of(name)
    level = texture_of(unwrapped, small(name)).astype(np.float32)
    steps = []
    for _ in range(5):
        steps.append(np.quantile(seam_steps(unwrapped, level), 0.95))
        level = level.reshape(len(level) // 2, 2, len(level) // 2, 2, 3).mean(axis=(1, 3))

    assert len(seam_steps(unwrapped, level)) > 100
    assert steps[0] < 2 and steps[1] < 2 and steps[2] < 3 and steps[3] < 8 and steps[4] < 14, steps  # of 255
