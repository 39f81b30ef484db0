"""The OpenAPI document: no change goes unnoticed, and it lists what the code has."""

from __future__ import annotations

import re
from collections.abc import Callable

from pipeline.errors import (
    CallerError,
    ImageTo3DError,
    LimitReached,
    StageError,
    error_classes,
)
from tests.api.conftest import Deployment
from tests.api.document import COPY, as_text, openapi_document, without_version

SOURCES = ("pipeline.errors", "schemas.errors")


def test_the_document_is_the_copy_under_version_control() -> None:
    kept = COPY.read_text(encoding="utf-8")
    assert as_text(without_version(openapi_document())) == kept, (
        f"{COPY.name} differs from what the application states: update it with `scripts/check --fix`, or with "
        "`python -m tests.api.document` alone, and read its diff"
    )


def test_the_document_says_where_a_key_may_be_sent() -> None:
    document = openapi_document()
    schemes = document["components"]["securitySchemes"]
    assert {(scheme["type"], scheme.get("in"), scheme.get("scheme")) for scheme in schemes.values()} == {
        ("apiKey", "header", None),
        ("http", None, "bearer"),
    }
    for path, methods in document["paths"].items():
        for operation in methods.values():
            assert ("security" in operation) == path.startswith("/api/"), path


def test_the_document_lists_every_error_code_with_whether_a_retry_may_help() -> None:
    pattern = r"^\| `(\w+)` \| (yes|no|sometimes) \| (.+) \|$"
    rows = re.findall(pattern, openapi_document()["info"]["description"], re.MULTILINE)

    expected: dict[str, set[bool]] = {}
    for error in error_classes():
        expected.setdefault(error.code, set()).add(error.retryable)
    meanings = {"yes": {True}, "no": {False}, "sometimes": {True, False}}
    assert {code: meanings[answer] for code, answer, _ in rows} == expected
    assert len(rows) == len(expected)


def test_every_error_class_has_a_code_of_its_own_or_differs_in_whether_to_retry() -> None:
    def subclasses(root: type[ImageTo3DError]) -> set[type[ImageTo3DError]]:
        return {root}.union(*(subclasses(child) for child in root.__subclasses__()))

    bases = {ImageTo3DError, CallerError, LimitReached}

    assert set(error_classes()) == {one for one in subclasses(ImageTo3DError) - bases if one.__module__ in SOURCES}
    for one in error_classes():
        base = one.__base__
        assert base is not None
        # A class without a code of its own exists to differ from its base in this.
        assert "code" in vars(one) or one.retryable != getattr(base, "retryable", None), one
    assert StageError in error_classes()


def test_every_field_and_parameter_has_a_description() -> None:
    document = openapi_document()
    schemas = dict(document["components"]["schemas"])
    missing = []
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            unnamed = [one["name"] for one in operation.get("parameters", ()) if not one.get("description")]
            missing += [f"{method} {path}: {name}" for name in unnamed]
            for media_type, content in operation.get("requestBody", {}).get("content", {}).items():
                schemas[f"{method} {path} {media_type}"] = content["schema"]
    for name, schema in schemas.items():
        fields = schema.get("properties", {}).items()
        missing += [f"{name}.{field}" for field, one in fields if not one.get("description")]

    assert missing == []


def test_the_headers_that_change_an_answer_are_parameters() -> None:
    headers = {
        operation["operationId"].removesuffix("_v6"): {
            one["name"] for one in operation.get("parameters", ()) if one["in"] == "header"
        }
        for methods in openapi_document()["paths"].values()
        for operation in methods.values()
    }

    for name in ("submit", "submit_text", "export"):
        assert headers[name] == {"Idempotency-Key", "Prefer"}, name
    assert headers["fetch"] == headers["fetch_by_body"] == {"Prefer"}


def test_operation_ids_are_short_and_unique_and_tags_are_described() -> None:
    document = openapi_document()
    operations = [operation for methods in document["paths"].values() for operation in methods.values()]
    ids = [operation["operationId"] for operation in operations]

    assert len(ids) == len(set(ids)) and max(map(len, ids)) <= 24
    assert {"submit", "submit_v6", "fetch", "cancel", "export", "estimate"} <= set(ids)
    described = {tag["name"] for tag in document["tags"] if tag["description"]}
    assert {tag for operation in operations for tag in operation["tags"]} == described


def test_the_document_describes_the_webhook_by_the_bodies_of_a_fetch() -> None:
    document = openapi_document()
    webhook = document["webhooks"]["job_ended"]["post"]
    choices = webhook["requestBody"]["content"]["application/json"]["schema"]["oneOf"]

    names = [choice["$ref"].rpartition("/")[2] for choice in choices]
    assert names == ["SuccessBody", "FailedBody"] and set(names) <= document["components"]["schemas"].keys()
    assert {one["name"] for one in webhook["parameters"]} == {"webhook-id", "webhook-timestamp", "webhook-signature"}


def test_the_document_names_the_deployments_public_address(deploy: Callable[..., Deployment]) -> None:
    deployment = deploy(public_url="https://3d.example.com/studio/")

    assert deployment.client.get("/openapi.json").json()["servers"] == [{"url": "https://3d.example.com/studio"}]
    assert "servers" not in openapi_document()
