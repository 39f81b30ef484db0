"""Errors: the status, the message, the error code, the log entry, and what a response never contains."""

from __future__ import annotations

import io
import json
import sqlite3
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from starlette.requests import Request

from pipeline.api.requests import requested_wait_s
from pipeline.jobs.model import JobFilter, KeyLimits
from pipeline.jobs.stores.sql import connection as database
from pipeline.telemetry import configure_logging
from tests.api.conftest import IMAGE, SUBMIT, Deployment
from tests.test_secrets_in_logs import restored_logging

FETCH, LIST = "/api/v1/enterprise/3d/fetch", "/api/v1/enterprise/3d/list"


@pytest.fixture
def log_lines() -> Iterator[Callable[[], list[dict[str, Any]]]]:
    """Reads the service's log, a dictionary for each line."""
    written = io.StringIO()
    with restored_logging():
        configure_logging("INFO", stream=written)
        yield lambda: [json.loads(line) for line in written.getvalue().splitlines()]


def test_an_internal_error_has_a_request_id_that_is_logged_and_no_internals(
    deployment: Deployment, log_lines: Callable[[], list[dict[str, Any]]]
) -> None:
    job_id = deployment.submit()["id"]
    path = deployment.folder / "data" / "jobs.sqlite"
    with sqlite3.connect(path) as connection:  # a row that no version of the service writes
        connection.execute("UPDATE jobs SET meta = 'not json: hunter2'")
    connection.close()

    answer = deployment.post(f"{FETCH}/{job_id}")

    request_id = answer.headers["x-request-id"]
    assert answer.status_code == 500
    assert answer.json() == {
        "status": "error",
        "message": f"Internal error; quote request id {request_id} when you report it.",
        "error_code": "internal_error",
    }
    (line,) = [line for line in log_lines() if line.get("request_id") == request_id]
    assert line["level"] == "error" and "JSONDecodeError" in line["exception"]
    assert deployment.key not in json.dumps(log_lines())


def test_a_locked_database_is_a_503_with_a_request_id_and_retry_after(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch, log_lines: Callable[[], list[dict[str, Any]]]
) -> None:
    monkeypatch.setattr(database, "BUSY_TIMEOUT_S", 0.05)
    blocker = sqlite3.connect(deployment.folder / "data" / "jobs.sqlite", isolation_level=None)
    blocker.execute("BEGIN IMMEDIATE")

    refused = deployment.post(SUBMIT, {"image": IMAGE}, prefer="wait=0")
    blocker.execute("ROLLBACK")
    blocker.close()
    accepted = deployment.post(SUBMIT, {"image": IMAGE}, prefer="wait=0")

    assert (refused.status_code, refused.headers["retry-after"]) == (503, "2")
    assert refused.headers["x-request-id"] in refused.json()["message"]
    assert refused.json()["error_code"] == "store_unavailable"
    assert [line["level"] for line in log_lines() if line.get("request_id")] == ["warning"]
    assert accepted.status_code == 200
    assert len(deployment.service.store.list_jobs(JobFilter(None))) == 1


@pytest.mark.parametrize("job_id", ["0", "2147483648", "99999999999", "9" * 19, "1" * 20])
def test_an_id_that_no_job_ever_has_is_a_404(deployment: Deployment, job_id: str) -> None:
    for answer in (
        deployment.post(f"{FETCH}/{job_id}"),
        deployment.post(FETCH, {"request_id": job_id}),
        deployment.post(FETCH, {"request_id": int(job_id)}),
    ):
        assert (answer.status_code, answer.json()["message"]) == (404, f"There is no job with the id {job_id}.")


@pytest.mark.parametrize("job_id", ["abc", "1.5", "-1", "²", "1" * 61, True, None, 1.5, [1], {}])
def test_a_malformed_id_is_a_400(deployment: Deployment, job_id: object) -> None:
    answer = deployment.post(FETCH, {"request_id": job_id})
    assert answer.status_code == 400
    assert answer.json()["message"] == "request_id must be the id of a job, a whole number"


@pytest.mark.parametrize(
    "body",
    [
        {"track_id": "a\0b"},
        {"track_id": "\ud800"},
        {"track_id": ["a"]},
        {"track_id": True},
        {"status": "done"},
        {"status": ["success"]},
        {"limit": 201},
        {"limit": "many"},
        {"before": 2**70},
        {"before": -1},
    ],
)
def test_a_list_with_an_invalid_filter_is_a_400(deployment: Deployment, body: dict[str, object]) -> None:
    answer = deployment.post(LIST, body)
    assert answer.status_code == 400 and next(iter(body)) in answer.json()["message"]


def test_errors_as_200_applies_to_the_api_only(deploy: Callable[..., Deployment]) -> None:
    deployment = deploy(KeyLimits(per_minute=1), errors_as_200=True)
    deployment.submit()

    for answer in (
        deployment.post(SUBMIT, {"image": IMAGE}),
        deployment.post(SUBMIT, {"image": "?"}),
        deployment.post(f"{FETCH}/1"),
        deployment.client.get("/api/v1/usage"),
        deployment.client.post("/api/v7/nothing"),
    ):
        assert (answer.status_code, answer.json()["status"]) == (200, "error")
    assert deployment.client.get("/files/a/b").status_code == 404
    assert deployment.client.get("/metrics").status_code == 401


def test_limits_say_in_body_and_headers_when_to_retry(deploy: Callable[..., Deployment]) -> None:
    for limits, status in ((KeyLimits(queued=1), 429), (KeyLimits(per_minute=1), 429), (KeyLimits(per_month=1), 402)):
        deployment = deploy(limits)
        deployment.submit()
        refused = deployment.post(SUBMIT, {"image": IMAGE}, prefer="wait=0")
        assert refused.status_code == status
        assert refused.json()["retry_after"] == int(refused.headers["retry-after"]) >= 1
        assert (refused.headers["x-ratelimit-limit"], refused.headers["x-ratelimit-remaining"]) == ("1", "0")
        assert int(refused.headers["x-ratelimit-reset"]) > 1_700_000_000
        for key in deployment.service.store.list_keys():
            deployment.service.store.revoke_key(key.id)


def test_one_idempotency_key_is_one_job_wherever_the_api_key_is_sent(deployment: Deployment) -> None:
    first = deployment.post(SUBMIT, {"image": IMAGE}, prefer="wait=0", **{"idempotency-key": "k"}).json()
    by_header = deployment.client.post(
        SUBMIT,
        json={"image": IMAGE},
        headers={"key": deployment.key, "prefer": "wait=0", "idempotency-key": "k"},
    )
    other_callers = deployment.post(
        SUBMIT, {"image": IMAGE, "key": deployment.other_key}, prefer="wait=0", **{"idempotency-key": "k"}
    )
    other_path = deployment.post(
        "/api/v6/3d/image_to_3d", {"image": IMAGE}, prefer="wait=0", **{"idempotency-key": "k"}
    )
    too_long = deployment.post(SUBMIT, {"image": IMAGE}, **{"idempotency-key": "k" * 256})

    assert by_header.json()["id"] == first["id"] != other_callers.json()["id"]
    assert other_path.status_code == too_long.status_code == 400


@pytest.mark.parametrize(
    ("preference", "waits_s"),
    [("wait=0", 0), ("wait=3", 3), ("respond-async, wait=7", 7), ('wait="5"', 5), ("wait=100000", 120), ("", 20)],
)
def test_the_wait_is_what_the_caller_prefers_up_to_two_minutes(preference: str, waits_s: float) -> None:
    headers = [(b"prefer", preference.encode())]
    assert requested_wait_s(Request({"type": "http", "headers": headers}), 20) == waits_s
