"""Discrete-event simulation of one Modal function's pool of containers, one input per container. Knows no prices.

What is documented, and what is assumed where it is not:

- `min_containers` always run, `max_containers` caps the pool, `buffer_containers` are further ones kept while
  the function is active, `scaledown_window` (2 to 3600 s) is the longest that a container idles before it is stopped.
  Source: https://modal.com/docs/guide/scale; `modal.App.function` and `modal._functions` of modal 1.6.4.
- A container is paid from its start to its stop, idle time included, by the second. Source:
  https://modal.com/docs/guide/resources, https://modal.com/pricing. Whether the second or so before our code runs is
  paid is not documented; here it is.
- Assumed: active means that an input runs or waits; the autoscaler reacts at once; inputs are taken in the order in
  which they come; of several idle containers the one that worked last takes the next, so that the others can stop.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

FINISH, READY, ARRIVAL, EXPIRY = range(4)  # in this order where they fall on one instant


@dataclass(frozen=True)
class Autoscaler:
    """The settings of `@app.cls` and `@app.function` that govern the pool; names and defaults are Modal's.

    Attributes:
        scaledown_window: seconds.
    """

    min_containers: int = 0
    max_containers: int | None = None
    buffer_containers: int = 0
    scaledown_window: float = 60.0

    def __post_init__(self) -> None:
        if not 2 <= self.scaledown_window <= 3600:
            raise ValueError(f"scaledown_window is {self.scaledown_window:g} s; from 2 to 3600 s")
        if min(self.min_containers, self.buffer_containers) < 0:
            raise ValueError("min_containers and buffer_containers are not negative")
        if self.max_containers is not None and self.max_containers < max(self.min_containers, 1):
            raise ValueError(f"max_containers is {self.max_containers}; at least 1 and at least min_containers")

    def target(self, inputs: int) -> int:
        """How many containers there should be while so many inputs run or wait."""
        wanted = max(self.min_containers, inputs + self.buffer_containers if inputs else 0)
        return wanted if self.max_containers is None else min(wanted, self.max_containers)


@dataclass(frozen=True)
class PoolRun:
    """The result of a simulation: its inputs and its containers.

    Attributes:
        waits_s: by input, in the order given: seconds from arrival until a container took it.
        served_s: by input: seconds that it occupied its container.
        paid_s, startup_s, busy_s, idle_s: container-seconds; the first is the sum of the others.
        started: containers started, those of `min_containers` at the beginning not counted.
        most: the largest number of containers at one time.
    """

    waits_s: list[float]
    served_s: list[float]
    paid_s: float
    startup_s: float
    busy_s: float
    idle_s: float
    started: int
    most: int


def quantile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least this share of them does not exceed; 0 of nothing."""
    ordered = sorted(values)
    return ordered[max(math.ceil(share * len(ordered)) - 1, 0)] if ordered else 0.0


def simulate(
    arrivals_s: Sequence[float],
    service_s: Sequence[float],
    settings: Autoscaler,
    *,
    cold_start_s: float,
    first_service_s: Sequence[float] | None = None,
    horizon_s: float = 0.0,
) -> PoolRun:
    """Run the pool over these inputs, until the last one is done and every container that may stop has stopped.

    Args:
        arrivals_s: when each input comes, ascending.
        service_s: how long each input occupies its container.
        cold_start_s: from the decision to start a container until it can take an input.
        first_service_s: the same of a container that was started here and has had no input yet; None: it is no other.
        horizon_s: `min_containers` are paid from 0 to here at least; they are warm at 0.

    Returns: waits and container-seconds, exact.

    Raises:
        ValueError: lists of different lengths or arrivals that do not ascend.
    """
    first_service_s = service_s if first_service_s is None else first_service_s
    if not len(arrivals_s) == len(service_s) == len(first_service_s):
        raise ValueError(f"{len(arrivals_s)} arrivals, {len(service_s)} and {len(first_service_s)} service times")
    if any(later < earlier for earlier, later in itertools.pairwise(arrivals_s)):
        raise ValueError("arrivals do not ascend")
    pool = _Pool(settings, cold_start_s, len(arrivals_s))
    for number, arrival_s in enumerate(arrivals_s):
        pool.events.append((arrival_s, ARRIVAL, number))
    while pool.events:
        now_s, kind, which = heapq.heappop(pool.events)
        if kind == ARRIVAL:
            pool.waiting.append(which)
            pool.inputs += 1
        elif kind == FINISH:
            pool.inputs -= 1
            pool.make_idle(which, now_s)
        elif kind == READY:
            pool.fresh.add(which)
            pool.make_idle(which, now_s)
        pool.assign(now_s, arrivals_s, service_s, first_service_s)
        pool.scale(now_s)
    return pool.close(horizon_s)


class _Pool:
    """The containers, by number. An idle one is a key of `idle_since_s`, in the order in which they became idle."""

    def __init__(self, settings: Autoscaler, cold_start_s: float, inputs: int) -> None:
        self.settings, self.cold_start_s = settings, cold_start_s
        self.events: list[tuple[float, int, int]] = []
        self.waiting: deque[int] = deque()
        self.inputs = 0
        self.idle_since_s: dict[int, float] = dict.fromkeys(range(settings.min_containers), 0.0)
        self.started_s: dict[int, float] = dict(self.idle_since_s)
        self.fresh: set[int] = set()
        self.waits_s, self.served_s = [0.0] * inputs, [0.0] * inputs
        self.paid_s = self.startup_s = self.busy_s = self.idle_s = self.last_s = 0.0
        self.next_number = self.most = settings.min_containers

    def make_idle(self, container: int, now_s: float) -> None:
        self.idle_since_s[container] = now_s
        heapq.heappush(self.events, (now_s + self.settings.scaledown_window, EXPIRY, container))

    def assign(
        self,
        now_s: float,
        arrivals_s: Sequence[float],
        service_s: Sequence[float],
        first_service_s: Sequence[float],
    ) -> None:
        """Assign waiting inputs to idle containers, to the one that became idle last first."""
        while self.waiting and self.idle_since_s:
            which = self.waiting.popleft()
            container, since_s = self.idle_since_s.popitem()
            self.idle_s += now_s - since_s
            served_s = (first_service_s if container in self.fresh else service_s)[which]
            self.fresh.discard(container)
            self.busy_s += served_s
            self.waits_s[which], self.served_s[which] = now_s - arrivals_s[which], served_s
            self.last_s = max(self.last_s, now_s + served_s)
            heapq.heappush(self.events, (now_s + served_s, FINISH, container))

    def scale(self, now_s: float) -> None:
        """Start missing containers; stop surplus ones that idled for the whole window, longest idle first."""
        target = self.settings.target(self.inputs)
        while len(self.started_s) < target:
            self.started_s[self.next_number] = now_s
            self.startup_s += self.cold_start_s
            heapq.heappush(self.events, (now_s + self.cold_start_s, READY, self.next_number))
            self.next_number += 1
        self.most = max(self.most, len(self.started_s))
        while len(self.started_s) > target and self.idle_since_s:
            container, since_s = next(iter(self.idle_since_s.items()))
            if now_s < since_s + self.settings.scaledown_window:
                break
            del self.idle_since_s[container]
            self.idle_s += now_s - since_s
            self.paid_s += now_s - self.started_s.pop(container)
            self.last_s = max(self.last_s, now_s)

    def close(self, horizon_s: float) -> PoolRun:
        """Settle the containers that never stop."""
        ends_s = max(horizon_s, self.last_s)
        for container, since_s in self.idle_since_s.items():
            self.idle_s += ends_s - since_s
            self.paid_s += ends_s - self.started_s[container]
        started = self.next_number - self.settings.min_containers
        return PoolRun(
            self.waits_s, self.served_s, self.paid_s, self.startup_s, self.busy_s, self.idle_s, started, self.most
        )
