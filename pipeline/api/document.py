"""The OpenAPI document: what FastAPI generates from the routes, corrected where the routes behave differently."""

from __future__ import annotations

from functools import cache
from typing import Any

from fastapi import FastAPI

UNUSED_STATUS = "422"
"""FastAPI's own status for invalid values; `problems` answers 400 in its place."""
UNUSED_SCHEMAS = ("HTTPValidationError", "ValidationError")


def install(app: FastAPI) -> None:
    """Correct the document of an app whose routes are complete: no 422, and each docstring as its summary."""
    generate = app.openapi

    @cache
    def openapi() -> dict[str, Any]:
        document = generate()
        for operations in document["paths"].values():
            for operation in operations.values():
                operation["responses"].pop(UNUSED_STATUS, None)
                operation["summary"] = operation.pop("description").removesuffix(".")
        for name in UNUSED_SCHEMAS:
            document["components"]["schemas"].pop(name, None)
        return document

    app.openapi = openapi  # FastAPI's documented way to change the document
