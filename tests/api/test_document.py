"""The contract does not drift unseen."""

from __future__ import annotations

from tests.api.document import COPY, as_text, openapi_document, without_version


def test_the_document_is_the_copy_under_version_control() -> None:
    kept = COPY.read_text(encoding="utf-8")
    assert as_text(without_version(openapi_document())) == kept, (
        f"{COPY.name} is not what the application states: renew it with `scripts/check --fix`, or with "
        "`python -m tests.api.document` alone, and read its difference"
    )


def test_the_document_says_where_a_key_may_stand() -> None:
    document = openapi_document()
    schemes = document["components"]["securitySchemes"]
    assert {(scheme["type"], scheme.get("in"), scheme.get("scheme")) for scheme in schemes.values()} == {
        ("apiKey", "header", None),
        ("http", None, "bearer"),
    }
    for path, methods in document["paths"].items():
        for operation in methods.values():
            assert ("security" in operation) == path.startswith("/api/"), path
