"""Sends thousands of requests generated from the OpenAPI document to a real service; prints every violation.

`main` returns 0 when no answer was a 500, had an undocumented status or form, or took more than a second.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

from tests.e2e.faults import Service
from tests.e2e.fuzz import LONGEST_ANSWER_S, fuzz


def main(argv: list[str]) -> int:
    """Send the requests and print the report."""
    parser = argparse.ArgumentParser(prog="python -m scripts.benchmarks contract", description=__doc__)
    parser.add_argument("--cases", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args(argv)
    started_s = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        service = Service(Path(folder) / "data", workers=0)
        service.start()
        try:
            service.wait_until_ready()
            report = fuzz(service, cases=options.cases, seed=options.seed)
        finally:
            service.stop()
    statuses = ", ".join(f"{count} x {status}" for status, count in sorted(report.statuses.items()))
    seconds, request = report.slowest
    print(f"{report.cases} requests to {len(report.operations)} operations in {time.perf_counter() - started_s:.0f} s")
    print(f"answers: {statuses}")
    print(f"slowest: {seconds * 1e3:.0f} ms, {request}")
    for problem in report.problems:
        print(f"PROBLEM {problem}")
    is_slow = seconds > LONGEST_ANSWER_S
    print(f"{len(report.problems)} problems{', and an answer that took too long' if is_slow else ''}")
    return 1 if report.problems or is_slow else 0
