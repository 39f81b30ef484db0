"""Euler integration of a rectified flow from noise (t = 1) to data (t = 0). Knows no model and no guidance."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

Velocity = Callable[[Tensor, float, int], Tensor]
"""Velocity of `x` at time `t` in [0, 1] in step `k`: (x, t, k) -> the shape of x."""


def flow_times(steps: int, *, rescale_t: float = 1.0) -> list[float]:
    """Times from 1 to 0: `steps + 1` even ones, bent by r t / (1 + (r - 1) t) so that more lie near 1 for r > 1.

    Raises:
        ValueError: fewer than one step.
    """
    if steps < 1:
        raise ValueError(f"at least 1 step is needed, got {steps}")
    t = np.linspace(1.0, 0.0, steps + 1)
    return (rescale_t * t / (1 + (rescale_t - 1) * t)).tolist()


@dataclass(frozen=True, eq=False)
class FlowStep:
    """One Euler step.

    Attributes:
        t: the time that it started from.
        before: the sample at `t`.
        velocity: the velocity there.
        after: the sample at the next time.
    """

    t: float
    before: Tensor
    velocity: Tensor
    after: Tensor

    def denoised(self, *, sigma_min: float) -> Tensor:
        """The data that the step's velocity points to."""
        return (1 - sigma_min) * self.before - (sigma_min + (1 - sigma_min) * self.t) * self.velocity


def euler_steps(noise: Tensor, velocity: Velocity, *, times: Sequence[float]) -> Iterator[FlowStep]:
    """Walk through the times, one velocity for each interval.

    Source: Liu et al. 2022, arXiv 2209.03003, section 2.1.
    """
    x = noise
    for step, (t, t_next) in enumerate(itertools.pairwise(times)):
        v = velocity(x, t, step)
        after = x - (t - t_next) * v
        yield FlowStep(t, x, v, after)
        x = after


def sample_flow(
    noise: Tensor, velocity: Velocity, *, times: Sequence[float], on_step: Callable[[int], None] = lambda step: None
) -> Tensor:
    """The sample at the last time; `on_step` is called with the number of each finished step."""
    x = noise
    for number, step in enumerate(euler_steps(noise, velocity, times=times), start=1):
        x = step.after
        on_step(number)
    return x
