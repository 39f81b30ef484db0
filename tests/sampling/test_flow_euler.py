from __future__ import annotations

import pytest
import torch

from pipeline.sampling.flow_euler import euler_steps, flow_times, sample_flow
from pipeline.sampling.guidance import Evaluate, Guidance, guided_velocity


def test_times_go_from_one_to_zero_and_crowd_near_one_when_rescaled() -> None:
    assert flow_times(4) == [1.0, 0.75, 0.5, 0.25, 0.0]
    assert flow_times(2, rescale_t=3.0) == [1.0, 0.75, 0.0]


def test_at_least_one_step_is_needed() -> None:
    with pytest.raises(ValueError, match="at least 1 step is needed, got 0"):
        flow_times(0)


@pytest.mark.parametrize("steps", [1, 3, 10])
def test_a_straight_flow_ends_exactly_at_the_data(steps: int) -> None:
    noise, data = torch.tensor([4.0, -2.0], dtype=torch.float64), torch.tensor([1.0, 8.0], dtype=torch.float64)

    end = sample_flow(noise, lambda x, t, step: noise - data, times=flow_times(steps, rescale_t=2.0))

    torch.testing.assert_close(end, data)


def test_a_step_of_a_straight_flow_points_to_its_data() -> None:
    noise, data = torch.tensor([4.0]), torch.tensor([1.0])

    for step in euler_steps(noise, lambda x, t, step: noise - data, times=flow_times(5)):
        torch.testing.assert_close(step.denoised(sigma_min=0.0), data)


def test_each_finished_step_is_told() -> None:
    told: list[int] = []

    sample_flow(torch.zeros(1), lambda x, t, step: x, times=flow_times(3), on_step=told.append)

    assert told == [1, 2, 3]


def recording(calls: list[tuple[float, tuple[int, ...], bool]]) -> Evaluate:
    """Velocities that equal the image's number plus one, and 10 without a image."""

    def evaluate(x: torch.Tensor, t: float, images: object, unguided: bool) -> torch.Tensor:
        chosen = tuple(images)  # type: ignore[call-overload]
        calls.append((t, chosen, unguided))
        return torch.tensor([[i + 1.0] for i in chosen] + ([[10.0]] if unguided else []))

    return evaluate


def test_guidance_acts_inside_its_interval_ends_included() -> None:
    calls: list[tuple[float, tuple[int, ...], bool]] = []
    velocity = guided_velocity(recording(calls), Guidance(3.0, (0.25, 0.5)))

    values = [float(velocity(torch.zeros(1), t, 0)) for t in (0.51, 0.5, 0.3, 0.25, 0.24)]

    assert values == [1.0, 4 * 1 - 3 * 10, 4 * 1 - 3 * 10, 4 * 1 - 3 * 10, 1.0]
    assert [unguided for _, _, unguided in calls] == [False, True, True, True, False]


@pytest.mark.parametrize("guidance", [None, Guidance(3.0, (0.9, 0.1))])
def test_an_inverted_interval_means_no_guidance(guidance: Guidance | None) -> None:
    calls: list[tuple[float, tuple[int, ...], bool]] = []

    value = guided_velocity(recording(calls), guidance)(torch.zeros(1), 0.5, 0)

    assert float(value) == 1.0
    assert calls == [(0.5, (0,), False)]


def test_stochastic_mode_takes_the_pictures_in_turn() -> None:
    calls: list[tuple[float, tuple[int, ...], bool]] = []
    velocity = guided_velocity(recording(calls), Guidance(1.0), images=3, mode="stochastic")

    for step in range(4):
        velocity(torch.zeros(1), 0.5, step)

    assert [images for _, images, _ in calls] == [(0,), (1,), (2,), (0,)]


def test_multidiffusion_averages_over_the_pictures_and_has_one_unguided_pass() -> None:
    calls: list[tuple[float, tuple[int, ...], bool]] = []
    velocity = guided_velocity(recording(calls), Guidance(1.0, (0.5, 1.0)), images=3, mode="multidiffusion")

    inside, outside = float(velocity(torch.zeros(1), 0.8, 0)), float(velocity(torch.zeros(1), 0.2, 1))

    assert (inside, outside) == (2 * 2.0 - 10.0, 2.0)
    assert calls == [(0.8, (0, 1, 2), True), (0.2, (0, 1, 2), False)]
