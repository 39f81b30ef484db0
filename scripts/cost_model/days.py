"""Arrival times of a day's jobs. Seeded; uses the standard library alone."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

DAY_S = 86_400.0


@dataclass(frozen=True)
class DayShape:
    """How the jobs of a day spread: a wave with its peak in the afternoon, and bursts (a campaign, a batch upload).

    Attributes:
        swing: 0 is even; 1 has no jobs at night.
        peak_s: when the wave is highest.
        burst_share: share of the day's jobs that arrive in bursts.
        bursts: how many bursts there are; each begins anywhere in the day.
        burst_s: how long one lasts.
    """

    swing: float = 0.8
    peak_s: float = 15 * 3600.0
    burst_share: float = 0.3
    bursts: int = 6
    burst_s: float = 300.0


EVEN = DayShape(swing=0.0, burst_share=0.0)


def jobs_of_day(jobs: int, shape: DayShape, *, seed: int) -> list[float]:
    """Seconds since midnight at which the jobs of one day arrive, ascending.

    A nonhomogeneous Poisson process given its count: the points are then independent draws from the rate over its
    integral. The wave is drawn by rejection under its peak, a burst's jobs evenly over the burst.

    Source: P. Lewis, G. Shedler, Simulation of nonhomogeneous Poisson processes by thinning, 1979.
    """
    draw = random.Random(f"{seed}/{jobs}")
    begins_s = [draw.uniform(0, DAY_S - shape.burst_s) for _ in range(shape.bursts)]
    times_s = []
    for _ in range(jobs):
        if begins_s and draw.random() < shape.burst_share:
            times_s.append(draw.choice(begins_s) + draw.uniform(0, shape.burst_s))
            continue
        while True:
            time_s = draw.uniform(0, DAY_S)
            wave = 1 + shape.swing * math.cos(2 * math.pi * (time_s - shape.peak_s) / DAY_S)
            if draw.random() * (1 + shape.swing) < wave:
                times_s.append(time_s)
                break
    return sorted(times_s)
