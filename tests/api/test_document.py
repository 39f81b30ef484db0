"""The OpenAPI document: no change goes unnoticed, and it lists what the code has."""

from __future__ import annotations

import re

from pipeline.errors import (
    CallerError,
    ImageTo3DError,
    LimitReached,
    StageError,
    error_classes,
)
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
    rows = re.findall(r"^\| `(\w+)` \| (yes|no) \| (.+) \|$", openapi_document()["info"]["description"], re.MULTILINE)

    assert {code: answer == "yes" for code, answer, _ in rows} == {one.code: one.retryable for one in error_classes()}
    assert len(rows) == len({code for code, _, _ in rows})


def test_every_error_class_has_a_code_of_its_own() -> None:
    def subclasses(root: type[ImageTo3DError]) -> set[type[ImageTo3DError]]:
        return {root}.union(*(subclasses(child) for child in root.__subclasses__()))

    bases = {ImageTo3DError, CallerError, LimitReached}

    assert set(error_classes()) == {one for one in subclasses(ImageTo3DError) - bases if one.__module__ in SOURCES}
    assert all("code" in vars(one) for one in error_classes())
    assert StageError in error_classes()
