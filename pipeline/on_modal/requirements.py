"""Reads the dependencies of an installation with some extras from pyproject.toml, the only list of them."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

NAME = "image-to-3d"


def requirements(pyproject: Path, *extras: str) -> list[str]:
    """The base dependencies and those of the extras, including extras that these refer to; each once, sorted."""
    project = tomllib.loads(pyproject.read_text())["project"]
    optional = project["optional-dependencies"]

    def flat(lines: list[str]) -> Iterator[str]:
        for line in lines:
            own = re.fullmatch(rf"{NAME}\[([\w,-]+)\]", line)
            if own is None:
                yield line
                continue
            for extra in own[1].split(","):
                yield from flat(optional[extra])

    return sorted({*project["dependencies"], *(line for extra in extras for line in flat(optional[extra]))})
