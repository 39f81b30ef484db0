"""The OpenAPI document: what FastAPI generates from the routes, corrected where the routes behave differently."""

from __future__ import annotations

from functools import cache
from typing import Any

from fastapi import FastAPI

from pipeline.api.body_schema import JSON_TYPE
from pipeline.api.problems import error_schemas

UNUSED_STATUS = "422"
"""FastAPI's own status for invalid values; `problems` answers 400 in its place."""
UNUSED_SCHEMAS = ("HTTPValidationError", "ValidationError")


TAGS: list[dict[str, Any]] = [
    {"name": "jobs", "description": "Submit images, wait for results, export them again, list and manage jobs."},
    {"name": "account", "description": "Your bucket and usage, and ModelsLab's server actions."},
    {"name": "files", "description": "Temporary outputs and uploads behind signed links."},
    {"name": "service", "description": "The state of the deployment, for its operator."},
]
PARAMETERS = {
    "call_id": "id of the job",
    "token": "the signed part of a link",
    "name": "name of the file",
    "format": "`json` or `csv`",
}
"""What path and query parameters are, by their names."""
SIGNATURE_HEADERS = {
    "webhook-id": "the same for all attempts of one webhook: act on each once",
    "webhook-timestamp": "when this attempt was made, seconds since 1970",
    "webhook-signature": "`v1,` and base64 of HMAC-SHA256 over `id.timestamp.body`; several, separated by blanks",
}
WEBHOOK: dict[str, Any] = {
    "post": {
        "operationId": "job_ended",
        "tags": ["jobs"],
        "summary": "A job has ended",
        "description": "Sent to the `webhook` of a submit or an export, signed by the Standard Webhooks scheme and "
        "repeated until it is answered.",
        "parameters": [
            {"name": name, "in": "header", "required": True, "description": text, "schema": {"type": "string"}}
            for name, text in SIGNATURE_HEADERS.items()
        ],
        "requestBody": {
            "required": True,
            "content": {
                JSON_TYPE: {
                    "schema": {
                        "oneOf": [{"$ref": f"#/components/schemas/{name}"} for name in ("SuccessBody", "FailedBody")]
                    }
                }
            },
        },
        "responses": {"2XX": {"description": "Received."}, "410": {"description": "Never send this webhook again."}},
    }
}


def install(app: FastAPI, *, public_url: str | None = None) -> None:
    """Correct the document of an app whose routes are complete, and add what no route states.

    Args:
        public_url: the address of the deployment, the only entry of `servers`.
    """
    generate = app.openapi

    @cache
    def openapi() -> dict[str, Any]:
        document = generate()
        for operations in document["paths"].values():
            for operation in operations.values():
                operation["responses"].pop(UNUSED_STATUS, None)
                for parameter in operation.get("parameters", ()):
                    if "description" not in parameter:
                        parameter["description"] = PARAMETERS[parameter["name"]]
                operation["summary"] = operation.pop("description").removesuffix(".")
                for media_type, content in operation.get("requestBody", {}).get("content", {}).items():
                    if media_type != JSON_TYPE:
                        content["schema"] = _named(content["schema"], document["components"]["schemas"])
        for name in UNUSED_SCHEMAS:
            document["components"]["schemas"].pop(name, None)
        schemas = document["components"]["schemas"] | error_schemas()
        document["components"]["schemas"] = dict(sorted(schemas.items()))
        document["webhooks"] = {"job_ended": WEBHOOK}
        if public_url is not None:
            document["servers"] = [{"url": public_url.rstrip("/")}]
        return document

    app.openapi = openapi  # FastAPI's documented way to change the document


def _named(schema: dict[str, Any], components: dict[str, Any]) -> dict[str, Any]:
    """A reference to a schema that has a title, which is then among the components; others as they are."""
    if "title" not in schema:
        return schema
    components[schema["title"]] = schema
    return {"$ref": f"#/components/schemas/{schema['title']}"}
