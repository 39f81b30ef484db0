#!/usr/bin/env python
"""Writes constraints.txt: the versions that the tests ran with, of all that the images on Modal install.

pyproject.toml says what may be installed, this file what is: an image that is built again is the same again. Names and
versions alone; where packages come from is the installer's business. `scripts/assets/pin.py` after an upgrade, then the tests.
"""

from __future__ import annotations

import sys
from importlib.metadata import requires, version
from pathlib import Path

from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from pipeline.on_modal.requirements import requirements

ROOT = Path(__file__).resolve().parents[2]
EXTRAS = ("local", "matting", "postgres", "tracing", "trellis")
CONSTRAINTS = ROOT / "constraints.txt"


def pinned(lines: list[str]) -> dict[str, str]:
    """Installed versions of what the requirements need, and what that needs in turn; by canonical name.

    Raises:
        PackageNotFoundError: something of it is not installed here.
    """
    found: dict[str, str] = {}
    seen: set[tuple[str, str]] = set()
    waiting = [(Requirement(line), "") for line in lines]
    while waiting:
        requirement, extra = waiting.pop()
        environment = {**default_environment(), "extra": extra}
        if requirement.marker is not None and not requirement.marker.evaluate(environment):
            continue
        name = canonicalize_name(requirement.name)
        found[name] = version(name).partition("+")[0]  # a build for one kind of machine is the same version
        for wanted in ("", *sorted(requirement.extras)):
            if (name, wanted) not in seen:
                seen.add((name, wanted))
                waiting += [(Requirement(line), wanted) for line in requires(name) or ()]
    return dict(sorted(found.items()))


def main() -> None:
    """Write the file."""
    lines = [f"{name}=={number}" for name, number in pinned(requirements(ROOT / "pyproject.toml", *EXTRAS)).items()]
    CONSTRAINTS.write_text("\n".join(["# Written by scripts/assets/pin.py.", *lines, ""]))
    print(f"{len(lines)} versions in {CONSTRAINTS.name}")


if __name__ == "__main__":
    main()
