"""The renderer of radiance fields against its reference, in Triton's interpreter, and its launches for a frame."""

from __future__ import annotations

import math
import traceback
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from pipeline.ops.kernels.dispatch import KERNELS
from pipeline.render.field_kernel import render_rays
from pipeline.render.orbit import Camera, intrinsics_of, look_at, orbit_cameras
from pipeline.render.radiance_field import (
    RadianceField,
    _render_by_kernel,
    _render_in_chunks,
    render_field,
    turntable_frames,
)

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")
"""numpy, which computes in the interpreter, warns where a GPU gives infinity."""

CLOSE = 3e-5  # float32 against float64: coordinates along a ray are 2,000 steps long
BUDGET = 12  # launches for one frame of a turntable; it waits for the frame once


def field_of(
    xyz: list[tuple[int, int, int]], *, side: int = 4, rank: int = 3, entries: int = 2, seed: int = 0
) -> RadianceField:
    generator = torch.Generator().manual_seed(seed)
    count = len(xyz)
    return RadianceField(
        position=(torch.tensor(xyz).reshape(-1, 3) + 0.5) / side,
        depth=torch.full((count,), round(math.log2(side)), dtype=torch.uint8),
        trivec=1 + 0.3 * torch.randn((count, rank, 3, entries), generator=generator),
        density=torch.randn((count, rank), generator=generator) * 4,
        features_dc=torch.randn((count, rank, 3), generator=generator),
    )


def camera_at(*eye: float) -> Camera:
    return Camera(look_at(np.array(eye), np.zeros(3)), intrinsics_of(math.radians(40)))


def both(field: RadianceField, camera: Camera, size: int, **options: Any) -> tuple[torch.Tensor, torch.Tensor]:
    background, jitter = options.get("background", (0.0, 0.0, 0.0)), options.get("jitter")
    shift = options.get("density_shift", 0.0)
    return (
        _render_by_kernel(field, camera, size, background, jitter, shift),
        _render_in_chunks(field, camera, size, background, jitter, shift, 8192),
    )


SCATTERED = [(0, 0, 0), (3, 3, 3), (1, 2, 0), (2, 2, 1), (0, 3, 2), (3, 0, 1)]


@pytest.mark.parametrize("eye", [(2.0, 0.1, 0.3), (-1.0, -1.5, 0.7), (0.3, 0.2, 1.9)])
def test_the_kernel_renders_what_the_reference_renders(eye: tuple[float, float, float]) -> None:
    image, expected = both(field_of(SCATTERED), camera_at(*eye), 16, background=(0.2, 0.4, 0.6))

    assert float(expected[4].max()) > 0.1
    torch.testing.assert_close(image, expected, rtol=0, atol=CLOSE)


def test_one_cell_and_a_size_that_tiles_do_not_divide() -> None:
    image, expected = both(field_of([(1, 1, 2)], rank=1), camera_at(1.5, 1.0, 0.6), 11)

    assert float(expected[4].max()) > 0.01
    torch.testing.assert_close(image, expected, rtol=0, atol=CLOSE)


def test_no_cell_gives_zeros() -> None:
    image = render_field(field_of([]), camera_at(2.0, 0.1, 0.3), resolution=5, chunk_size=512, background=(1, 1, 1))

    assert not image.rgb.any()


def test_a_field_behind_the_camera_gives_zeros_without_the_background() -> None:
    away = Camera(look_at(np.array([2.0, 0.0, 0.0]), np.array([4.0, 0.0, 0.0])), intrinsics_of(0.7))

    image, expected = both(field_of(SCATTERED), away, 6, background=(1.0, 1.0, 1.0))

    assert torch.equal(image, expected)


def test_rays_along_an_axis_and_along_the_faces_of_cells() -> None:
    # An odd size: the middle column and row have a direction of exactly zero along an axis, between two rows of cells.
    image, expected = both(field_of([(0, 1, 1), (0, 2, 2), (3, 2, 1)]), camera_at(2.0, 0.0, 0.0), 9)

    torch.testing.assert_close(image, expected, rtol=0, atol=CLOSE)


def test_a_camera_within_the_field() -> None:
    field, camera = field_of(SCATTERED), Camera(look_at(np.array([0.1, 0.05, 0.02]), np.ones(3)), intrinsics_of(1.2))

    image, expected = both(field, camera, 9)

    assert float(expected[4].max()) > 0.01
    torch.testing.assert_close(image, expected, rtol=0, atol=CLOSE)


def test_cells_of_several_sizes_and_a_shifted_density_and_offsets() -> None:
    fine, coarse = field_of([(0, 0, 0), (1, 0, 0), (7, 7, 6)], side=8, seed=1), field_of([(1, 1, 0), (0, 1, 1)], side=2)
    mixed = RadianceField(
        *(
            torch.cat([getattr(fine, name), getattr(coarse, name)])
            for name in ("position", "depth", "trivec", "density", "features_dc")
        ),
        box=(-0.5, -0.4, -0.3, 1.0, 0.8, 0.6),
    )
    jitter = torch.rand((10, 10), generator=torch.Generator().manual_seed(5))

    image, expected = both(mixed, camera_at(1.4, 1.2, 0.5), 10, jitter=jitter, density_shift=0.25)

    assert float(expected[4].max()) > 0.1
    torch.testing.assert_close(image, expected, rtol=0, atol=CLOSE)


def test_dense_cells_end_a_ray_at_its_first_sample() -> None:
    field = field_of(SCATTERED)
    opaque = RadianceField(field.position, field.depth, field.trivec, field.density.abs() * 1e4, field.features_dc)

    image, expected = both(opaque, camera_at(1.4, 1.2, 0.5), 8)

    assert float(expected[4].max()) == pytest.approx(0.999, abs=1e-5)
    torch.testing.assert_close(image, expected, rtol=0, atol=CLOSE)


@pytest.mark.parametrize("value", [torch.inf, -torch.inf, torch.nan])
def test_a_cell_with_undefined_values_ends_and_leaves_the_other_rays_as_they_are(value: float) -> None:
    field = field_of([(0, 0, 0), (3, 3, 3)])
    clean = _render_in_chunks(field, camera_at(2.0, 0.1, 0.0), 8, (0.0, 0.0, 0.0), None, 0.0, 8192)
    field.density[0] = value

    image = _render_by_kernel(field, camera_at(2.0, 0.1, 0.0), 8, (0.0, 0.0, 0.0), None, 0.0)

    untouched = (image - clean).abs().amax(0) < CLOSE
    assert image.shape == (6, 8, 8)
    assert 0 < int(untouched.sum()) <= 64


def test_a_direction_that_is_not_a_number_ends() -> None:
    packed = field_of(SCATTERED).packed

    image = render_rays(
        table=packed.table,
        level_bits=4,
        vectors=packed.vectors,
        density=packed.density,
        colour=packed.colour,
        pose=[math.nan] * 9 + [2.0, 0.0, 0.0],
        tangents=(0.3, 0.3),
        box=(-0.5, -0.5, -0.5, 1.0, 1.0, 1.0),
        near=0.2,
        size=4,
        offsets=None,
        background=(0.0, 0.0, 0.0),
        density_shift=0.0,
    )

    assert image.shape == (6, 4, 4)


class LaunchCounter(TorchDispatchMode):
    """Counts the operations that would launch a kernel on a GPU, without those of Triton's interpreter."""

    VIEWS = frozenset({"view", "_unsafe_view", "permute", "slice", "select", "unsqueeze", "alias", "detach", "expand"})
    WAITS = frozenset({"_local_scalar_dense", "nonzero", "_unique2", "item"})

    def __init__(self) -> None:
        super().__init__()
        self.launches: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        in_kernel = any("/triton/" in frame.f_code.co_filename for frame, _ in traceback.walk_stack(None))
        if not in_kernel and name not in self.VIEWS and not name.startswith(("empty", "new_empty")):
            self.launches[name] += 1
        return func(*args, **(kwargs or {}))


def test_a_frame_of_a_turntable_stays_within_its_budget() -> None:
    field = field_of([(1, 1, 1)], rank=1)
    frames = turntable_frames(field, orbit_cameras(3), resolution=4, chunk_size=8192, ssaa=2)
    next(frames)  # packs the field
    kernels_before = KERNELS.runs["radiance_field"]

    with LaunchCounter() as counter:
        frame = next(frames)

    operations = counter.launches
    assert KERNELS.runs["radiance_field"] == kernels_before + 1, KERNELS.failures
    assert frame.shape == (4, 4, 3)
    assert not operations.keys() & counter.WAITS, operations
    assert operations.total() + 1 <= BUDGET, operations
