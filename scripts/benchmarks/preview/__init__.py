"""What the preview engine makes of images, in numbers: `python -m scripts.benchmarks preview [PART...]`.

Every part is a module of this package with a `main` that prints its table; without names, all run.
"""

from __future__ import annotations

import argparse
import importlib

PARTS = ("back", "depth", "edges", "views")


def main(argv: list[str]) -> int:
    """Run the named parts and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m scripts.benchmarks preview")
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"one of {', '.join(PARTS)}; by default all")
    parser.add_argument("--images", metavar="DIR", help="a folder of PNG images that are measured too")
    arguments = parser.parse_args(argv)
    for part in arguments.parts or PARTS:
        if part not in PARTS:
            parser.error(f"{part} is not one of {', '.join(PARTS)}")
        importlib.import_module(f"scripts.benchmarks.preview.{part}").main(arguments.images)
    return 0
