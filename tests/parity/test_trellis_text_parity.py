from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.engines.trellis.text.spec import SIZES
from tests.fakes.clip_vocabulary import NoVocabulary, prompt_tokenizer
from tests.parity.harness import KITS, fixture_paths, run_fixture
from tests.parity.kits import needs_kit
from tests.parity.manifests import check_part, check_text_encoder
from tests.parity.registry import all_targets

KIT = KITS / "parity_text"
FIXTURES = fixture_paths(KIT)


@needs_kit("parity_text")
@pytest.mark.parametrize("path", FIXTURES, ids=lambda path: path.stem)
def test_a_golden_fixture_is_reproduced_within_its_tolerance(path: Path) -> None:
    try:
        prompt_tokenizer()
    except NoVocabulary as reason:
        pytest.skip(str(reason))

    verdict = run_fixture(path, all_targets())

    assert verdict.ok, verdict.line()


@needs_kit("parity_text")
@pytest.mark.parametrize("name", ["structure_flow", "latent_flow"])
@pytest.mark.parametrize("size", SIZES)
def test_the_published_arguments_give_the_published_keys_shapes_and_types(size: str, name: str) -> None:
    assert check_part(name, KIT / "manifest", SIZES[size]) == ""


@needs_kit("parity_text")
def test_the_text_tower_has_the_published_keys_shapes_and_types() -> None:
    assert check_text_encoder(KIT / "manifest") == ""
