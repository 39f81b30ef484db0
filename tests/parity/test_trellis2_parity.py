from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.engines.trellis2.spec import RELEASED
from tests.parity.harness import KITS, fixture_paths, run_fixture
from tests.parity.kits import needs_kit
from tests.parity.manifests import check_trellis2_part
from tests.parity.registry import all_targets

KIT = KITS / "parity_trellis2"
LARGE = ("_full", "_wide_1blk", "_wide_2blk")
"""Fixtures with the released widths take up to minutes and gigabytes; `scripts/parity.py` runs them."""
FIXTURES = [path for path in fixture_paths(KIT) if not path.stem.endswith(LARGE)]


@needs_kit("parity_trellis2")
@pytest.mark.parametrize("path", FIXTURES, ids=lambda path: path.stem)
def test_a_golden_fixture_is_reproduced_within_its_tolerance(path: Path) -> None:
    verdict = run_fixture(path, all_targets())

    assert verdict.ok, verdict.line()


@needs_kit("parity_trellis2")
@pytest.mark.parametrize("name", sorted(RELEASED.checkpoints))
def test_the_published_arguments_give_the_published_keys_shapes_types_and_sizes(name: str) -> None:
    assert check_trellis2_part(name, KIT / "manifest") == ""
