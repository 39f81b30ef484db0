"""The request's fields as a table for people, made from the model so that it cannot say something else."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from schemas.request import ImageTo3DRequest

SERVICE_FIELDS = frozenset({"key", "temp", "webhook", "track_id"})
"""Fields that only a service acts on: who pays, where files are stored, who is told. A local run has none of them."""


@dataclass(frozen=True)
class FieldRow:
    """One field: its name, kind, default and bounds in words, and what it does."""

    name: str
    kind: str
    default: str
    bounds: str
    effect: str


def field_rows() -> list[FieldRow]:
    """All fields of a request in the order of the documentation."""
    properties = ImageTo3DRequest.model_json_schema()["properties"]
    rows = []
    for name, field in ImageTo3DRequest.model_fields.items():
        schema = _not_null(properties[name])
        default = "required" if field.is_required() else _in_words(field.default)
        rows.append(FieldRow(name, _kind(schema), default, _bounds(schema), field.description or ""))
    return rows


def markdown_table() -> str:
    """The fields as a Markdown table without a line break at its end."""
    lines = ["| field | type | default | bounds | effect |", "| --- | --- | --- | --- | --- |"]
    lines += [f"| `{r.name}` | {r.kind} | {r.default} | {r.bounds} | {r.effect} |" for r in field_rows()]
    return "\n".join(lines)


def _not_null(schema: dict[str, Any]) -> dict[str, Any]:
    """What a schema says of values other than null."""
    choices = [choice for choice in schema.get("anyOf", ()) if choice.get("type") != "null"]
    return choices[0] if choices else schema


def _kind(schema: dict[str, Any]) -> str:
    return {"integer": "int", "number": "float", "boolean": "bool", "string": "str"}.get(schema.get("type", ""), "str")


def _bounds(schema: dict[str, Any]) -> str:
    if "enum" in schema:
        return ", ".join(schema["enum"])
    if "minimum" in schema:
        return f"{schema['minimum']:g}–{schema['maximum']:.10g}"
    return f"≤ {schema['maxLength']} characters" if "maxLength" in schema and "format" not in schema else ""


def _in_words(value: object) -> str:
    if value is None:
        return "–"
    return str(value).lower() if isinstance(value, bool) else str(value)
