"""Hundreds of SIGKILLs to random processes of a service under load; prints what was lost, doubled or left open.

`main` returns 0 when nothing was.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))


def main(argv: list[str] | None = None) -> int:
    """Run the inject_faults and print its report."""
    from tests.e2e.faults import inject_faults

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args(argv)
    started_s = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        report = inject_faults(
            Path(folder), rounds=options.rounds, seed=options.seed, workers=options.workers, clients=4, pause_s=0.5
        )
    print(f"{report.kills} kills in {time.perf_counter() - started_s:.0f} s, seed {options.seed}")
    print(f"{report.accepted} jobs accepted: {report.states}, {report.attempts} attempts, {report.webhooks} webhooks")
    for fault in report.faults:
        print(f"FAULT {fault}")
    print("nothing lost, nothing doubled, nothing left open" if not report.faults else f"{len(report.faults)} faults")
    return 1 if report.faults else 0


if __name__ == "__main__":
    raise SystemExit(main())
