"""The request's fields as rows, for documentation and for the options of the command lines.

Derived from the model, so that no second list of fields exists.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from schemas.request import GenerationRequest, ImageTo3DRequest
from schemas.text import FIELDS, OLDER_NAMES, TextTo3DRequest

SERVICE_FIELDS = frozenset({"key", "temp", "webhook", "track_id", "retention_s"})
"""Fields that only a service acts on: who pays, where files are stored, who is notified."""
NOT_OPTIONS = SERVICE_FIELDS | {"image", "output_format", "output_formats"}
"""Fields that are no options of a command: those of the service, the image, which every command takes in its own way,
and the formats: the first is the extension of the output file, `--also` names further ones."""


@dataclass(frozen=True)
class FieldRow:
    """One field.

    Attributes:
        name: the field's name.
        kind: int, float, bool or str.
        default: in words; "required" or "–" (none) where there is no value.
        bounds: in words, "" without any.
        effect: what the field does.
    """

    name: str
    kind: str
    default: str
    bounds: str
    effect: str

    @property
    def option(self) -> str:
        """The field as an option of a command line."""
        return f"--{self.name.replace('_', '-')}"

    @property
    def is_on_by_default(self) -> bool:
        """Whether the field is a boolean that is true where it is not given."""
        return self.kind == "bool" and self.default == "true"

    @property
    def option_help(self) -> str:
        """What an option's help says: effect, bounds and default."""
        effect = self.effect.removesuffix(" (extension)")
        has_default = self.kind != "bool" and self.default != "–"  # a flag shows its own
        notes = [self.bounds] if self.bounds else []
        notes += [f"default: {self.default}"] if has_default else []
        return effect[0].upper() + effect[1:] + (f" ({'; '.join(notes)})" if notes else "")


def field_rows(model: type[GenerationRequest] = ImageTo3DRequest) -> list[FieldRow]:
    """All fields of a request in the order of the documentation."""
    properties = model.model_json_schema()["properties"]
    rows: list[FieldRow] = []
    for name, field in model.model_fields.items():
        schema = _not_null(properties[name])
        default = "required" if field.is_required() else _in_words(field.default)
        rows.append(FieldRow(name, _kind(schema), default, _bounds(schema), field.description or ""))
    return rows


def option_rows() -> list[FieldRow]:
    """The fields that a command line offers as options: all but `NOT_OPTIONS`."""
    return [row for row in field_rows() if row.name not in NOT_OPTIONS]


def text_option_rows() -> list[FieldRow]:
    """The further fields that a command line offers with a text: not the prompt, which is `--text`, nor older names.

    The sampling fields of a text have defaults of their own.
    """
    left_out = {"prompt", *OLDER_NAMES}
    return [row for row in field_rows(TextTo3DRequest) if row.name in FIELDS and row.name not in left_out]


def _not_null(schema: dict[str, Any]) -> dict[str, Any]:
    """What a schema says of values other than null."""
    choices = [choice for choice in schema.get("anyOf", ()) if choice.get("type") != "null"]
    return choices[0] if choices else schema


def _kind(schema: dict[str, Any]) -> str:
    return {"integer": "int", "number": "float", "boolean": "bool", "string": "str"}.get(schema.get("type", ""), "str")


def _bounds(schema: dict[str, Any]) -> str:
    if "enum" in schema:
        return ", ".join(map(str, schema["enum"]))
    if "items" in schema and (each := _bounds(schema["items"])):
        return f"at most {schema['maxItems']}: {each}"
    if "minimum" in schema:
        return f"{schema['minimum']:g}–{schema['maximum']:.10g}"
    return f"≤ {schema['maxLength']} characters" if "maxLength" in schema and "format" not in schema else ""


def _in_words(value: object) -> str:
    if value is None:
        return "–"
    return str(value).lower() if isinstance(value, bool) else str(value)
