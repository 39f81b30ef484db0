"""Baked materials: every channel equals its field, holes have no rim of another colour, the mode follows the data."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.mesh.bake import Detail, bake, colour_vertices
from pipeline.mesh.clean import clean
from pipeline.mesh.clean_open import clean_open
from pipeline.mesh.material import SurfaceAttributes, alpha_mode_of
from pipeline.mesh.nearest_surface import NearestSurface
from pipeline.mesh.simplify import simplify
from pipeline.mesh.tangents import vertex_tangents
from pipeline.mesh.tri_mesh import TriMesh
from pipeline.mesh.unwrap import UnwrappedMesh, unwrap
from pipeline.render.mesh_view import AMBIENT, RenderMesh, render_view
from pipeline.render.orbit import Camera, orbit_cameras
from tests.mesh.shapes import box, hemisphere, of_field, organic, torus
from tests.mesh.texels import Samples, psnr, spread

SIZE = 1024
SHAPES = {"torus": torus, "box": box, "hemisphere": hemisphere}


@cache
def unwrapped_of(name: str) -> tuple[UnwrappedMesh, NDArray[np.float32]]:
    """A simplified shape and the normals of its split vertices."""
    surface = (clean_open if name == "hemisphere" else clean)(SHAPES[name](80))
    mesh = simplify(surface, target_faces=len(surface.faces) // 10)
    split = unwrap(mesh, texture_size=SIZE)
    return split, mesh.vertex_normals()[split.source_vertices]


def wave(points: NDArray[np.float32], phase: float) -> NDArray[np.float32]:
    """(P,) between 0.1 and 0.9."""
    return (0.5 + 0.4 * np.sin(9 * points.sum(axis=1) + 5 * points[:, 0] + phase)).astype(np.float32)


def glass(points: NDArray[np.float32], normals: NDArray[np.float32]) -> SurfaceAttributes:
    """All attributes, each with a field of its own."""
    colour = np.stack([wave(points, phase) for phase in (0.0, 1.0, 2.0)], axis=1)
    return SurfaceAttributes(colour, wave(points, 3.0), wave(points, 4.0), wave(points, 5.0))


@pytest.mark.parametrize("name", SHAPES)
def test_every_channel_equals_its_field_at_seams_too(name: str) -> None:
    split, normals = unwrapped_of(name)
    material = bake(split, normals, glass, texture_size=SIZE, chunk_size=8192)
    assert material.alpha_mode == "BLEND" and material.metallic_roughness is not None
    samples = spread(split, normals, texture_size=SIZE)
    truth = glass(samples.points, samples.normals)
    colour = samples.read(material.base_colour)
    both = samples.read(material.metallic_roughness)
    pairs = {
        "base colour": (colour[:, :3], truth.base_colour),
        "alpha": (colour[:, 3], truth.alpha),
        "metallic": (both[:, 0], truth.metallic),
        "roughness": (both[:, 1], truth.roughness),
    }
    for channel, (found, expected) in pairs.items():
        difference = found - expected
        inside = psnr(difference[~samples.at_edge])
        assert psnr(difference) >= 38, channel
        assert psnr(difference[samples.at_edge]) >= inside - 2, channel


def net(points: NDArray[np.float32], normals: NDArray[np.float32]) -> SurfaceAttributes:
    """A red net over nothing; what is cut away is black, as networks and image files have it."""
    alpha = (np.sin(40 * points[:, 0]) * np.sin(40 * points[:, 1]) < 0.3).astype(np.float32)
    red = np.tile(np.float32([0.9, 0.1, 0.1]), (len(points), 1))
    return SurfaceAttributes(red * alpha[:, None], alpha)


def test_the_rims_of_holes_have_the_colour_of_what_is_seen() -> None:
    split, normals = unwrapped_of("torus")
    material = bake(split, normals, net, texture_size=SIZE, chunk_size=8192)
    assert material.alpha_mode == "MASK"
    seen = spread(split, normals, texture_size=SIZE).read(material.base_colour)
    rim = (seen[:, 3] > 0.02) & (seen[:, 3] < 0.98)
    assert rim.sum() > 1000
    assert np.abs(seen[rim, :3] - (0.9, 0.1, 0.1)).max() < 2 / 255
    # Also two mip levels down, where the filter reads four by four texels.
    reduced = material.base_colour.reshape(SIZE // 4, 4, SIZE // 4, 4, 4).mean(axis=(1, 3))
    assert np.abs(reduced[reduced[..., 3] > 0][:, :3] / 255 - (0.9, 0.1, 0.1)).max() < 2 / 255


@pytest.mark.parametrize(
    ("alpha", "mode"),
    [
        (np.ones(10_000), "OPAQUE"),
        (np.full(10_000, 0.97), "OPAQUE"),  # nearly opaque
        (np.r_[np.ones(9_995), np.zeros(5)], "OPAQUE"),  # a few stray texels
        (np.r_[np.ones(9_000), np.zeros(1_000)], "MASK"),
        (np.r_[np.ones(9_000), np.zeros(900), np.linspace(0, 1, 100)], "MASK"),  # with soft rims
        (np.full(10_000, 0.4), "BLEND"),
        (np.r_[np.ones(9_000), np.full(1_000, 0.4)], "BLEND"),  # a window
        (np.r_[np.ones(5_000), np.full(2_000, 0.4), np.zeros(3_000)], "BLEND"),  # glass and holes
        (np.zeros(0), "OPAQUE"),
    ],
)
def test_how_alpha_is_shown_follows_from_its_values(alpha: NDArray[np.floating], mode: str) -> None:
    assert alpha_mode_of(alpha) == mode


def test_an_opaque_surface_has_no_alpha_and_even_materials_have_no_image() -> None:
    def metal(points: NDArray[np.float32], normals: NDArray[np.float32]) -> SurfaceAttributes:
        one = np.ones(len(points), np.float32)
        return SurfaceAttributes(np.full((len(points), 3), 0.5, np.float32), one, one, np.float32(0.2) * one)

    split, normals = unwrapped_of("box")
    material = bake(split, normals, metal, texture_size=512, chunk_size=8192)
    assert material.base_colour.shape == (512, 512, 3) and material.alpha_mode == "OPAQUE"
    assert material.metallic_roughness is None
    assert (material.metallic, material.roughness) == (1.0, pytest.approx(0.2))


def test_a_source_of_roughness_alone_leaves_the_surface_a_dielectric() -> None:
    def rough(points: NDArray[np.float32], normals: NDArray[np.float32]) -> SurfaceAttributes:
        return SurfaceAttributes(np.full((len(points), 3), 0.5, np.float32), roughness=wave(points, 0))

    split, normals = unwrapped_of("box")
    material = bake(split, normals, rough, texture_size=512, chunk_size=8192)
    assert material.metallic_roughness is not None
    assert material.metallic_roughness[..., 0].max() == 0 and np.ptp(material.metallic_roughness[..., 1]) > 150


def test_vertices_have_alpha_where_the_source_has() -> None:
    mesh = clean(torus(40))
    normals = mesh.vertex_normals()
    assert colour_vertices(mesh, normals, glass, chunk_size=500).shape == (len(mesh.vertices), 4)


def test_a_normal_map_halves_the_error_of_the_shading_at_least() -> None:
    fine = clean(lumps())
    coarse = simplify(fine, target_faces=len(fine.faces) // 20)
    samples, shown = shaded(coarse, fine)
    truth = NearestSurface(fine).normals_at(samples.points, samples.normals)
    before, after = mean_angle(samples.normals, truth), mean_angle(shown, truth)
    assert before > 3 and after < before / 2, (before, after)


def with_normal_map(
    coarse: TriMesh, fine: TriMesh
) -> tuple[UnwrappedMesh, NDArray[np.float64], NDArray[np.float64], NDArray[np.uint8]]:
    """The unwrapped coarse surface, the normals and tangents (V, 4) of its vertices, and its map of the fine one."""
    split = unwrap(coarse, texture_size=SIZE)
    normals = coarse.vertex_normals()[split.source_vertices]
    tangents = vertex_tangents(split.vertices, split.faces, normals, split.uvs)
    detail = Detail(NearestSurface(fine).normals_at, tangents)
    image = bake(split, normals, glass, texture_size=SIZE, chunk_size=8192, detail=detail).normal
    assert image is not None
    return split, normals, tangents, image


def test_rendered_from_eight_sides_a_normal_map_halves_the_error_of_the_shading_at_least() -> None:
    fine = clean(lumps(80))
    coarse = simplify(fine, target_faces=len(fine.faces) // 20)
    split, normals, tangents, image = with_normal_map(coarse, fine)
    before, after = [], []
    for camera in orbit_cameras(8, radius=2.2, fov_rad=0.6):
        truth, is_fine = rendered(fine.vertices, fine.faces, fine.vertex_normals(), camera)
        plain, is_coarse = rendered(split.vertices, split.faces, normals, camera)
        across = np.cross(normals, tangents[:, :3]) * tangents[:, 3:]
        frame = [rendered(split.vertices, split.faces, axis, camera)[0] for axis in (tangents[:, :3], across, normals)]
        view = RenderMesh(split.vertices, split.faces, towards(camera, np.ones(len(normals))), split.uvs, image)
        mapped = sum(
            axis * share[..., None]
            for axis, share in zip(
                frame, np.moveaxis(render_view(view, camera, size=256)[..., :3] / 255.0 * 2 - 1, 2, 0), strict=True
            )
        )
        both = is_fine & is_coarse
        before.append(mean_angle(unit(plain[both]), unit(truth[both])))
        after.append(mean_angle(unit(mapped[both]), unit(truth[both])))
    assert np.mean(before) > 3 and np.mean(after) <= np.mean(before) / 2, (before, after)


def towards(camera: Camera, cosine: NDArray[np.floating]) -> NDArray[np.float32]:
    """Vectors (V, 3) of a mesh whose component toward the camera is given, (V,): its light interpolates them."""
    x, y, z = -camera.world_to_camera[2, :3]
    return (cosine[:, None] * np.array([x, z, -y])).astype(np.float32)


def rendered(
    vertices: NDArray[np.float32], faces: NDArray[np.int32], vectors: NDArray[np.floating], camera: Camera
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Interpolated vectors (V, 3) of vertices at the pixels, (256, 256, 3), and which pixels the body covers."""
    white, uvs = np.full((2, 2, 3), 255, np.uint8), np.full((len(vertices), 2), 0.5, np.float32)
    channels = []
    for axis in range(3):
        view = RenderMesh(vertices, faces, towards(camera, 0.5 + 0.5 * vectors[:, axis]), uvs, white)
        image = render_view(view, camera, size=256)
        channels.append((image[..., 0] / 255 - AMBIENT) / (1 - AMBIENT) * 2 - 1)
    return np.stack(channels, axis=2), image[..., 3] == 255


def unit(vectors: NDArray[np.floating]) -> NDArray[np.floating]:
    """Vectors of length 1: (P, 3) -> (P, 3)."""
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def lumps(cells: int = 120) -> TriMesh:
    """A body with relief that does not survive simplification."""
    axis = np.linspace(-0.5, 0.5, cells + 1)
    x, y, z = np.meshgrid(axis, axis, axis, indexing="ij")
    return of_field(np.sqrt(x**2 + y**2 + z**2) - 0.4 - 0.006 * np.sin(60 * x) * np.sin(60 * y) * np.sin(60 * z))


def shaded(coarse: TriMesh, fine: TriMesh) -> tuple[Samples, NDArray[np.float64]]:
    """Points, and the normals that a renderer shades them with: the map's in the frame of interpolated tangents."""
    split, normals, tangents, image = with_normal_map(coarse, fine)
    samples = spread(split, normals, texture_size=SIZE)
    along = spread(split, tangents[:, :3], texture_size=SIZE).normals  # at the same points
    sign = spread(split, tangents[:, 3:], texture_size=SIZE).normals
    across = np.cross(samples.normals, along) * sign
    x, y, z = (samples.read(image) * 2 - 1).T[:, :, None]
    mixed = x * along + y * across + z * samples.normals
    return samples, mixed / np.linalg.norm(mixed, axis=1, keepdims=True)


def mean_angle(one: NDArray[np.floating], other: NDArray[np.floating]) -> float:
    """In degrees."""
    return float(np.degrees(np.arccos(np.clip((one * other).sum(axis=1), -1, 1))).mean())


def test_without_relief_the_map_changes_nothing() -> None:
    surface = clean(organic(60))
    samples, shown = shaded(surface, surface)
    angle = np.degrees(np.arccos(np.clip((samples.normals * shown).sum(axis=1), -1, 1)))
    assert angle.mean() < 0.35 and np.percentile(angle, 99) < 1  # that of 8 bits
