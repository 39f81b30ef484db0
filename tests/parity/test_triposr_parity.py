from __future__ import annotations

from pathlib import Path

import pytest

from tests.parity.harness import KITS, fixture_paths, read_fixture, run_fixture
from tests.parity.kits import needs_kit
from tests.parity.manifests import check_triposr
from tests.parity.triposr import TARGETS

# The full-size case takes a minute and 2 GB: `scripts/parity.py ../shared/parity_triposr` runs it too.
FIXTURES = [
    path for path in fixture_paths(KITS / "parity_triposr") if read_fixture(path).spec["op"] != "full-size forward"
]


@needs_kit("parity_triposr")
@pytest.mark.parametrize("path", FIXTURES, ids=lambda path: path.stem)
def test_a_golden_fixture_is_reproduced_within_its_tolerance(path: Path) -> None:
    verdict = run_fixture(path, TARGETS)

    assert verdict.ok, verdict.line()


@needs_kit("parity_triposr")
def test_the_model_has_the_published_keys_shapes_and_types() -> None:
    assert check_triposr(KITS / "parity_triposr" / "manifest") == ""
