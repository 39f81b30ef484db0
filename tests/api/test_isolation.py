"""A key sees nothing of another key's data; every route of the OpenAPI document is tested."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import boto3
import pytest

from tests.api.conftest import IMAGE, Deployment
from tests.api.document import openapi_document
from tests.servers.s3 import moto_server

DEPLOYMENT_WIDE = {"/engines", "/health", "/ready", "/metrics", "/files/{token}/{name}", "/sample/{name}"}
"""Routes without a caller: they describe the deployment, or the link itself grants access."""
TRACK_ID = "a-track-id-of-the-first-caller"
ENCRYPTED_BUCKET = b"the first caller's encrypted bucket"

OPERATIONS = [(method, path) for path, methods in openapi_document()["paths"].items() for method in methods]
OF_CALLERS = [operation for operation in OPERATIONS if operation[1] not in DEPLOYMENT_WIDE]


def ask(deployment: Deployment, method: str, path: str, *, key: str, job_id: int) -> Any:
    """Send a request to a route with a key, about one job."""
    target, headers = path.replace("{call_id}", str(job_id)), {"key": key, "prefer": "wait=0"}
    if method == "get":
        return deployment.client.get(target, headers=headers)
    takes_image = path.rpartition("/")[2] in ("image_to_3d", "estimate", "uploads", "base64_to_url")
    body = {"image": IMAGE} if takes_image else {"request_id": str(job_id), "track_id": TRACK_ID}
    return deployment.client.post(target, json=body, headers=headers)


@pytest.mark.parametrize("has_ended", [True, False], ids=["ended", "queued"])
@pytest.mark.parametrize(("method", "path"), OF_CALLERS)
def test_no_route_shows_or_changes_anything_of_another_key(
    deployment: Deployment, method: str, path: str, has_ended: bool
) -> None:
    job_id = deployment.submit(track_id=TRACK_ID, webhook="https://example.com/hook")["id"]
    if has_ended:
        deployment.finish(job_id)
    store = deployment.service.store
    mine = store.get(job_id, api_key_id=None)
    store.save_s3(mine.api_key_id, ENCRYPTED_BUCKET)

    answer = ask(deployment, method, path, key=deployment.other_key, job_id=job_id)

    for secret in (TRACK_ID, mine.file_prefix, "example.com/hook", ENCRYPTED_BUCKET.decode()):
        assert secret not in answer.text
    assert store.get(job_id, api_key_id=None) == mine
    assert store.s3_of(mine.api_key_id) == ENCRYPTED_BUCKET
    assert {task.attempts for task in store.tasks_of(job_id)} <= {0}
    if "{call_id}" in path or path.endswith("/fetch"):
        unknown = ask(deployment, method, path, key=deployment.other_key, job_id=1)
        assert answer.status_code == unknown.status_code == 404
        assert answer.text.replace(str(job_id), "1") == unknown.text


@pytest.mark.parametrize(("method", "path"), OF_CALLERS)
def test_every_route_refuses_a_missing_or_wrong_key(deployment: Deployment, method: str, path: str) -> None:
    job_id = deployment.submit()["id"]
    for key, sentence in (("", "API key required"), ("wrong", "Invalid API key")):
        answer = ask(deployment, method, path, key=key, job_id=job_id)
        assert (answer.status_code, answer.json()["message"]) == (401, sentence)


def test_usage_does_not_include_another_key(deployment: Deployment) -> None:
    deployment.finish(deployment.submit()["id"])

    for form in ("json", "csv"):
        answer = deployment.client.get(f"/api/v1/usage?format={form}", headers={"key": deployment.other_key})
        assert answer.json()["days"] == [] if form == "json" else len(answer.text.splitlines()) == 1
    assert deployment.client.get("/api/v1/usage", headers={"key": deployment.key}).json()["days"]


def test_a_bucket_is_saved_only_for_its_own_key(deploy: Callable[..., Deployment], tmp_path: Path) -> None:
    deployment = deploy(allow_private_addresses=True)
    store = deployment.service.store
    mine, theirs = (key.id for key in store.list_keys())
    store.save_s3(mine, ENCRYPTED_BUCKET)
    access = {"aws_access_key_id": "AKIAEXAMPLE", "aws_secret_access_key": "hunter2-hunter2"}

    with moto_server(tmp_path) as url:
        boto3.client("s3", endpoint_url=url, region_name="us-east-1", **access).create_bucket(Bucket="theirs")
        where = {"public_url": f"{url}/theirs/", "region_name": "us-east-1", "endpoint_url": f"{url}/theirs"}
        saved = deployment.post(
            "/api/v1/enterprise/update_s3", {"key": deployment.other_key, "deploy_type": "3d", **where, **access}
        )

    assert saved.json()["status"] == "success", saved.text
    assert store.s3_of(mine) == ENCRYPTED_BUCKET
    encrypted = store.s3_of(theirs)
    assert encrypted is not None and b"hunter2" not in encrypted
