"""The OpenAPI descriptions of bodies and headers that the routes read by themselves."""

from __future__ import annotations

from typing import Any

from pipeline.api.body_formats import RAW_TYPES
from pipeline.api.form_fields import FORM_TYPE, MESH_FIELD, MULTIPART_TYPE

JSON_TYPE = "application/json"
FILE = {"type": "string", "format": "binary"}
PREFER = {
    "name": "Prefer",
    "in": "header",
    "required": False,
    "description": "`wait=N`: how many seconds to wait for the result, at most 120; 0 answers at once.",
    "schema": {"type": "string", "examples": ["wait=0"]},
}
IDEMPOTENCY_KEY = {
    "name": "Idempotency-Key",
    "in": "header",
    "required": False,
    "description": "A text of yours. The same text with the same body again is answered with the first job, marked by "
    "the header `Idempotent-Replayed: true`; with another body it is refused.",
    "schema": {"type": "string", "maxLength": 255},
}
REPLAYED_HEADER = {
    "Idempotent-Replayed": {
        "description": "`true` where the answer is about the job of an earlier request with this `Idempotency-Key`.",
        "schema": {"type": "string", "enum": ["true"]},
    }
}


def body_schema(
    schema: dict[str, Any],
    *,
    example: dict[str, Any],
    working_example: dict[str, Any] | None = None,
    headers: tuple[dict[str, Any], ...] = (),
    takes_raw: bool = False,
) -> dict[str, Any]:
    """The OpenAPI description of a body, in each of the types that it may be sent in.

    Args:
        example: a body as clients send it, with its key.
        working_example: the body that `/docs` offers first; the example without its key by default. A key in the body
            takes precedence over the one that the page was given, so a made-up one must not be in it.
        headers: the route's header parameters.
        takes_raw: the bytes of an image may be the whole body.
    """
    keyless = {name: value for name, value in example.items() if name != "key"}
    examples = {
        "header": {
            "summary": "The key in a header",
            "value": keyless if working_example is None else working_example,
        },
        "body": {"summary": "The key in the body", "value": example},
    }
    content: dict[str, Any] = {
        JSON_TYPE: {"schema": schema, "examples": examples},
        MULTIPART_TYPE: {"schema": _with_files(schema)},
        FORM_TYPE: {"schema": schema},
    }
    if takes_raw:
        content |= {media_type: {"schema": FILE} for media_type in ("image/*", min(RAW_TYPES))}
    body = {"requestBody": {"content": content, "required": True}}
    return body | {"parameters": list(headers)} if headers else body


def _with_files(schema: dict[str, Any]) -> dict[str, Any]:
    """A schema whose `image`, if it has one, is a file or several, and `init_mesh` a file; with a title of its own."""
    given = schema["properties"]
    files = {"image": {"anyOf": [FILE, {"type": "array", "items": FILE}]}, MESH_FIELD: FILE}
    as_files = {
        name: file | {key: text for key, text in given[name].items() if key == "description"}
        for name, file in files.items()
        if name in given
    }
    if not as_files:
        return schema
    return {**schema, "properties": given | as_files} | (
        {"title": f"{schema['title']}Form"} if "title" in schema else {}
    )
