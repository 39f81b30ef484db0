"""What images install is what was tested, and what pyproject.toml allows."""

from __future__ import annotations

from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from pipeline.on_modal.requirements import requirements
from scripts.assets.pin import CONSTRAINTS, EXTRAS

PYPROJECT = Path(__file__).resolve().parents[2] / "pyproject.toml"
CHECK = Path(__file__).resolve().parents[2] / "scripts" / "check"


def constraints() -> dict[str, str]:
    lines = [line for line in CONSTRAINTS.read_text().splitlines() if not line.startswith("#")]
    return dict(line.split("==") for line in lines)


def test_every_requirement_of_the_images_is_pinned_within_its_bounds() -> None:
    pinned = constraints()
    for line in requirements(PYPROJECT, *EXTRAS):
        requirement = Requirement(line)
        assert requirement.specifier.contains(pinned[canonicalize_name(requirement.name)]), line


def test_the_constraints_are_names_and_versions_alone() -> None:
    assert all("/" not in f"{name}{number}" and number[0].isdigit() for name, number in constraints().items())


def test_the_check_installs_every_extra_whose_versions_are_pinned() -> None:
    # One that is missing is seen only on a machine where nobody installed it by hand.
    installed = CHECK.read_text().partition('install_into_venv ".[')[2].partition("]")[0].split(",")
    assert set(installed) >= set(EXTRAS), f"scripts/check installs {installed}"
