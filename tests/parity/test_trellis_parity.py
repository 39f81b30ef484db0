from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.engines.trellis.spec import IMAGE_LARGE
from tests.parity.harness import KITS, fixture_paths, read_fixture, run_fixture
from tests.parity.kits import needs_kit
from tests.parity.manifests import check_part
from tests.parity.trellis import TARGETS, encoder_keys

FIXTURES = [path for folder in (KITS / "parity", KITS / "parity" / "render") for path in fixture_paths(folder)]


@needs_kit("parity")
@pytest.mark.parametrize("path", FIXTURES, ids=lambda path: path.stem)
def test_a_golden_fixture_is_reproduced_within_its_tolerance(path: Path) -> None:
    verdict = run_fixture(path, TARGETS)

    assert verdict.ok, verdict.line()


@needs_kit("parity")
@pytest.mark.parametrize("name", sorted(IMAGE_LARGE.checkpoints))
def test_the_published_arguments_give_the_published_keys_shapes_and_types(name: str) -> None:
    assert check_part(name, KITS / "parity" / "manifest") == ""


@needs_kit("parity")
@pytest.mark.parametrize("name", ["dino_56", "dino_518"])
def test_the_encoders_keys_follow_from_its_arguments(name: str) -> None:
    fixture = read_fixture(KITS / "parity" / f"{name}.npz")

    assert encoder_keys(fixture.args) == {key: tuple(shape) for key, shape in fixture.spec["keys"].items()}
