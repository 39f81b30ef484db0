"""The registry of formats agrees with the contract and the encoders."""

from typing import get_args

import pytest

from pipeline.formats.encode import ENCODERS
from pipeline.settings import Settings
from pipeline.storage.base import content_type_of, output_names
from schemas.formats import FORMATS, OUTPUT_FORMATS, OutputFormat, extensions_in_words


def test_every_format_of_the_contract_has_an_entry_and_an_encoder() -> None:
    assert get_args(OutputFormat) == OUTPUT_FORMATS == tuple(ENCODERS)


def test_names_and_media_types_come_from_the_registry() -> None:
    for name, spec in FORMATS.items():
        (model, _), *_ = output_names([name], file_prefix="p")
        assert model == f"p.{name}"
        assert content_type_of(model) == spec.media_type


def test_extensions_read_as_a_sentence() -> None:
    assert extensions_in_words() == ".glb, .obj, .stl, .ply, .usdz or .3mf"


def test_the_packages_of_formats_are_looked_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    offered = Settings(output_formats=()).offered_formats
    monkeypatch.setattr("schemas.formats.find_spec", lambda name: pytest.fail(f"{name} is looked for at each request"))

    assert Settings(output_formats=()).offered_formats == offered
