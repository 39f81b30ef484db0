"""The OpenAPI document: what FastAPI makes of the routes, mended where that is not what the routes do."""

from __future__ import annotations

from functools import cache
from typing import Any

from fastapi import FastAPI

NEVER_ANSWERED = "422"
"""FastAPI's own status for values that do not fit; `problems` answers 400 in their place."""
ITS_SCHEMAS = ("HTTPValidationError", "ValidationError")


def install(app: FastAPI) -> None:
    """Have an application whose routes are complete state them as they are: no 422, and the docstring as summary."""
    made_by_fastapi = app.openapi

    @cache
    def document() -> dict[str, Any]:
        stated = made_by_fastapi()
        for operations in stated["paths"].values():
            for operation in operations.values():
                operation["responses"].pop(NEVER_ANSWERED, None)
                operation["summary"] = operation.pop("description").removesuffix(".")
        for name in ITS_SCHEMAS:
            stated["components"]["schemas"].pop(name, None)
        return stated

    app.openapi = document  # FastAPI's documented way
