from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from pipeline.render.orbit import Camera, intrinsics_of, look_at, orbit_cameras
from pipeline.render.radiance_field import RadianceField, render_field, turntable_frames

SIZE = 24


def random_field(count: int, *, seed: int = 0, side: int = 8) -> RadianceField:
    generator = torch.Generator().manual_seed(seed)
    cells = torch.randperm(side**3, generator=generator)[:count]
    xyz = torch.stack([cells // side**2, cells // side % side, cells % side], dim=1)
    return RadianceField(
        position=(xyz + 0.5) / side,
        depth=torch.full((count,), round(math.log2(side)), dtype=torch.uint8),
        trivec=1 + 0.3 * torch.randn((count, 3, 3, 4), generator=generator),
        density=torch.randn((count, 3), generator=generator) * 4,
        features_dc=torch.randn((count, 3, 3), generator=generator),
    )


def front() -> Camera:
    return Camera(look_at(np.array([2.0, 0.0, 0.0]), np.zeros(3)), intrinsics_of(math.radians(40)))


def test_one_uniform_cell_attenuates_light_by_its_samples() -> None:
    field = RadianceField(
        position=torch.full((1, 3), 0.5),
        depth=torch.zeros(1, dtype=torch.uint8),
        trivec=torch.ones(1, 1, 3, 8),
        density=torch.full((1, 1), 1.5),
        features_dc=torch.full((1, 1, 3), 2.0),
    )

    image = render_field(field, front(), resolution=1, chunk_size=8192)

    samples = 16  # the cell is one unit deep and samples are a sixteenth apart
    sigma = math.log1p(math.exp(1.5))
    expected = 1 - math.exp(-sigma * samples / 16)
    assert float(image.alpha) == pytest.approx(expected, rel=1e-5)
    colour = 1 / (1 + math.exp(-0.28209479177387814 * 2))
    assert image.rgb.flatten().tolist() == pytest.approx([expected * colour] * 3, rel=1e-5)


@pytest.mark.parametrize("chunk_size", [1, 600, 777])
def test_the_chunk_size_changes_no_bit_of_an_image(chunk_size: int) -> None:
    field = random_field(60)
    camera = orbit_cameras(5)[1]
    whole = render_field(field, camera, resolution=48, chunk_size=10**6, background=(0.2, 0.4, 0.6))

    chunked = render_field(field, camera, resolution=48, chunk_size=chunk_size, background=(0.2, 0.4, 0.6))

    assert torch.equal(chunked.rgb, whole.rgb)
    assert torch.equal(chunked.percent_depth, whole.percent_depth)
    assert float(whole.alpha.max()) > 0.2


def test_permuting_cells_changes_nothing_visible() -> None:
    field = random_field(40)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(1))
    shuffled = RadianceField(
        *(getattr(field, name)[order] for name in ("position", "depth", "trivec", "density", "features_dc"))
    )

    first = render_field(field, front(), resolution=SIZE, chunk_size=8192)
    second = render_field(shuffled, front(), resolution=SIZE, chunk_size=8192)

    torch.testing.assert_close(first.rgb, second.rgb, rtol=0, atol=1e-6)


def test_rays_that_miss_a_visible_field_see_the_background() -> None:
    image = render_field(random_field(1), front(), resolution=SIZE, chunk_size=8192, background=(1.0, 0.5, 0.25))

    assert image.rgb[:, 0, 0].tolist() == [1.0, 0.5, 0.25]


def test_a_field_behind_the_camera_gives_nothing_not_even_background() -> None:
    away = Camera(look_at(np.array([2.0, 0.0, 0.0]), np.array([4.0, 0.0, 0.0])), intrinsics_of(0.7))

    image = render_field(random_field(5), away, resolution=SIZE, chunk_size=8192, background=(1.0, 1.0, 1.0))

    assert not image.rgb.any()
    assert not image.alpha.any()


def test_frames_are_eight_bit_and_counted() -> None:
    told: list[int] = []

    frames = list(
        turntable_frames(
            random_field(20), orbit_cameras(3), resolution=16, chunk_size=8192, ssaa=2, on_frame=told.append
        )
    )

    assert told == [1, 2, 3]
    assert {(frame.shape, frame.dtype) for frame in frames} == {((16, 16, 3), np.dtype(np.uint8))}
    assert not np.array_equal(frames[0], frames[1])


def test_a_camera_sees_its_target_in_the_middle_and_up_above() -> None:
    pose = look_at(np.array([2.0, 0.0, 0.0]), np.zeros(3))

    assert pose @ [0, 0, 0, 1] == pytest.approx([0, 0, 2, 1])
    assert (pose @ [0, 0, 1, 1])[1] < 0  # y points down in the image
    assert (pose @ [0, 1, 0, 1])[0] > 0
    assert Camera(pose, intrinsics_of(1.0)).centre == pytest.approx([2, 0, 0])
