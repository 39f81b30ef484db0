"""Bucket, usage, system details, server actions, files, pages."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable
from dataclasses import replace

import pytest
from starlette.testclient import TestClient
from structlog.testing import capture_logs

from pipeline.api.app import create_app
from pipeline.jobs.model import JobFilter, WorkerRecord
from pipeline.storage.bucket_details import bucket_of_details
from schemas.s3 import parse_s3_details
from tests.api.conftest import IMAGE, METRICS_TOKEN, SUBMIT, Deployment

SECRETS = {"aws_access_key_id": "AKIAEXAMPLE", "aws_secret_access_key": "hunter2-hunter2"}


@pytest.mark.parametrize("prefix", ["/api/v1/enterprise/3d", "/api/v6/3d"])
@pytest.mark.parametrize("action", ["restart_server", "update_server", "update", "clear_cache", "clear_queue"])
def test_server_actions_succeed_for_a_caller_and_no_one_else(deployment: Deployment, prefix: str, action: str) -> None:
    answer = deployment.post(f"{prefix}/{action}")
    assert answer.status_code == 200 and answer.json()["status"] == "success" and answer.json()["message"]
    assert deployment.post(f"{prefix}/{action}", {"key": "wrong"}).status_code == 401


def test_a_caller_cannot_restart_the_workers_in_a_loop(deploy: Callable[..., Deployment]) -> None:
    deployment, restart = deploy(restart_pause_s=3600), "/api/v1/enterprise/3d/restart_server"
    first, *others = [deployment.post(restart).json() for _ in range(5)]

    assert deployment.service.store.restarts_requested() == 1
    assert first["status"] == "success" and "when their running jobs" in first["message"]
    assert all(answer["status"] == "success" and "3600 s ago" in answer["message"] for answer in others)


def test_without_a_pause_every_restart_request_counts(deploy: Callable[..., Deployment]) -> None:
    deployment = deploy(restart_pause_s=0)
    for _ in range(3):
        deployment.post("/api/v6/3d/update")
    assert deployment.service.store.restarts_requested() == 3


def test_clearing_the_queue_cancels_only_the_callers_own_jobs(deployment: Deployment) -> None:
    mine = deployment.submit()["id"]
    theirs = deployment.submit(key=deployment.other_key)["id"]
    assert deployment.post("/api/v1/enterprise/3d/clear_queue").json()["message"] == "Cancelled 1 queued jobs."
    states = {job.id: job.state for job in deployment.service.store.list_jobs(JobFilter(None))}
    assert states == {mine: "cancelled", theirs: "queued"}


def test_system_details_count_engines_and_the_wait(deployment: Deployment) -> None:
    details = "/api/v1/enterprise/3d/system_details"
    assert deployment.post(details).json() == {"status": "ok", "model_count": 0, "queue_time": 20}
    seen_at = __import__("time").time()
    deployment.service.store.heartbeat_worker(WorkerRecord("w", "preview", seen_at, is_ready=True))
    assert deployment.post(details).json() == {"status": "ok", "model_count": 1, "queue_time": 0}


def test_usage_counts_a_keys_own_jobs_as_json_and_csv(deployment: Deployment) -> None:
    deployment.finish(deployment.submit()["id"])
    headers = {"key": deployment.key}
    (day,) = deployment.client.get("/api/v1/usage", headers=headers).json()["days"]
    assert (day["calls"], day["succeeded"], day["failed"]) == (1, 1, 0)
    (row,) = csv.DictReader(io.StringIO(deployment.client.get("/api/v1/usage?format=csv", headers=headers).text))
    assert row["calls"] == "1" and row["day"] == day["day"]
    assert deployment.client.get("/api/v1/usage", headers={"key": deployment.other_key}).json()["days"] == []
    assert deployment.client.get("/api/v1/usage").status_code == 401


def test_usage_in_an_unknown_format_is_a_400(deployment: Deployment) -> None:
    answer = deployment.client.get("/api/v1/usage?format=xml", headers={"key": deployment.key})
    assert (answer.status_code, answer.json()["message"]) == (400, "format must be json or csv, got 'xml'")


def test_a_bucket_at_a_blocked_address_is_refused_without_repeating_its_secrets(deployment: Deployment) -> None:
    body = {**SECRETS, "endpoint_url": "http://169.254.169.254/bucket"}
    answer = deployment.post("/api/v1/enterprise/update_s3", body)
    assert answer.status_code == 400 and "169.254.169.254" in answer.json()["message"]
    assert "hunter2" not in answer.text
    assert deployment.service.store.s3_of("first") is None
    assert deployment.post("/api/v1/enterprise/reset_s3").json()["message"] == "There was no bucket."


@pytest.mark.parametrize(
    ("details", "expected"),
    [
        (
            {"endpoint_url": "https://shop.s3.amazonaws.com", "image_directory": "3d"},
            (None, "shop", False, "3d", "https://shop.s3.us-east-1.amazonaws.com/3d"),
        ),
        (
            {
                "endpoint_url": "http://minio.test:9000/shop/",
                "public_url": "https://cdn.test/",
                "image_directory": "/a/b/",
            },
            ("http://minio.test:9000", "shop", True, "a/b", "https://cdn.test/a/b"),
        ),
        (
            {"endpoint_url": "https://minio.test", "image_directory": "shop/3d", "public_url": "https://cdn.test/3d/"},
            ("https://minio.test", "shop", True, "3d", "https://cdn.test/3d"),
        ),
        (
            {"endpoint_url": "https://shop.nyc3.digitaloceanspaces.com"},
            ("https://nyc3.digitaloceanspaces.com", "shop", False, "", "https://shop.nyc3.digitaloceanspaces.com"),
        ),
        (
            {"endpoint_url": "https://id.r2.cloudflarestorage.com", "bucket": "shop", "image_directory": "x"},
            ("https://id.r2.cloudflarestorage.com", "shop", True, "x", "https://id.r2.cloudflarestorage.com/shop/x"),
        ),
        ({"bucket": "shop"}, (None, "shop", False, "", "https://shop.s3.us-east-1.amazonaws.com")),
    ],
)
def test_the_bucket_is_found_in_host_path_or_directory(details: dict[str, str], expected: tuple[object, ...]) -> None:
    bucket = bucket_of_details(parse_s3_details({**SECRETS, **details}))
    found = (bucket.endpoint_url, bucket.name, bucket.is_path_style, bucket.directory, bucket.public_url)
    assert found == expected


def test_a_file_is_served_with_ranges_and_validators(deployment: Deployment) -> None:
    submitted = deployment.submit(output_format="glb")
    deployment.finish(submitted["id"])
    url = submitted["future_links"][0]
    whole = deployment.client.get(url)
    assert whole.headers["content-type"] == "model/gltf-binary" and whole.headers["accept-ranges"] == "bytes"
    part = deployment.client.get(url, headers={"range": "bytes=5-14"})
    assert (part.status_code, part.content) == (206, b"5678901234")
    assert deployment.client.get(url, headers={"range": "bytes=500-"}).status_code == 416
    assert deployment.client.get(url, headers={"if-none-match": whole.headers["etag"]}).status_code == 304
    assert deployment.client.head(url).headers["content-length"] == "100"
    for validator in (whole.headers["etag"], whole.headers["last-modified"]):
        resumed = deployment.client.get(url, headers={"range": "bytes=5-14", "if-range": validator})
        assert (resumed.status_code, resumed.content) == (206, b"5678901234")
    mismatched = deployment.client.get(url, headers={"range": "bytes=5-14", "if-range": '"of another file"'})
    assert (mismatched.status_code, mismatched.content) == (200, whole.content)
    assert deployment.client.get(url, headers={"range": "bytes=-3"}).content == whole.content[-3:]
    head = deployment.client.head(url, headers={"range": "bytes=5-14"})
    assert (head.status_code, head.content, head.headers["content-length"]) == (206, b"", "10")
    altered = url.replace("/files/", "/files/x")
    assert deployment.client.get(altered).status_code == 404


def test_a_service_is_ready_when_a_worker_is(deployment: Deployment) -> None:
    board = deployment.service.store
    none = deployment.client.get("/ready")
    assert none.status_code == 503
    assert none.json() == {"status": "unavailable", "reasons": ["no worker is running; jobs wait in the queue"]}
    board.heartbeat_worker(WorkerRecord("full", "preview", 0.0, is_ready=False))
    reasons = ["no worker is ready for a job; jobs wait in the queue"]

    unready = deployment.client.get("/ready")
    assert (unready.status_code, unready.json()) == (503, {"status": "unavailable", "reasons": reasons})
    board.heartbeat_worker(WorkerRecord("roomy", "preview", 0.0, is_ready=True))
    assert deployment.client.get("/ready").json() == {"status": "ok", "reasons": []}


def test_readiness_names_the_engines_that_no_worker_has(deploy: Callable[..., Deployment]) -> None:
    deployment = deploy(engine="preview", engines="triposr,trellis")
    registry = deployment.service.store

    registry.heartbeat_worker(WorkerRecord("cpu", "preview", 0.0, is_ready=True))
    registry.heartbeat_worker(WorkerRecord("full", "trellis", 0.0, is_ready=False))
    waiting = [f"no worker has the engine {name}; its jobs wait in the queue" for name in ("triposr", "trellis")]
    assert deployment.client.get("/ready").json() == {"status": "ok", "reasons": waiting}

    registry.heartbeat_worker(WorkerRecord("gpu", "trellis,triposr", 0.0, is_ready=True))
    assert deployment.client.get("/ready").json() == {"status": "ok", "reasons": []}


def test_a_job_is_recorded_with_the_engine_that_it_needs(deploy: Callable[..., Deployment]) -> None:
    deployment = deploy(engine="preview", engines="triposr")

    for fields in ({}, {"engine": "triposr"}, {"engine": "preview"}):
        deployment.submit(**fields)

    jobs = deployment.service.store.list_jobs(JobFilter(None))
    assert [job.engine for job in reversed(jobs)] == ["preview", "triposr", "preview"]


def test_a_service_that_starts_workers_on_demand_is_ready_without_one(deployment: Deployment) -> None:
    service = replace(deployment.service, starts_workers_on_demand=True)
    client = TestClient(create_app(service.settings, service=service))

    answer = client.get("/ready")

    assert (answer.status_code, answer.json()["status"]) == (200, "ok")


def test_pages_answer_without_a_key(deployment: Deployment) -> None:
    assert deployment.client.get("/health").json() == {"status": "ok"}
    page = deployment.client.get("/")
    assert "image-to-3d" in page.text and "default-src 'none'" in page.headers["content-security-policy"]
    for name in ("playground.js", "playground.css", "model-viewer.min.js"):
        assert deployment.client.get(f"/playground/{name}").status_code == 200
    for path in ("/playground/../app.py", "/playground/index.html", "/docs/swagger-ui.LICENSE", "/docs/../app.py"):
        assert deployment.client.get(path).status_code == 404


def test_the_reference_loads_nothing_from_other_origins(deployment: Deployment) -> None:
    page = deployment.client.get("/docs")
    linked = re.findall(r'(?:src|href)="([^"]*)"', page.text)
    own = [deployment.client.get(f"/docs/{name}").text for name in ("reference.js", "reference.css")]

    assert "/docs/swagger-ui-bundle.js" in linked
    for path in linked:
        assert re.match(r"/(?!/)", path)  # below the service's address; PUBLIC_URL's path is put in front
        assert deployment.client.get(path).status_code == 200
    assert not re.search(r"//\w", "".join([page.text, *own]))
    allowed = dict(rule.split(" ", 1) for rule in page.headers["content-security-policy"].split("; "))
    assert allowed["default-src"] == "'none'"
    assert {source for sources in allowed.values() for source in sources.split()} == {"'none'", "'self'", "data:"}
    assert (
        deployment.client.get("/redoc").status_code == deployment.client.get("/docs/oauth2-redirect").status_code == 404
    )


def test_static_files_are_compressed_and_revalidated(deployment: Deployment) -> None:
    for path in ("/docs/swagger-ui-bundle.js", "/playground/model-viewer.min.js"):
        with deployment.client.stream("GET", path, headers={"accept-encoding": "gzip"}) as first:
            sent_bytes = sum(map(len, first.iter_raw()))
        again = deployment.client.get(path, headers={"if-none-match": first.headers["etag"]})

        assert sent_bytes < 500_000 and first.headers["content-encoding"] == "gzip"
        assert (again.status_code, again.content) == (304, b"")
        assert first.headers["cache-control"] == again.headers["cache-control"] == "no-cache"


def test_metrics_require_the_operators_token(deployment: Deployment) -> None:
    deployment.finish(deployment.submit()["id"])
    for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": f"Bearer {deployment.key}"}):
        assert deployment.client.get("/metrics", headers=headers).status_code == 401
    metrics = deployment.client.get("/metrics", headers={"authorization": f"Bearer {METRICS_TOKEN}"}).text
    assert 'image_to_3d_ended_total{state="success"} 1.0' in metrics and "image_to_3d_submits_total 1.0" in metrics


@pytest.mark.parametrize(
    ("peer", "headers", "status"),
    [
        ("127.0.0.1", {}, 200),
        ("::1", {}, 200),
        ("127.0.0.1", {"host": "localhost"}, 200),
        ("127.0.0.1", {"host": "[::1]:9000"}, 200),
        ("192.0.2.7", {}, 401),
        ("127.0.0.1", {"x-forwarded-for": "192.0.2.7"}, 401),
        ("127.0.0.1", {"x-forwarded-host": "3d.example.com"}, 401),
        ("127.0.0.1", {"forwarded": "for=192.0.2.7"}, 401),
        ("127.0.0.1", {"cf-connecting-ip": "192.0.2.7"}, 401),
        ("127.0.0.1", {"host": "rebound.example"}, 401),  # DNS rebinding of a browser on this machine
        ("127.0.0.1", {"host": "3d.example.com"}, 401),
        ("127.0.0.1", {"host": "localhost.example.com"}, 401),
        ("127.0.0.1", {"host": "192.168.1.5:8000"}, 401),
        ("127.0.0.1", {"host": ""}, 401),
    ],
)
def test_without_a_token_metrics_are_only_for_this_machine(
    deploy: Callable[..., Deployment], peer: str, headers: dict[str, str], status: int
) -> None:
    deployment = deploy(metrics_token=None, public_url=None, peer=(peer, 50000))
    answer = deployment.client.get("/metrics", headers={"host": "127.0.0.1:8000", **headers})
    assert answer.status_code == status


def test_without_a_token_metrics_are_closed_where_a_proxy_is_in_front(deploy: Callable[..., Deployment]) -> None:
    deployment = deploy(metrics_token=None, public_url="https://3d.example.com", peer=("127.0.0.1", 50000))
    assert deployment.client.get("/metrics", headers={"host": "127.0.0.1:8000"}).status_code == 401


@pytest.mark.parametrize(
    ("host", "start"),
    [
        ("localhost:8000", "http://localhost:8000/"),
        ("127.0.0.1:1234", "http://127.0.0.1:1234/"),
        ("[::1]:8000", "http://[::1]:8000/"),
        ("192.168.1.5:8000", "http://192.168.1.5:8000/"),
        ("evil.example", "http://127.0.0.1:8000/"),
        ("evil.example:80@localhost", "http://127.0.0.1:8000/"),
        ("203.0.113.9", "http://127.0.0.1:8000/"),
        ("169.254.169.254", "http://127.0.0.1:8000/"),
        ("localhost.evil.example", "http://127.0.0.1:8000/"),
    ],
)
def test_without_a_public_url_links_never_follow_a_foreign_host(
    deploy: Callable[..., Deployment], host: str, start: str
) -> None:
    deployment = deploy(public_url=None)
    headers = {"host": host, "x-forwarded-host": "evil.example", "prefer": "wait=0"}
    body = deployment.post(SUBMIT, {"image": IMAGE}, **headers).json()
    assert body["fetch_result"].startswith(start + "api/")
    assert all(link.startswith("http://127.0.0.1:8000/files/") for link in body["future_links"])


@pytest.mark.parametrize(
    ("public_url", "headers", "warnings"),
    [
        (None, {"x-forwarded-for": "203.0.113.9"}, 1),
        (None, {"forwarded": "for=203.0.113.9"}, 1),
        (None, {}, 0),
        ("https://3d.example.com", {"x-forwarded-for": "203.0.113.9"}, 0),
    ],
)
def test_a_proxy_in_front_of_a_service_without_a_public_url_is_told_in_the_log_once(
    deploy: Callable[..., Deployment], public_url: str | None, headers: dict[str, str], warnings: int
) -> None:
    deployment = deploy(public_url=public_url)
    with capture_logs() as lines:
        for _ in range(3):
            deployment.post(SUBMIT, {"image": IMAGE}, prefer="wait=0", **headers)

    assert sum("PUBLIC_URL is not set" in line["event"] for line in lines) == warnings


def test_every_answer_forbids_to_guess_its_type(deployment: Deployment) -> None:
    submitted = deployment.submit()
    deployment.finish(submitted["id"])
    for path in ("/health", "/ready", "/", "/docs", "/openapi.json", "/nowhere", submitted["future_links"][0]):
        assert deployment.client.get(path).headers["x-content-type-options"] == "nosniff", path
    for answer in (
        deployment.post("/api/v6/3d/image_to_3d"),
        deployment.post(f"{SUBMIT}/"),
        deployment.client.put("/"),
    ):
        assert answer.headers.get_list("x-content-type-options") == ["nosniff"]


def test_the_openapi_document_lists_every_path_with_its_errors(deployment: Deployment) -> None:
    document = deployment.client.get("/openapi.json").json()
    submit = document["paths"]["/api/v1/enterprise/3d/image_to_3d"]["post"]
    assert {"200", "400", "401", "402", "413", "429", "500", "503"} <= submit["responses"].keys()
    schema = submit["requestBody"]["content"]["application/json"]["schema"]
    assert schema["properties"]["mesh_simplify"]["minimum"] == 0.9


def test_the_openapi_document_lists_no_status_that_is_never_returned(deployment: Deployment) -> None:
    document = deployment.client.get("/openapi.json").json()
    operations = [operation for path in document["paths"].values() for operation in path.values()]

    assert all("422" not in operation["responses"] for operation in operations)
    assert all(operation["summary"].count(" ") >= 2 for operation in operations), "sentences, not names of functions"
    assert not [name for name in document["components"]["schemas"] if "Validation" in name]
