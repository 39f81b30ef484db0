"""Submits per second, latencies and CPU time of this version beside those of another checkout, in alternating rounds.

`python -m scripts.benchmarks versions --against FOLDER`: both services run the whole time, without workers, each on a
database of its own; one of them is under load at a time. What else the machine does reaches both alike, so the ratios
count: the medians of accepted submits and of the 99th percentile must be within 10 % of the other version's, or better.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from scripts.benchmarks.serve import ROOT, Load, Service, load_submits

TOLERANCE = 0.1


@dataclass(frozen=True)
class Round:
    """What one service did in one round."""

    accepted_per_s: float
    p99_s: float
    cpu_s_per_submit: float


def measure(service: Service, *, clients: int, seconds: float) -> Round:
    """One round.

    Raises:
        SystemExit: a submit was refused.
    """
    before_s, _ = service.cpu_s()
    load: Load = asyncio.run(load_submits(service.port, service.key, clients=clients, seconds=seconds, at_most=10**9))
    after_s, _ = service.cpu_s()
    if load.refusals:
        raise SystemExit(f"a submit was refused: {load.refusals[0]}")
    return Round(load.per_s, load.quantile(0.99), (after_s - before_s) / len(load.ids))


def main(argv: list[str]) -> int:
    """Measure and print; 0 when this version is within the tolerance."""
    parser = argparse.ArgumentParser(prog="python -m scripts.benchmarks versions", description=__doc__)
    parser.add_argument("--against", type=Path, required=True, help="folder of another checkout")
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=5, help="of each round")
    parser.add_argument("--rounds", type=int, default=10)
    options = parser.parse_args(argv)
    rounds: dict[str, list[Round]] = {"this": [], "other": []}
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        services = {}
        for name, root in (("this", ROOT), ("other", options.against)):
            services[name] = Service(Path(folder) / name, root=root)
            stack.callback(services[name].stop)
        for service in services.values():
            service.wait_until_ready()
            asyncio.run(load_submits(service.port, service.key, clients=4, seconds=10, at_most=200))  # warm
        for number in range(options.rounds):
            for name in sorted(services, reverse=number % 2 == 0):
                rounds[name].append(measure(services[name], clients=options.clients, seconds=options.seconds))
    print(f"{'':28}{'this':>10}{'other':>10}{'ratio, median of rounds':>26}")
    is_met = True
    for what, attribute, scale in (
        ("accepted submits per second", "accepted_per_s", 1.0),
        ("99th percentile, ms", "p99_s", 1e3),
        ("CPU of the web process, ms", "cpu_s_per_submit", 1e3),
    ):
        this, other = ([getattr(one, attribute) * scale for one in rounds[name]] for name in ("this", "other"))
        ratio = statistics.median(a / b for a, b in zip(this, other, strict=True))
        if attribute == "accepted_per_s":
            is_met &= ratio >= 1 - TOLERANCE
        elif attribute == "p99_s":
            is_met &= ratio <= 1 + TOLERANCE
        print(f"{what:28}{statistics.median(this):10.1f}{statistics.median(other):10.1f}{ratio:26.2f}")
    print("within the tolerance" if is_met else "the tolerance was MISSED")
    return 0 if is_met else 1
