"""The OpenAPI document: what FastAPI generates from the routes, corrected where the routes behave differently."""

from __future__ import annotations

from functools import cache
from typing import Any

from fastapi import FastAPI

from pipeline.api.body_schema import JSON_TYPE

UNUSED_STATUS = "422"
"""FastAPI's own status for invalid values; `problems` answers 400 in its place."""
UNUSED_SCHEMAS = ("HTTPValidationError", "ValidationError")


def install(app: FastAPI) -> None:
    """Correct the document of an app whose routes are complete: no 422, docstrings as summaries, names of forms."""
    generate = app.openapi

    @cache
    def openapi() -> dict[str, Any]:
        document = generate()
        for operations in document["paths"].values():
            for operation in operations.values():
                operation["responses"].pop(UNUSED_STATUS, None)
                operation["summary"] = operation.pop("description").removesuffix(".")
                for media_type, content in operation.get("requestBody", {}).get("content", {}).items():
                    if media_type != JSON_TYPE:
                        content["schema"] = _named(content["schema"], document["components"]["schemas"])
        for name in UNUSED_SCHEMAS:
            document["components"]["schemas"].pop(name, None)
        return document

    app.openapi = openapi  # FastAPI's documented way to change the document


def _named(schema: dict[str, Any], components: dict[str, Any]) -> dict[str, Any]:
    """A reference to a schema that has a title, which is then among the components; others as they are."""
    if "title" not in schema:
        return schema
    components[schema["title"]] = schema
    return {"$ref": f"#/components/schemas/{schema['title']}"}
