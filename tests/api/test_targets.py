"""Paths in every form that clients and proxies send, and requests from pages of other origins."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from tests.api.conftest import IMAGE, SUBMIT, Deployment
from tests.e2e.faults import KEY, Service

PAGE = "https://app.example.com"
HEADERS_OF_CLIENTS = "key, authorization, content-type, idempotency-key, prefer"


@pytest.mark.parametrize("path", [SUBMIT, "/api/v6/3d/image_to_3d"])
def test_a_path_answers_with_and_without_a_slash_at_its_end(deployment: Deployment, path: str) -> None:
    answer = deployment.client.post(
        f"{path}/", json={"key": deployment.key, "image": IMAGE}, headers={"prefer": "wait=0"}, follow_redirects=False
    )
    assert answer.status_code == 200 and answer.json()["status"] == "processing"
    job_id = answer.json()["id"]
    for target in (
        f"/api/v6/3d/fetch/{job_id}/",
        f"http://testserver//api/v6/3d/fetch/{job_id}",
        f"/api/v6//3d/fetch/{job_id}//",
    ):
        assert deployment.post(target).status_code == 200
    assert deployment.client.get("/docs/").text == deployment.client.get("/docs").text


def test_every_url_in_an_answer_begins_with_the_public_address(deploy: Callable[..., Deployment]) -> None:
    deployment = deploy(public_url="https://3d.example.com/studio/")
    body = deployment.submit(output_format="obj")
    urls = [body["fetch_result"], *body["future_links"]]
    urls.append(deployment.post("/api/v6/3d/base64_to_url", {"image": IMAGE.partition(",")[2]}).json()["url"])
    assert all(url.startswith("https://3d.example.com/studio/") and "//" not in url[8:] for url in urls)
    for page in ("/", "/docs", "/docs/"):
        links = deployment.client.get(page).text
        assert '"/studio/playground/mark.svg"' in links and '="/docs' not in links and '="/openapi' not in links


def test_a_target_in_absolute_form_is_answered(tmp_path: Path) -> None:
    service = Service(tmp_path / "data", workers=0)
    service.start()
    try:
        service.wait_until_ready()
        host, port = service.address.removeprefix("http://").split(":")
        for target in ("http://3d.example.com/health", "HTTP://user@x:1/health/", "/health"):
            with socket.create_connection((host, int(port)), timeout=10) as connection:
                connection.sendall(f"GET {target} HTTP/1.1\r\nHost: y\r\nConnection: close\r\n\r\n".encode())
                assert connection.recv(100).startswith(b"HTTP/1.1 200 ")
    finally:
        service.stop()


@pytest.mark.parametrize(
    "path", ["/", "/docs", "/docs/", "/health", "/ready", "/llms.txt", "/openapi.json", "/engines"]
)
def test_head_answers_as_get_without_a_body(deployment: Deployment, path: str) -> None:
    head, whole = deployment.client.head(path), deployment.client.get(path)
    assert (head.status_code, head.content) == (whole.status_code, b"")
    assert head.headers["content-type"] == whole.headers["content-type"]
    assert head.headers["content-length"] == str(len(whole.content))


def test_head_of_a_stream_of_events_ends_at_once(tmp_path: Path) -> None:
    service = Service(tmp_path / "data", workers=0)
    service.start()
    try:
        service.wait_until_ready()
        with httpx.Client(base_url=service.address, headers={"key": KEY}, timeout=20) as client:
            job_id = client.post(SUBMIT, json={"image": IMAGE}, headers={"prefer": "wait=0"}).json()["id"]
            answer = client.head(f"/api/v1/enterprise/3d/events/{job_id}")
            assert answer.status_code == 200 and answer.headers["content-type"].startswith("text/event-stream")
            assert client.head("/health").status_code == 200  # the connection is whole
            assert client.head(SUBMIT).status_code == 405
    finally:
        service.stop()


def test_pages_of_other_origins_are_not_admitted_by_default(deployment: Deployment) -> None:
    preflight = {"origin": PAGE, "access-control-request-method": "POST"}
    assert deployment.client.options(SUBMIT, headers=preflight).status_code == 405
    answer = deployment.client.post(SUBMIT, json={}, headers={"origin": PAGE})
    assert "access-control-allow-origin" not in answer.headers


@pytest.mark.parametrize(
    "origins", [(PAGE, "http://localhost:3000/"), ("*",), ("https://*.example.com",), (f"{PAGE}:*", "null")]
)
def test_pages_of_admitted_origins_call_the_api(deploy: Callable[..., Deployment], origins: tuple[str, ...]) -> None:
    deployment = deploy(cors_origins=origins)
    admitted = "*" if "*" in origins else PAGE
    preflight = {
        "origin": PAGE,
        "access-control-request-method": "POST",
        "access-control-request-headers": HEADERS_OF_CLIENTS,
    }
    for path in (SUBMIT, f"{SUBMIT}/", "/files/token/name.glb"):
        answer = deployment.client.options(path, headers=preflight)
        assert answer.status_code == 200
        assert answer.headers["access-control-allow-origin"] == admitted
        assert answer.headers["access-control-allow-headers"] == HEADERS_OF_CLIENTS
        assert "access-control-allow-credentials" not in answer.headers

    body = {"key": deployment.key, "image": IMAGE}
    headers = {"origin": PAGE, "prefer": "wait=0", "idempotency-key": "once"}
    accepted, replayed = (deployment.client.post(SUBMIT, json=body, headers=headers) for _ in range(2))
    refused = deployment.client.post(SUBMIT, json={"image": IMAGE}, headers=headers)
    missing = deployment.client.get("/files/token/name.glb", headers=headers)
    for answer, status in ((accepted, 200), (replayed, 200), (refused, 401), (missing, 404)):
        assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (status, admitted)
        exposed = answer.headers["access-control-expose-headers"].lower().split(", ")
        assert {"retry-after", "x-ratelimit-limit", "idempotent-replayed", "x-request-id"} <= set(exposed)
    assert replayed.headers["idempotent-replayed"] == "true" and "idempotent-replayed" not in accepted.headers


def test_pages_of_other_origins_stay_out_where_some_are_admitted(deploy: Callable[..., Deployment]) -> None:
    deployment = deploy(cors_origins=(PAGE,))
    preflight = {"origin": "https://evil.example", "access-control-request-method": "POST"}
    assert "access-control-allow-origin" not in deployment.client.options(SUBMIT, headers=preflight).headers
    for path in ("/metrics", "/", "/openapi.json", "/ready"):
        assert "access-control-allow-origin" not in deployment.client.get(path, headers={"origin": PAGE}).headers


def test_an_idempotency_key_with_another_body_is_refused(deployment: Deployment) -> None:
    first, other = (
        deployment.post(SUBMIT, {"image": IMAGE, "seed": seed}, **{"idempotency-key": "k", "prefer": "wait=0"})
        for seed in (1, 2)
    )
    assert first.status_code == 200
    assert (other.status_code, other.json()["error_code"]) == (400, "idempotency_key_reused")


def test_a_path_of_an_earlier_version_is_answered_with_what_is_offered(deployment: Deployment) -> None:
    answer = deployment.post("/api/v3/txt_to_3d", {"prompt": "a red ball"})
    assert (answer.status_code, answer.json()["error_code"]) == (404, "not_found")
    assert "image_to_3d, text_to_3d, fetch and base64_to_url are offered under" in answer.json()["message"]


def test_every_3d_path_of_modelslab_clients_is_served(deployment: Deployment) -> None:
    """The paths that their Python, JavaScript, Go, PHP and Dart clients call; `test_text` has text_to_3d."""
    job_id = deployment.submit()["id"]
    for prefix in ("/api/v6/3d", "/api/v1/enterprise/3d"):
        for path in (f"fetch/{job_id}", "clear_cache", "clear_queue", "update", "restart_server"):
            assert deployment.post(f"{prefix}/{path}", prefer="wait=0").status_code == 200, path
    assert deployment.post("/api/v1/enterprise/3d/system_details").status_code == 200
