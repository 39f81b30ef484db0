"""Several machines as one service, each killed again and again: two web processes and three workers with folders of
their own, Postgres behind pgbouncer, an S3 server.

Prints the jobs that were lost, duplicated or left open, and files that one web process serves and the other does not;
`main` returns 0 when there are none.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

from scripts.benchmarks.faults import print_report
from tests.e2e.machines import kill_machines


def main(argv: list[str]) -> int:
    """Kill the machines and print the report."""
    parser = argparse.ArgumentParser(prog="python -m scripts.benchmarks machines", description=__doc__)
    parser.add_argument("--rounds", type=int, default=10, help="how often each process is killed")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args(argv)
    started_s = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        report = kill_machines(Path(folder), rounds=options.rounds, seed=options.seed)
    return print_report(report, seconds=time.perf_counter() - started_s, seed=options.seed)
