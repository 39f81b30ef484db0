from __future__ import annotations

import math

import pytest
import torch

from pipeline.nn.embeddings import TimestepEmbedder, position_embedding, timestep_sinusoids


@pytest.mark.parametrize("dim", [2, 5, 8])
def test_a_time_becomes_cosines_then_sines_then_a_zero_if_the_width_is_odd(dim: int) -> None:
    t, half = 0.7, dim // 2
    frequencies = [10000.0 ** (-i / half) for i in range(half)]
    expected = [math.cos(t * f) for f in frequencies] + [math.sin(t * f) for f in frequencies] + [0.0] * (dim % 2)

    found = timestep_sinusoids(torch.tensor([t]), dim)

    assert found.dtype == torch.float32
    assert found[0].tolist() == pytest.approx(expected, abs=1e-6)


def test_the_embedder_maps_every_time_on_its_own() -> None:
    embedder = TimestepEmbedder(6, frequency_embedding_size=8)
    times = torch.tensor([0.0, 3.0, 999.0])

    with torch.no_grad():
        together = embedder(times)

        assert together.shape == (3, 6)
        torch.testing.assert_close(together[1:2], embedder(times[1:2]))
        assert embedder(times[:0]).shape == (0, 6)


@pytest.mark.parametrize(("axes", "channels"), [(1, 4), (3, 12), (3, 64)])
def test_a_position_becomes_sines_then_cosines_of_each_axis_padded_with_zeros(axes: int, channels: int) -> None:
    position = [2, 0, 5][:axes]
    count = channels // axes // 2
    expected: list[float] = []
    for coordinate in position:
        angles = [coordinate / 10000 ** (i / count) for i in range(count)]
        expected += [math.sin(angle) for angle in angles] + [math.cos(angle) for angle in angles]
    expected += [0.0] * (channels - len(expected))

    found = position_embedding(torch.tensor([position], dtype=torch.int32), channels)

    assert found.dtype == torch.float32
    assert found[0].tolist() == pytest.approx(expected, abs=1e-6)


def test_no_positions_give_no_rows() -> None:
    assert position_embedding(torch.zeros((0, 3), dtype=torch.int32), 64).shape == (0, 64)
