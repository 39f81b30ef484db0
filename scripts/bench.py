"""Measurements that are too slow for the tests: `python scripts/bench.py NAME [options]`, NAME as in bench_NAME.py."""

from __future__ import annotations

import importlib
import signal
import sys
from pathlib import Path

HERE = Path(__file__).parent


def main(argv: list[str]) -> int:
    """Run one measurement and return its exit code."""
    names = sorted(path.stem.removeprefix("bench_") for path in HERE.glob("bench_*.py"))
    if not argv or argv[0] not in names:
        print(f"usage: python scripts/bench.py {{{','.join(names)}}} [options]", file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # measurements stop the processes that they started
    sys.path.insert(0, str(HERE.parent))
    return importlib.import_module(f"scripts.bench_{argv[0]}").main(argv[1:])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
