"""Fault injection: SIGKILLs to random processes of a service under load, hundreds of times.

Prints the jobs that were lost, duplicated or left open; `main` returns 0 when there were none.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

from tests.e2e.faults import Report, inject_faults


def main(argv: list[str]) -> int:
    """Inject the faults and print the report."""
    parser = argparse.ArgumentParser(prog="python -m scripts.benchmarks faults", description=__doc__)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args(argv)
    started_s = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        report = inject_faults(
            Path(folder), rounds=options.rounds, seed=options.seed, workers=options.workers, clients=4, pause_s=0.5
        )
    return print_report(report, seconds=time.perf_counter() - started_s, seed=options.seed)


def print_report(report: Report, *, seconds: float, seed: int) -> int:
    """Print what the kills did; returns the exit code."""
    print(f"{report.kills} kills in {seconds:.0f} s, seed {seed}")
    print(f"{report.accepted} jobs accepted: {report.states}, {report.attempts} attempts, {report.webhooks} webhooks")
    for fault in report.faults:
        print(f"FAULT {fault}")
    print(
        "nothing lost, nothing duplicated, nothing left open" if not report.faults else f"{len(report.faults)} faults"
    )
    return 1 if report.faults else 0
