"""`update_s3` against endpoints that hang, on a real server: bounded per key, and given up when the caller hangs up."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator

import httpx
import pytest
import uvicorn

from tests.api.conftest import Deployment
from tests.storage.hostile_bucket import HostileBucket, drip_body, hostile_bucket

PATH = "/api/v1/enterprise/update_s3"
WAIT_S = 30.0


@pytest.fixture
def served(deploy: Callable[..., Deployment]) -> Iterator[tuple[Deployment, str]]:
    deployment = deploy(allow_private_addresses=True)
    config = uvicorn.Config(deployment.client.app, port=0, lifespan="off", log_config=None)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield deployment, f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join(WAIT_S)


def details(key: str, endpoint_url: str) -> dict[str, str]:
    secrets = {"aws_access_key_id": "AKIAEXAMPLE", "aws_secret_access_key": "hunter2-hunter2"}
    return {"key": key, "endpoint_url": endpoint_url, "bucket": "b", **secrets}


def start_call(url: str, body: dict[str, str]) -> socket.socket:
    """Send the request, and read no answer."""
    parts = httpx.URL(url)
    connection = socket.create_connection((parts.host, parts.port or 80), timeout=WAIT_S)
    content = json.dumps(body).encode()
    head = (
        f"POST {PATH} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {len(content)}\r\n\r\n"
    )
    connection.sendall(head.encode() + content)
    return connection


def wait_until(holds: Callable[[], bool]) -> None:
    for _ in range(int(WAIT_S / 0.02)):
        if holds():
            return
        time.sleep(0.02)
    raise AssertionError("it never came true")


def test_a_key_tries_a_few_buckets_at_once_and_no_other_key_waits(served: tuple[Deployment, str]) -> None:
    deployment, url = served
    with hostile_bucket(drip_body) as dripping:
        calls = [start_call(url, details(deployment.key, dripping.url)) for _ in range(2)]
        wait_until(lambda: len(dripping.requests) == 2)

        refused = httpx.post(url + PATH, json=details(deployment.key, dripping.url), timeout=WAIT_S)
        assert refused.status_code == 429 and refused.json()["error_code"] == "rate_limited"
        assert int(refused.headers["retry-after"]) >= 1
        assert len(dripping.requests) == 2
        other = httpx.post(url + PATH, json=details(deployment.other_key, "http://127.0.0.1:1"), timeout=WAIT_S)
        assert other.status_code == 400 and "cannot be reached" in other.json()["message"]

        for call in calls:  # the callers hang up: their transfers end, and the key may try again
            call.close()
        wait_until(lambda: _is_allowed(url, deployment, dripping))


def _is_allowed(url: str, deployment: Deployment, dripping: HostileBucket) -> bool:
    before = len(dripping.requests)
    call = start_call(url, details(deployment.key, dripping.url))
    try:
        call.settimeout(0.3)
        return not call.recv(1) or len(dripping.requests) > before
    except TimeoutError:
        return len(dripping.requests) > before
    finally:
        call.close()


def test_a_webhook_is_sent_again_a_few_times_a_minute(deployment: Deployment) -> None:
    job = deployment.finish(deployment.submit(webhook="http://1.1.1.1/hook")["id"])
    path = f"/api/v1/enterprise/3d/redeliver/{job.id}"

    answers = [deployment.post(path) for _ in range(7)]

    assert [answer.status_code for answer in answers] == [200] * 5 + [429] * 2
    assert answers[-1].json()["error_code"] == "rate_limited" and answers[-1].headers["retry-after"]
    assert deployment.post(path, {"key": deployment.other_key}).status_code == 404


def test_a_key_sends_so_many_webhooks_again_in_a_minute(deployment: Deployment) -> None:
    ids = [deployment.finish(deployment.submit(webhook="http://1.1.1.1/hook")["id"]).id for _ in range(16)]

    statuses = [
        deployment.post(f"/api/v1/enterprise/3d/redeliver/{job_id}").status_code for _ in range(4) for job_id in ids
    ]

    assert statuses.count(200) == 60 and statuses.count(429) == 4
