"""Tables and quoted examples in the documents are those of the code."""

from __future__ import annotations

import re
from typing import Any

import pytest
from pydantic import AliasChoices
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings

from pipeline.on_modal.settings import ScalingSettings
from pipeline.settings import Settings
from tests.docs.tables import EXAMPLES, ROOT, documents, error_table, renewed

SETTINGS = ROOT / "docs" / "settings.md"


@pytest.mark.parametrize("document", documents(), ids=lambda path: str(path.relative_to(ROOT)))
def test_copies_of_the_code_are_up_to_date(document: Any) -> None:
    assert document.read_text() == renewed(document.read_text()), "renew them: python -m tests.docs.tables"


def test_the_field_and_error_tables_are_shown() -> None:
    text = (ROOT / "docs" / "http-api.md").read_text()

    assert "| `mesh_simplify` | float | 0.9 | 0.9–0.98 |" in text
    assert error_table() in text


def test_every_example_is_quoted_in_a_document() -> None:
    quoted = {name for path in documents() for name in re.findall(r"<!-- example (\S+) -->", path.read_text())}

    assert quoted == {path.name for path in EXAMPLES.iterdir() if path.suffix in (".sh", ".py", ".mjs")}


@pytest.mark.parametrize("model", [Settings, ScalingSettings])
def test_every_setting_is_in_the_table_with_its_default(model: type[BaseSettings]) -> None:
    text = SETTINGS.read_text().split(f"<!-- settings: {model.__name__} -->\n")[1].split("<!-- /settings -->")[0]
    rows = dict(re.findall(r"^\| `([A-Z0-9_]+)` \| (.*?) \|", text, flags=re.MULTILINE))

    assert rows == {name.upper(): _in_words(field) for name, field in model.model_fields.items()}


def test_further_names_of_a_setting_are_in_its_row() -> None:
    text = SETTINGS.read_text()
    for name, field in Settings.model_fields.items():
        if isinstance(field.validation_alias, AliasChoices):
            row = next(line for line in text.splitlines() if line.startswith(f"| `{name.upper()}` |"))
            for alias in field.validation_alias.choices:
                assert str(alias).removeprefix("IMAGE_TO_3D_") in row


def _in_words(field: FieldInfo) -> str:
    """A default as the table writes it."""
    value = field.default
    if value is None or value == ():
        return "–"
    if isinstance(value, bool):
        return f"`{'yes' if value else 'no'}`"
    if isinstance(value, tuple):
        return f"`{','.join(f'{part:g}' for part in value)}`"
    return f"`{value:g}`" if isinstance(value, float) else f"`{value}`"
