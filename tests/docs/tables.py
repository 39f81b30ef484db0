"""The parts of the documents that are copies of the code: `python -m tests.docs.tables` renews them.

A table stands between `<!-- name -->` and `<!-- /name -->`, an example between `<!-- example FILE -->` and
`<!-- /example -->`. Knows nothing of the text around them.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable
from pathlib import Path

import pipeline.api.app  # noqa: F401  # defines errors of its own
from pipeline.api.problems import status_of
from pipeline.errors import CallerError, ImageTo3DError, StageError, error_codes
from pipeline.storage.base import ROLES
from schemas.table import field_rows
from schemas.text import TextTo3DRequest

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "docs" / "examples"
LANGUAGES = {".sh": "sh", ".py": "python", ".mjs": "js"}
NOT_FOR_CALLERS = {"error", "caller_error", "limit_reached", "lease_lost", "cannot_start", "unwritable_output"}
"""Codes of base classes, and of errors that no caller of the service meets."""


def field_table() -> str:
    """The fields of a request as a Markdown table without a line break at its end."""
    lines = ["| field | type | default | bounds | effect |", "| --- | --- | --- | --- | --- |"]
    lines += [f"| `{row.name}` | {row.kind} | {row.default} | {row.bounds} | {row.effect} |" for row in field_rows()]
    return "\n".join(lines)


def text_field_table() -> str:
    """The fields of a text that images do not have, or have with another default, as a Markdown table."""
    of_images = {row.name: row for row in field_rows()}
    own = [row for row in field_rows(TextTo3DRequest) if of_images.get(row.name) != row]
    lines = ["| field | type | default | bounds | effect |", "| --- | --- | --- | --- | --- |"]
    lines += [f"| `{row.name}` | {row.kind} | {row.default} | {row.bounds} | {row.effect} |" for row in own]
    return "\n".join(lines)


def error_table() -> str:
    """The error codes that a caller can meet, as a Markdown table without a line break at its end."""
    lines = ["| `error_code` | HTTP status | retryable | meaning |", "| --- | --- | --- | --- |"]
    lines += [
        f"| `{code}` | {_status(error_class)} | {retryable} | {_first_sentence(error_class)} |"
        for code, (error_class, retryable) in error_codes().items()
        if code not in NOT_FOR_CALLERS
    ]
    return "\n".join(lines)


def _status(error_class: type[ImageTo3DError]) -> str:
    """The status of a refusal; failed jobs are answered with HTTP 200."""
    if issubclass(error_class, StageError) or error_class.code == "cancelled":
        return "200"
    status = str(status_of(error_class.__new__(error_class)))
    return f"{status}, or 200" if issubclass(error_class, CallerError) and status == "400" else status


def _first_sentence(error_class: type[ImageTo3DError]) -> str:
    return " ".join((error_class.__doc__ or "").split("\n\n")[0].split())


def kind_table() -> str:
    """The kinds of files in answers, as a Markdown table without a line break at its end."""
    lines = ["| `kind` | also in | what |", "| --- | --- | --- |"]
    lines += [f"| `{role.kind}` | `{role.listed_in}` | {role.meaning} |" for _, _, role in ROLES]
    return "\n".join(lines)


def layers() -> str:
    """The layers that import-linter holds, the highest first, as one paragraph."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    held = next(contract["layers"] for contract in contracts if contract["type"] == "layers")
    names = [re.sub(r"[()]|pipeline\.", "", layer).replace(" | ", "` | `") for layer in held]
    return " > ".join(f"`{name}`" for name in names)


TABLES: dict[str, Callable[[], str]] = {
    "fields": field_table,
    "text_fields": text_field_table,
    "errors": error_table,
    "kinds": kind_table,
    "layers": layers,
}


def documents() -> list[Path]:
    """Every document: those of the repository's root and those of docs/."""
    return sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])


def renewed(text: str) -> str:
    """A document's text with its tables and examples as the code has them now."""
    for name, make in TABLES.items():
        text = re.sub(
            rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)",
            lambda found, make=make: f"{found[1]}{make()}\n{found[2]}",
            text,
            flags=re.DOTALL,
        )
    return re.sub(
        r"(<!-- example (\S+) -->\n).*?(<!-- /example -->)",
        lambda found: f"{found[1]}{_quoted(found[2])}\n{found[3]}",
        text,
        flags=re.DOTALL,
    )


def _quoted(name: str) -> str:
    """An example as a block of code."""
    return f"```{LANGUAGES[Path(name).suffix]}\n{(EXAMPLES / name).read_text().rstrip()}\n```"


if __name__ == "__main__":
    for document in documents():
        document.write_text(renewed(document.read_text()))
