from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from pipeline.sampling.flow_euler import euler_steps, flow_times, sample_flow
from tests.reference.flow import denoised


def test_times_fall_from_one_to_zero_and_rescaling_moves_them_towards_one() -> None:
    assert flow_times(4) == [1.0, 0.75, 0.5, 0.25, 0.0]
    assert flow_times(2, rescale_t=3.0) == [1.0, 0.75, 0.0]


def test_fewer_than_one_step_is_refused() -> None:
    with pytest.raises(ValueError, match="steps must be at least 1, got 0"):
        flow_times(0)


@pytest.mark.parametrize("steps", [1, 3, 10])
def test_a_straight_flow_ends_exactly_at_the_data(steps: int) -> None:
    noise, data = torch.tensor([4.0, -2.0], dtype=torch.float64), torch.tensor([1.0, 8.0], dtype=torch.float64)

    end = sample_flow(noise, lambda x, t, step: noise - data, times=flow_times(steps, rescale_t=2.0))

    torch.testing.assert_close(end, data)


def test_every_step_of_a_straight_flow_predicts_the_data() -> None:
    noise, data = torch.tensor([4.0]), torch.tensor([1.0])

    for step in euler_steps(noise, lambda x, t, step: noise - data, times=flow_times(5)):
        torch.testing.assert_close(denoised(step, sigma_min=0.0), data)


def test_an_exponential_flow_equals_the_product_of_its_euler_factors_in_float64() -> None:
    times = flow_times(7, rescale_t=3.0)
    expected = 1.0
    for t, t_next in pairwise(times):
        expected *= 1 - (t - t_next) * t

    end = sample_flow(torch.ones(1, dtype=torch.float64), lambda x, t, step: t * x, times=times)

    assert float(end) == pytest.approx(expected, rel=1e-14)


def test_an_empty_sample_stays_empty() -> None:
    assert sample_flow(torch.zeros(1, 0, 8), lambda x, t, step: x, times=flow_times(2)).shape == (1, 0, 8)


def test_on_step_receives_the_number_of_each_finished_step() -> None:
    numbers: list[int] = []

    sample_flow(torch.zeros(1), lambda x, t, step: x, times=flow_times(3), on_step=numbers.append)

    assert numbers == [1, 2, 3]
