from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from pipeline.sampling.guidance import Evaluate, Guidance, guided_velocity

Evaluation = tuple[float, tuple[int, ...], bool]
"""Time, images, and whether the unguided velocity was requested."""


def recorded(evaluations: list[Evaluation]) -> Evaluate:
    """Velocities that equal the image's number plus one, and 10 without an image."""

    def evaluate(x: torch.Tensor, t: float, images: Sequence[int], unguided: bool) -> torch.Tensor:
        evaluations.append((t, tuple(images), unguided))
        return torch.tensor([[i + 1.0] for i in images] + ([[10.0]] if unguided else []))

    return evaluate


def test_guidance_acts_inside_its_interval_with_both_ends_included() -> None:
    evaluations: list[Evaluation] = []
    velocity = guided_velocity(recorded(evaluations), Guidance(3.0, (0.25, 0.5)))

    values = [float(velocity(torch.zeros(1), t, 0)) for t in (0.51, 0.5, 0.3, 0.25, 0.24)]

    assert values == [1.0, 4 * 1 - 3 * 10, 4 * 1 - 3 * 10, 4 * 1 - 3 * 10, 1.0]
    assert [unguided for _, _, unguided in evaluations] == [False, True, True, True, False]


@pytest.mark.parametrize("guidance", [None, Guidance(3.0, (0.9, 0.1))])
def test_an_inverted_interval_means_no_guidance(guidance: Guidance | None) -> None:
    evaluations: list[Evaluation] = []

    value = guided_velocity(recorded(evaluations), guidance)(torch.zeros(1), 0.5, 0)

    assert float(value) == 1.0
    assert evaluations == [(0.5, (0,), False)]


def test_stochastic_mode_uses_the_images_in_turn() -> None:
    evaluations: list[Evaluation] = []
    velocity = guided_velocity(recorded(evaluations), Guidance(1.0), images=3, mode="stochastic")

    for step in range(4):
        velocity(torch.zeros(1), 0.5, step)

    assert [images for _, images, _ in evaluations] == [(0,), (1,), (2,), (0,)]


def test_multidiffusion_averages_over_the_images_and_has_one_unguided_pass() -> None:
    evaluations: list[Evaluation] = []
    velocity = guided_velocity(recorded(evaluations), Guidance(1.0, (0.5, 1.0)), images=3, mode="multidiffusion")

    inside, outside = float(velocity(torch.zeros(1), 0.8, 0)), float(velocity(torch.zeros(1), 0.2, 1))

    assert (inside, outside) == (2 * 2.0 - 10.0, 2.0)
    assert evaluations == [(0.8, (0, 1, 2), True), (0.2, (0, 1, 2), False)]
