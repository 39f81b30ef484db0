"""Writes constraints.txt: the versions that the tests ran with, of everything that the Modal images install.

pyproject.toml says what may be installed, constraints.txt what is installed, so that a rebuilt image is the same. It
holds names and versions only; the installer decides where packages come from. After an upgrade run
`python -m scripts.assets.pin`, then the tests.
"""

from __future__ import annotations

from importlib.metadata import requires, version
from pathlib import Path

from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from pipeline.on_modal.requirements import requirements

ROOT = Path(__file__).resolve().parents[2]
EXTRAS = ("local", "matting", "postgres", "tracing", "trellis", "usd")
CONSTRAINTS = ROOT / "constraints.txt"


def pinned(lines: list[str]) -> dict[str, str]:
    """Installed versions of what the requirements need, and what that needs in turn; by canonical name.

    Raises:
        PackageNotFoundError: a requirement is not installed here.
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
        found[name] = version(name).partition("+")[0]  # a build for one kind of machine has the same version
        for wanted in ("", *sorted(requirement.extras)):
            if (name, wanted) not in seen:
                seen.add((name, wanted))
                waiting += [(Requirement(line), wanted) for line in requires(name) or ()]
    return dict(sorted(found.items()))


def main() -> None:
    """Write the file."""
    lines = [f"{name}=={number}" for name, number in pinned(requirements(ROOT / "pyproject.toml", *EXTRAS)).items()]
    CONSTRAINTS.write_text("\n".join(["# Written by `python -m scripts.assets.pin`.", *lines, ""]))
    print(f"{len(lines)} versions in {CONSTRAINTS.name}")


if __name__ == "__main__":
    main()
