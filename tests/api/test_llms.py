"""`/llms.txt` names what is served, and nothing else."""

from __future__ import annotations

import json
import re
from collections.abc import Callable

import pytest

from pipeline.api.llms import EXPORT, SECTIONS, SUBMIT, llms_text
from tests.api.conftest import Deployment
from tests.api.document import openapi_document

BASE = "https://example.com/studio"
WORDS = {"processing", "success", "failed", "error", "whsec_…", "data:", "Authorization: Bearer KEY", "output[0]"}
"""What stands in backticks and is no field: states, and parts of values."""


@pytest.fixture(scope="module")
def text() -> str:
    return llms_text(openapi_document(), base_url=BASE)


def test_every_operation_of_the_document_is_listed_once_with_its_path(text: str) -> None:
    listed = re.findall(r"^- `(\w+)`: `([A-Z]+) (\S+)`: \S.+$", text, re.MULTILINE)

    assert sorted(listed) == sorted(
        (operation["operationId"], method.upper(), path)
        for path, operations in openapi_document()["paths"].items()
        for method, operation in operations.items()
    )


def test_every_address_is_below_the_public_url_and_in_the_document(text: str) -> None:
    addresses = set(re.findall(r"https?://[^\s)'\"]+", text)) - {"https://example.com/subject.png"}
    served = {path.replace("{call_id}", "ID") for path in openapi_document()["paths"]} | {"/openapi.json", "/docs"}

    assert {address.removeprefix(BASE) for address in addresses} <= served


@pytest.mark.parametrize("path", [SUBMIT, EXPORT])
def test_every_field_of_an_example_body_exists(text: str, path: str) -> None:
    content = openapi_document()["paths"][path]["post"]["requestBody"]["content"]["application/json"]
    address = re.escape(BASE + path.replace("{call_id}", "ID"))

    found = re.search(rf"curl {address} .*?-d '(\{{.*?\}})'", text, re.DOTALL)

    assert found is not None
    assert json.loads(found[1]).keys() <= content["schema"]["properties"].keys()


def test_every_name_in_backticks_is_a_field_or_a_header(text: str) -> None:
    document = openapi_document()
    prose = re.sub(r"^- [^\n]*$|^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    fields = {name for schema in document["components"]["schemas"].values() for name in schema.get("properties", {})}
    submit = document["paths"][SUBMIT]["post"]
    fields |= submit["requestBody"]["content"]["application/json"]["schema"]["properties"].keys()
    headers = {one["name"] for one in submit["parameters"]}
    headers |= {one["name"] for one in document["webhooks"]["job_ended"]["post"]["parameters"]}

    named = set(re.findall(r"`([^`\n]+)`", prose))
    assert {"webhook", "Idempotency-Key", "retry_after"} <= named
    assert named - fields - headers <= WORDS


def test_every_tag_of_the_document_has_a_section() -> None:
    assert {tag["name"] for tag in openapi_document()["tags"]} == set(SECTIONS)


def test_it_is_served_as_text_with_addresses_below_the_public_url(deploy: Callable[..., Deployment]) -> None:
    answer = deploy(public_url=BASE).client.get("/llms.txt")

    assert answer.headers["content-type"] == "text/plain; charset=utf-8"
    assert answer.text.startswith("# image-to-3d\n")
    assert f"curl {BASE}{SUBMIT} " in answer.text


def test_an_example_submit_is_accepted(deployment: Deployment) -> None:
    served = deployment.client.get("/llms.txt").text
    body = re.search(rf"curl http://testserver{SUBMIT} .*?-d '(\{{.*?\}})'", served, re.DOTALL)

    assert body is not None
    assert deployment.post("/api/v6/3d/estimate", json.loads(body[1])).status_code == 200
