"""Euler integration of a rectified flow from noise (t = 1) to data (t = 0). Knows no model and no guidance."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

Velocity = Callable[[Tensor, float, int], Tensor]
"""Velocity of a sample `x` at time `t` in [0, 1] in step `k`: (x, t, k) -> a tensor of the shape of x."""


def flow_times(steps: int, *, rescale_t: float = 1.0) -> list[float]:
    """Return `steps + 1` times from 1 to 0, evenly spaced and then mapped by t -> r t / (1 + (r - 1) t).

    Args:
        steps: number of Euler steps.
        rescale_t: r; above 1 it moves times towards 1, where the sample is mostly noise.

    Raises:
        ValueError: `steps` is below 1.

    Source: Esser et al. 2024, arXiv 2403.03206, eq. 23; r is its square root of m / n.
    """
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    t = np.linspace(1.0, 0.0, steps + 1)
    return (rescale_t * t / (1 + (rescale_t - 1) * t)).tolist()


@dataclass(frozen=True, eq=False)
class FlowStep:
    """One Euler step.

    Attributes:
        t: time at the start of the step.
        before: sample at `t`, of any shape.
        velocity: velocity at `t`, of the shape of the sample.
        after: sample at the next time.
    """

    t: float
    before: Tensor
    velocity: Tensor
    after: Tensor


def euler_steps(noise: Tensor, velocity: Velocity, *, times: Sequence[float]) -> Iterator[FlowStep]:
    """Integrate dx/dt = velocity over the times, with one evaluation per interval, and yield each step.

    Args:
        noise: sample at the first time, of any shape.
        velocity: see `Velocity`.
        times: descending, usually from `flow_times`.

    Source: Liu et al. 2022, arXiv 2209.03003; t is reversed here: 1 is noise, 0 is data.
    """
    x = noise
    for step, (t, t_next) in enumerate(itertools.pairwise(times)):
        v = velocity(x, t, step)
        after = x - (t - t_next) * v  # times descend, so the step is negative
        yield FlowStep(t, x, v, after)
        x = after


def sample_flow(
    noise: Tensor, velocity: Velocity, *, times: Sequence[float], on_step: Callable[[int], None] = lambda step: None
) -> Tensor:
    """Return the sample at the last time, of the shape of `noise`.

    Args:
        noise: sample at the first time.
        velocity: see `Velocity`.
        times: descending, usually from `flow_times`.
        on_step: receives the number of each finished step.
    """
    x = noise
    for number, step in enumerate(euler_steps(noise, velocity, times=times), start=1):
        x = step.after
        on_step(number)
    return x
