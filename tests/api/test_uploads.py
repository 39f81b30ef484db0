"""Uploads: every way to send an image, what its URL opens, and who may use it."""

from __future__ import annotations

import base64
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from pipeline.api.upload_allowance import UploadAllowance
from pipeline.errors import RateLimited
from tests.api.conftest import IMAGE, SUBMIT, Deployment

UPLOADS = "/api/v1/enterprise/3d/uploads"
PNG = base64.b64decode(IMAGE.partition(",")[2]) + bytes(2_000)
TEXT = base64.b64encode(PNG).decode()


def send(deployment: Deployment, path: str = UPLOADS, *, key: str | None = None, **body: Any) -> Any:
    headers = {"key": deployment.key if key is None else key, **body.pop("headers", {})}
    return deployment.client.post(path, headers=headers, **body)


def path_of(url: str) -> str:
    return url.removeprefix("http://testserver")


@pytest.mark.parametrize(
    "body",
    [
        {"content": PNG, "headers": {"content-type": "image/png"}},
        {"content": PNG, "headers": {"content-type": "application/octet-stream"}},
        {"content": PNG, "headers": {"content-type": "application/x-www-form-urlencoded"}},
        {"content": PNG},
        {"files": {"image": ("my photo.png", PNG, "image/png")}},
        {"files": {"file": ("x", PNG)}},
        {"json": {"image": TEXT}},
        {"data": {"image": f"data:image/png;base64,{TEXT}"}},
    ],
)
def test_an_image_is_uploaded_in_every_form(deployment: Deployment, body: dict[str, Any]) -> None:
    answer = send(deployment, **body)

    assert answer.status_code == 200, answer.text
    uploaded = answer.json()
    assert uploaded["status"] == "success" and uploaded["output"] == [uploaded["url"]]
    ends_in = datetime.fromisoformat(uploaded["expires_at"]) - datetime.now(UTC)
    assert timedelta(hours=23) < ends_in < timedelta(hours=25)
    stored = deployment.client.get(path_of(uploaded["url"]))
    assert (stored.content, stored.headers["content-type"]) == (PNG, "image/png")


@pytest.mark.parametrize("prefix", ["/api/v1/enterprise/3d", "/api/v6/3d"])
@pytest.mark.parametrize("field", ["init_obj", "image"])
def test_base64_becomes_a_url(deployment: Deployment, prefix: str, field: str) -> None:
    answer = deployment.post(f"{prefix}/base64_to_url", {field: TEXT})
    assert answer.status_code == 200, answer.text
    assert deployment.client.get(path_of(answer.json()["output"][0])).content == PNG
    assert deployment.post(f"{prefix}/base64_to_url", {field: ""}).json()["message"] == "image is required"


def test_several_files_get_a_url_each(deployment: Deployment) -> None:
    files = [("image", ("a.png", PNG)), ("image", ("b.png", PNG + b"2"))]
    urls = send(deployment, files=files).json()["output"]
    assert [deployment.client.get(path_of(url)).content for url in urls] == [PNG, PNG + b"2"]
    answer = send(deployment, files=files * 5)
    assert (answer.status_code, answer.json()["message"]) == (400, "image must be at most 8 images, got 10")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"content": b"<svg/>", "headers": {"content-type": "application/octet-stream"}}, "an SVG drawing"),
        ({"content": b"", "headers": {"content-type": "image/png"}}, "image is required"),
        ({"files": {"image": ("a.txt", b"hello")}}, "not a readable image"),
        ({"json": {"image": 7}}, "image must be a file, a data URI or base64, got a number"),
        ({"json": {"image": "https://example.com/a.png"}}, "a URL already"),
        ({"files": {"image": ("a.png", PNG + bytes(20 << 20))}}, "larger than 20 MiB"),
    ],
)
def test_what_is_no_image_is_refused(deployment: Deployment, body: dict[str, Any], message: str) -> None:
    answer = send(deployment, **body)
    assert answer.status_code == 400 and message in answer.json()["message"]


def test_a_raw_body_needs_the_key_in_a_header(deployment: Deployment) -> None:
    for key, content in (("", PNG), ("wrong", PNG), ("", PNG + bytes(200_000))):
        answer = send(deployment, key=key, content=content, headers={"content-type": "image/png"})
        assert answer.status_code == 401


def test_a_submit_takes_the_url_of_an_upload(deployment: Deployment) -> None:
    """Without permission for private addresses: the URL is this service's own, and no connection is made."""
    url = send(deployment, content=PNG, headers={"content-type": "image/png"}).json()["url"]
    for key in (deployment.key, deployment.other_key):  # whoever has the link may use it
        assert deployment.post(SUBMIT, {"key": key, "image": url}, prefer="wait=0").json()["status"] == "processing"


def test_a_submit_refuses_a_link_that_is_not_its_own_to_use(deployment: Deployment) -> None:
    url = send(deployment, content=PNG, headers={"content-type": "image/png"}).json()["url"]
    forged = url.replace(url[-60:-55], "AAAAA")
    answer = deployment.post(SUBMIT, {"image": forged})
    assert answer.status_code == 400
    assert answer.json()["message"] == "image is a link of this service, but there is no such file"


def test_the_output_of_a_job_is_no_image_but_its_thumbnail_may_be(deployment: Deployment) -> None:
    job = deployment.finish(deployment.submit()["id"])
    assert job.result is not None
    answer = deployment.post(SUBMIT, {"image": job.result.artifacts[0].url})
    assert (answer.status_code, answer.json()["error_code"]) == (400, "unreadable_image")


def test_a_key_may_have_only_so_many_bytes_of_uploads(deploy: Callable[..., Deployment]) -> None:
    deployment = deploy(max_upload_bytes=3 * len(PNG))
    for _ in range(3):
        assert send(deployment, content=PNG).status_code == 200
    refused = send(deployment, content=PNG)
    assert (refused.status_code, refused.json()["error_code"]) == (429, "rate_limited")
    assert int(refused.headers["retry-after"]) > 3600
    assert send(deployment, key=deployment.other_key, content=PNG).status_code == 200


def test_the_allowance_is_free_again_when_uploads_have_expired() -> None:
    now = [1000.0]
    allowance = UploadAllowance(max_bytes=10, lifetime_s=60, clock=lambda: now[0])
    allowance.take("a", 6)
    now[0] += 30
    allowance.take("a", 4)
    with pytest.raises(RateLimited) as refusal:
        allowance.take("a", 1)
    assert refusal.value.retry_after_s == 30
    now[0] += 30
    allowance.take("a", 6)
