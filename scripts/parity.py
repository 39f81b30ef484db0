#!/usr/bin/env python
"""Check the engines against golden fixtures: scripts/parity.py DIR..., --manifests DIR, or --full-size.

With --interpret-kernels, only the fixtures whose targets have a GPU kernel, and with the kernels. With --precision,
only those of whole models, with their heavy layers in half precision and 2e-3 as the bound of every output.

Prints one line per fixture (name, worst relative L2, tolerance, ok) and a last line `N passed, N failed`.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.parity.harness import run_folders
from tests.parity.precision import PRECISIONS, in_precision
from tests.parity.registry import all_targets


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="*", type=Path, metavar="DIR", help="folders of .npz fixtures")
    parser.add_argument("--manifests", type=Path, metavar="DIR", help="compare published keys, shapes and dtypes")
    parser.add_argument(
        "--full-size",
        action="store_true",
        help="write, load and corrupt random weights of the released sizes, 4.2 GB of disk",
    )
    parser.add_argument(
        "--interpret-kernels",
        action="store_true",
        help="run the fixtures whose targets have a GPU kernel, with the kernels in Triton's interpreter; minutes each",
    )
    parser.add_argument(
        "--precision",
        choices=PRECISIONS,
        help="run the models in half precision, or with only the factors of their products rounded, or some of them",
    )
    arguments = parser.parse_args()
    if not (arguments.folders or arguments.manifests or arguments.full_size):
        parser.error("name at least one folder")
    failed = 0
    if arguments.full_size:
        from tests.parity.full_size import run_full_size

        failed += run_full_size()
    if arguments.manifests:
        from tests.parity.manifests import run_manifests

        failed += run_manifests(arguments.manifests)
    if arguments.folders and arguments.interpret_kernels:
        from tests.ops.kernels.triton_folder import start_interpreter

        start_interpreter()
        from tests.parity.kernels import with_kernels

        failed += run_folders(arguments.folders, with_kernels(all_targets()), only_known=True)
    elif arguments.folders and arguments.precision:
        chosen = in_precision(all_targets(), arguments.precision)
        failed += run_folders(arguments.folders, chosen, only_known=True)
    elif arguments.folders:
        failed += run_folders(arguments.folders, all_targets())
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
