from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from pipeline.render.orbit import Camera, intrinsics_of, look_at
from tests.reference.gaussians import quaternion_matrices, render_gaussians

SIZE = 33


def camera() -> Camera:
    return Camera(look_at(np.array([2.0, 0.0, 0.0]), np.zeros(3)), intrinsics_of(math.radians(40)))


def one(*, opacity: float = 0.5, at: float = 0.0, red: float = 1.0, scale: float = 0.05) -> SimpleNamespace:
    dc = (torch.tensor([[red, 0.5, 0.0]]) - 0.5) / 0.28209479177387814
    return SimpleNamespace(
        xyz=torch.tensor([[at, 0.0, 0.0]]),
        scaling=torch.full((1, 3), scale),
        rotation=torch.tensor([[1.0, 0, 0, 0]]),
        opacity=torch.tensor([[opacity]]),
        features_dc=dc,
    )


def joined(*parts: SimpleNamespace) -> SimpleNamespace:
    return SimpleNamespace(**{k: torch.cat([getattr(p, k) for p in parts]) for k in vars(parts[0])})


def test_opacity_compensates_for_the_screen_space_kernel() -> None:
    image = render_gaussians(one(opacity=0.5), camera(), resolution=SIZE)

    variance = (0.05 * SIZE * 1.3737387097 / 2) ** 2  # square pixels
    expected = 0.5 * math.sqrt((variance / (variance + 0.1)) ** 2 + 1e-6)
    assert float(image.alpha[SIZE // 2, SIZE // 2]) == pytest.approx(expected, rel=1e-5)


def test_the_nearer_of_two_hides_the_farther() -> None:
    near, far = one(opacity=0.9, at=0.3, red=1.0), one(opacity=0.9, at=-0.3, red=0.0)

    image = render_gaussians(joined(far, near), camera(), resolution=SIZE)

    middle = image.rgb[:, SIZE // 2, SIZE // 2]
    alpha = [float(render_gaussians(g, camera(), resolution=SIZE).alpha[SIZE // 2, SIZE // 2]) for g in (near, far)]
    assert float(middle[0]) == pytest.approx(alpha[0], rel=1e-6)
    assert float(middle[1]) == pytest.approx(0.5 * (alpha[0] + (1 - alpha[0]) * alpha[1]), rel=1e-6)


def test_no_gaussian_gives_black_and_none_visible_gives_the_background() -> None:
    nothing = SimpleNamespace(**{k: v[:0] for k, v in vars(one()).items()})

    empty = render_gaussians(nothing, camera(), resolution=SIZE, background=(1.0, 1.0, 1.0))
    behind = render_gaussians(one(at=3.0), camera(), resolution=SIZE, background=(1.0, 0.5, 0.0))

    assert not empty.rgb.any()
    assert behind.rgb[:, 4, 4].tolist() == [1.0, 0.5, 0.0]
    assert behind.radii.tolist() == [0]


def test_quaternions_rotate_around_their_axis() -> None:
    quarter = torch.tensor([[math.sqrt(0.5), 0.0, 0.0, math.sqrt(0.5)]])

    turned = quaternion_matrices(quarter)[0] @ torch.tensor([1.0, 0.0, 0.0])

    torch.testing.assert_close(turned, torch.tensor([0.0, 1.0, 0.0]))
