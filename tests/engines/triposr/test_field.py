from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from pipeline.engines.triposr.field import PLANE_AXES, TriplaneField
from pipeline.engines.triposr.spec import RELEASED, RendererSpec
from pipeline.engines.triposr.triplane import NeRFMLP
from pipeline.nn.deterministic_weights import fill_deterministic
from tests.engines.triposr.small_field import small_field


@pytest.fixture(scope="module")
def field() -> TriplaneField:
    return small_field()


@pytest.mark.parametrize("count", [0, 1, 50])
def test_the_field_equals_grid_samples_of_the_planes_through_the_decoder_in_float64(count: int) -> None:
    decoder = NeRFMLP(RELEASED.decoder).double()
    fill_deterministic(decoder, seed=3)
    planes = torch.randn((3, 40, 5, 7), dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    points = 2.4 * torch.rand((count, 3), dtype=torch.float64, generator=torch.Generator().manual_seed(2)) - 1.2
    renderer = RendererSpec(radius=1.0)

    with torch.inference_mode():
        found = TriplaneField.of(decoder, planes, renderer=renderer).at(points, chunk_size=1)
        places = torch.stack([points[:, axes] for axes in PLANE_AXES])[:, None]  # (3, 1, N, 2)
        sampled = F.grid_sample(planes, places, align_corners=False)[:, :, 0]  # (3, C, N), zeros outside
        expected = decoder(sampled.movedim(-1, 0).flatten(1))

    torch.testing.assert_close(torch.cat([found.density, found.features], dim=1), expected)


def test_bricks_equal_their_points(field: TriplaneField) -> None:
    coords = 2 * torch.rand((9, 3, 4), generator=torch.Generator().manual_seed(0)) - 1
    points = torch.stack(
        torch.broadcast_tensors(coords[:, 0, :, None, None], coords[:, 1, None, :, None], coords[:, 2, None, None, :]),
        dim=-1,
    )

    with torch.inference_mode():
        bricks = field.on_bricks(coords, chunk_size=1000)
        expected = field.at(points.reshape(-1, 3) * field.renderer.radius, chunk_size=1000).density_act

    torch.testing.assert_close(bricks.flatten(), expected[:, 0], rtol=1e-4, atol=1e-6)  # float32, other sums


def test_neither_the_chunk_size_nor_the_number_of_threads_changes_a_bit(field: TriplaneField) -> None:
    points = torch.rand((5_000, 3), generator=torch.Generator().manual_seed(0)) * 2 - 1
    bricks = points[:3_000].view(250, 12, 3)[:, :4].mT.contiguous()
    threads = torch.get_num_threads()
    results = []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        try:
            for chunk_size in (1, 1_000, 12_000):
                samples = field.at(points, chunk_size=chunk_size)
                results.append((samples.density, samples.color, field.on_bricks(bricks, chunk_size=chunk_size)))
            assert torch.get_num_threads() == count
        finally:
            torch.set_num_threads(threads)

    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))
