"""Runs one benchmark: `python -m scripts.benchmarks NAME [options]`, where NAME is a module of this package."""

from __future__ import annotations

import importlib
import pkgutil
import signal
import sys
from pathlib import Path

HELPERS = ("__init__", "__main__", "cold_path", "measuring")


def main(argv: list[str]) -> int:
    """Run one benchmark and return its exit code."""
    names = sorted({module.name for module in pkgutil.iter_modules([str(Path(__file__).parent)])} - {*HELPERS})
    if not argv or argv[0] not in names:
        print(f"usage: python -m scripts.benchmarks {{{','.join(names)}}} [options]", file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that benchmarks stop the processes that they started
    return importlib.import_module(f"scripts.benchmarks.{argv[0]}").main(argv[1:])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
