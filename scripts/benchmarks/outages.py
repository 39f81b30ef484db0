"""A real service while one external dependency after another fails, a minute each.

The customer's bucket, a webhook receiver, the disk, the database, the system clock. Prints the jobs that were lost,
duplicated or left open; `main` returns 0 when there were none.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from tests.e2e.external_dependencies import NotAvailable
from tests.e2e.outages import SCENARIOS


def main(argv: list[str]) -> int:
    """Run the scenarios one after another and print a line for each."""
    names = {scenario.__name__: scenario for scenario in SCENARIOS}
    parser = argparse.ArgumentParser(prog="python -m scripts.benchmarks outages", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"some of {', '.join(names)}; all by default")
    parser.add_argument("--seconds", type=float, default=60.0, help="how long each outage lasts")
    parser.add_argument("--show-log", action="store_true", help="print the end of the service's log after faults")
    options = parser.parse_args(argv)
    if unknown := set(options.names) - names.keys():
        parser.error(f"there is no outage {', '.join(sorted(unknown))}")
    faults = 0
    for name in options.names or names:
        with tempfile.TemporaryDirectory() as folder:
            try:
                report = names[name](Path(folder), duration_s=options.seconds)
            except NotAvailable as reason:
                print(f"{name}: skipped, {reason}", flush=True)
                continue
            print(report, flush=True)
            for fault in report.faults:
                print(f"FAULT {fault}")
            if report.faults and options.show_log:
                print((Path(folder) / "service.log").read_text()[-20_000:])
            faults += len(report.faults)
    print("nothing lost, nothing duplicated, nothing left open" if not faults else f"{faults} faults")
    return 1 if faults else 0
