"""The README's table of fields is the contract's."""

from __future__ import annotations

from pathlib import Path

from schemas.table import markdown_table

README = Path(__file__).resolve().parents[2] / "README.md"


def test_the_readme_shows_the_table_of_the_contract() -> None:
    shown = README.read_text().split("<!-- fields -->\n")[1].split("\n<!-- /fields -->")[0]
    assert shown == markdown_table()
