"""Submit, fetch, cancel, list, delete, events: responses as the contract states them."""

from __future__ import annotations

import inspect
import json
import threading
import time
from collections.abc import Callable
from datetime import datetime
from typing import Any

import pytest
from fastapi.routing import APIRoute

from pipeline.api import account, events, exports, routes, uploads
from pipeline.jobs.model import JobFilter, JobState, KeyLimits
from tests.api.conftest import IMAGE, SUBMIT, Deployment

FETCH = "/api/v1/enterprise/3d/fetch"


def refusal(message: str, code: str) -> dict[str, str]:
    return {"status": "error", "message": message, "error_code": code}


def test_a_submit_returns_the_url_of_its_result(deployment: Deployment) -> None:
    body = deployment.submit(track_id="order 7")
    assert body["status"] == "processing" and 1 <= body["id"] < 2**31 and isinstance(body["eta"], int)
    assert body["fetch_result"] == f"http://testserver{FETCH}/{body['id']}"
    assert body["output"] == [] and body["track_id"] == "order 7" and isinstance(body["message"], str)
    assert [url.rpartition(".")[2] for url in body["future_links"]] == ["obj", "mtl", "png"]
    assert body["queue_position"] == 1 and body["progress"] == 0


def test_the_two_paths_differ_in_their_default_format(deployment: Deployment) -> None:
    assert deployment.submit()["meta"]["output_format"] == "obj"
    assert deployment.submit("/api/v6/3d/image_to_3d")["meta"]["output_format"] == "glb"


@pytest.mark.parametrize("path", [FETCH + "/{id}", "/api/v6/3d/fetch/{id}", FETCH, "/api/v6/3d/fetch"])
def test_a_job_that_succeeded_is_fetched_under_every_path_and_its_links_answer(
    deployment: Deployment, path: str
) -> None:
    submitted = deployment.submit(output_format="glb", model_id="x")
    deployment.finish(submitted["id"])
    body = deployment.post(path.format(id=submitted["id"]), {"request_id": str(submitted["id"])}).json()
    assert body["status"] == "success" and body["generationTime"] == 1.25
    assert body["output"] == body["proxy_links"] == submitted["future_links"]
    assert "future_links" not in body and body["warning"].startswith("Ignored") and body["meta"]["seed"] == 7
    assert len(body["extra_assets"]) == 1
    for url in [*body["output"], *body["extra_assets"]]:
        assert deployment.client.get(url).content == b"0123456789" * 10


def test_a_failed_job_is_a_200_with_its_message(deployment: Deployment) -> None:
    job_id = deployment.submit(track_id=5)["id"]
    deployment.finish(job_id, state=JobState.FAILED, message="the image shows no subject")
    answer = deployment.post(f"{FETCH}/{job_id}")
    assert answer.status_code == 200
    assert answer.json() | {"meta": 0} == {
        "status": "failed",
        "id": job_id,
        "message": "the image shows no subject",
        "track_id": 5,
        "error_code": "",
        "retryable": False,
        "webhook_status": "",
        "meta": 0,
    } | {name: answer.json()[name] for name in ("created_at", "finished_at", "expires_at")}


def test_answers_state_types_sizes_and_times_of_the_files(deployment: Deployment) -> None:
    submitted = deployment.submit(output_format="glb", retention_s=600)
    job = deployment.finish(submitted["id"])
    body = deployment.post(f"{FETCH}/{job.id}").json()

    model, thumbnail = body["files"]
    assert model | {"expires_at": 0} == {
        "kind": "model",
        "format": "glb",
        "url": body["output"][0],
        "content_type": "model/gltf-binary",
        "bytes": 100,
        "faces": 12,
        "expires_at": 0,
    }
    assert (thumbnail["kind"], thumbnail["format"], thumbnail["faces"]) == ("thumbnail", "png", None)
    created, finished, expires = (seconds(body[name]) for name in ("created_at", "finished_at", "expires_at"))
    assert (created, finished) == (pytest.approx(job.created_at, abs=1e-3), pytest.approx(job.finished_at, abs=1e-3))
    assert expires == seconds(model["expires_at"]) < finished + deployment.service.settings.record_lifetime_s
    assert (submitted["created_at"], submitted["finished_at"], submitted["expires_at"]) == (
        body["created_at"],
        None,
        None,
    )
    (listed,) = deployment.post("/api/v1/enterprise/3d/list").json()["calls"]
    assert listed == body


def seconds(iso: str) -> float:
    """A time of an answer, in seconds since 1970."""
    assert iso.endswith("Z")
    return datetime.fromisoformat(iso).timestamp()


def test_a_lifetime_of_outputs_beyond_the_deployments_longest_is_refused(deploy: Callable[..., Deployment]) -> None:
    deployment = deploy(max_retention_s=3600)

    for retention_s in (59, 3601):
        answer = deployment.post(SUBMIT, {"image": IMAGE, "retention_s": retention_s})
        assert answer.status_code == 400
        assert answer.json()["message"].startswith("retention_s must be between 60 and ")
    assert deployment.submit(retention_s="3600")["meta"]["retention_s"] == 3600


def test_a_submit_waits_for_a_result_that_comes_in_time(deploy: Callable[..., Deployment]) -> None:
    deployment = deploy(submit_wait_s=20)

    def work() -> None:
        while not (queued := deployment.service.store.list_jobs(JobFilter(None))):
            time.sleep(0.02)
        deployment.finish(queued[0].id)

    worker = threading.Thread(target=work)
    worker.start()
    body = deployment.post(SUBMIT, {"image": IMAGE, "output_format": "glb"}).json()
    worker.join()
    assert body["status"] == "success" and len(body["output"]) == 1


@pytest.mark.parametrize("way", ["body", "header", "bearer"])
def test_the_key_may_be_sent_in_three_places(deployment: Deployment, way: str) -> None:
    headers = {"header": {"key": deployment.key}, "bearer": {"authorization": f"Bearer {deployment.key}"}}.get(way, {})
    body = {"image": IMAGE} | ({"key": deployment.key} if way == "body" else {})
    answer = deployment.client.post(SUBMIT, json=body, headers=headers | {"prefer": "wait=0"})
    assert answer.json()["status"] == "processing"


@pytest.mark.parametrize("header", [{"key": "wrong"}, {"authorization": "Bearer a-token-of-the-proxy-before-us"}])
def test_a_valid_key_in_the_body_takes_precedence_over_any_header(
    deployment: Deployment, header: dict[str, str]
) -> None:
    assert deployment.post(SUBMIT, {"image": IMAGE}, prefer="wait=0", **header).json()["status"] == "processing"


@pytest.mark.parametrize(("key", "message"), [(None, "API key required"), ("wrong", "Invalid API key")])
def test_a_submit_without_a_valid_key_is_refused(deployment: Deployment, key: str | None, message: str) -> None:
    answer = deployment.client.post(SUBMIT, json={"key": key, "image": IMAGE})
    assert (answer.status_code, answer.json()) == (401, refusal(message, "unauthorized"))
    assert deployment.service.store.list_jobs(JobFilter(None)) == []


@pytest.mark.parametrize(
    ("body", "code", "message"),
    [
        (
            {"image": IMAGE, "mesh_simplify": 0.5},
            "invalid_request",
            "mesh_simplify must be between 0.9 and 0.98, got 0.5",
        ),
        ({}, "invalid_request", "image is required"),
        (
            {"image": "http://169.254.169.254/a"},
            "blocked_address",
            "169.254.169.254 leads to an address that is not public",
        ),
        (
            {"image": IMAGE, "webhook": "http://127.1/"},
            "blocked_address",
            "127.1 leads to an address that is not public",
        ),
        ({"image": IMAGE, "engine": "magic"}, "invalid_request", "engine must be one of preview, got 'magic'"),
    ],
)
def test_a_bad_field_is_a_400_with_one_sentence(deployment: Deployment, body: dict, code: str, message: str) -> None:
    answer = deployment.post(SUBMIT, body)
    assert (answer.status_code, answer.json()) == (400, refusal(message, code))
    assert deployment.service.store.list_jobs(JobFilter(None)) == []


def test_a_refusal_of_several_views_names_the_engines_that_accept_them(deploy: Callable[..., Deployment]) -> None:
    deployment = deploy(engine="triposr", engines=("preview",))
    body = {"image": [IMAGE, IMAGE], "multi_image": True}
    answer = deployment.post(SUBMIT, body)
    message = "engine triposr takes one view, got 2; preview would take them"
    assert (answer.status_code, answer.json()) == (400, refusal(message, "invalid_request"))
    assert deployment.service.store.list_jobs(JobFilter(None)) == []


@pytest.mark.parametrize("content", [b"{", b"[1]", b'"x"', b"\xff\xfe", b"[" * 100_000])
def test_a_body_that_is_not_an_object_is_a_400(deployment: Deployment, content: bytes) -> None:
    answer = deployment.client.post(SUBMIT, content=content)
    assert answer.status_code == 400 and answer.json()["status"] == "error"
    assert answer.json()["error_code"] == "invalid_request"


def test_a_body_that_is_too_long_is_a_413(deploy: Callable[..., Deployment]) -> None:
    deployment = deploy(max_body_bytes=2048)
    for content in (b"x" * 5000, iter([b"x" * 1500, b"x" * 1500])):
        answer = deployment.client.post(SUBMIT, content=content)
        assert answer.status_code == 413 and answer.json()["status"] == "error"
        assert answer.json()["error_code"] == "body_too_large"


def test_errors_can_be_answered_with_200_for_old_clients(deploy: Callable[..., Deployment]) -> None:
    answer = deploy(errors_as_200=True).client.post(SUBMIT, json={})
    assert (answer.status_code, answer.json()) == (
        200,
        {"status": "error", "message": "API key required", "error_code": "unauthorized"},
    )


def test_unknown_paths_and_methods_answer_in_the_same_form(deployment: Deployment) -> None:
    for answer, status, code in (
        (deployment.client.get("/nothing"), 404, "not_found"),
        (deployment.client.get(SUBMIT), 405, "method_not_allowed"),
    ):
        assert answer.status_code == status and set(answer.json()) == {"status", "message", "error_code"}
        assert answer.json()["error_code"] == code


def test_limits_answer_402_and_429_with_their_headers(deploy: Callable[..., Deployment]) -> None:
    deployment = deploy(KeyLimits(per_minute=2, per_month=100))
    answers = [deployment.post(SUBMIT, {"image": IMAGE}, prefer="wait=0") for _ in range(3)]
    assert [answer.status_code for answer in answers] == [200, 200, 429]
    assert [answer.headers["x-ratelimit-remaining"] for answer in answers] == ["1", "0", "0"]
    refused = answers[2]
    assert refused.json()["retry_after"] == int(refused.headers["retry-after"]) >= 1
    assert refused.json()["message"].startswith("Rate limit exceeded.")
    assert refused.json()["error_code"] == "rate_limited"


def test_a_used_up_quota_is_a_402(deploy: Callable[..., Deployment]) -> None:
    deployment = deploy(KeyLimits(per_month=1))
    deployment.submit()
    answer = deployment.post(SUBMIT, {"image": IMAGE})
    assert answer.status_code == 402 and "resets on" in answer.json()["message"]
    assert answer.json()["error_code"] == "quota_spent"


def test_an_idempotency_key_returns_the_first_job_and_refuses_another_body(deployment: Deployment) -> None:
    def send(**fields: object) -> object:
        headers = {"idempotency-key": "once", "prefer": "wait=0"}
        return deployment.post(SUBMIT, {"image": IMAGE, **fields}, **headers)

    first, again, other = send(seed=1), send(seed=1), send(seed=2)
    assert first.json()["id"] == again.json()["id"]  # type: ignore[attr-defined]
    assert other.status_code == 400  # type: ignore[attr-defined]


def test_a_key_sees_nothing_of_another_keys_jobs(deployment: Deployment) -> None:
    job_id = deployment.submit()["id"]
    other_caller = {"key": deployment.other_key}
    for path in (f"{FETCH}/{job_id}", *(f"/api/v1/enterprise/3d/{verb}/{job_id}" for verb in ("cancel", "delete"))):
        foreign, unknown = (
            deployment.post(path, other_caller),
            deployment.post(path.replace(str(job_id), "1"), other_caller),
        )
        assert foreign.status_code == unknown.status_code == 404
        assert foreign.json()["message"].replace(str(job_id), "1") == unknown.json()["message"]
    events = deployment.client.get(f"/api/v1/enterprise/3d/events/{job_id}", headers={"key": deployment.other_key})
    assert events.status_code == 404
    assert deployment.post("/api/v1/enterprise/3d/list", other_caller).json()["calls"] == []
    assert deployment.post(f"{FETCH}/{job_id}").json()["status"] == "processing"


@pytest.mark.parametrize("job_id", ["0", "99999999999", "abc", "1.5", "-1"])
def test_an_unknown_or_malformed_id_is_a_404_or_a_400(deployment: Deployment, job_id: str) -> None:
    assert deployment.post(f"{FETCH}/{job_id}").status_code in (400, 404)


def test_cancelling_a_queued_job_ends_it(deployment: Deployment) -> None:
    job_id = deployment.submit()["id"]
    assert deployment.post(f"/api/v1/enterprise/3d/cancel/{job_id}").json()["status"] == "failed"


def test_lists_are_paged_newest_first_and_filtered(deployment: Deployment) -> None:
    ids = [deployment.submit(track_id=f"t{number % 2}")["id"] for number in range(5)]
    page = deployment.post("/api/v1/enterprise/3d/list", {"limit": 3}).json()
    rest = deployment.post("/api/v1/enterprise/3d/list", {"limit": 3, "before": page["next"]}).json()
    assert [job["id"] for job in page["calls"] + rest["calls"]] == ids[::-1] and rest["next"] is None
    mine = deployment.post("/api/v1/enterprise/3d/list", {"track_id": "t1"}).json()["calls"]
    assert [job["id"] for job in mine] == [ids[3], ids[1]]
    assert deployment.post("/api/v1/enterprise/3d/list", {"status": "success"}).json()["calls"] == []
    assert deployment.post("/api/v1/enterprise/3d/list", {"limit": 0}).status_code == 400


@pytest.mark.parametrize("spelling", ["{}", " {} ", "{}.0", "00{}"])
def test_numbers_and_words_are_read_alike_in_every_body(deployment: Deployment, spelling: str) -> None:
    job_id = deployment.submit()["id"]
    assert deployment.post(FETCH, {"request_id": spelling.format(job_id)}).json()["id"] == job_id
    filters = {"limit": spelling.format(7), "before": spelling.format(2**40), "status": " Queued", "track_id": " "}
    listed = deployment.post("/api/v1/enterprise/3d/list", filters).json()["calls"]
    assert [job["id"] for job in listed] == [job_id]


def test_a_number_without_a_fraction_is_whole(deployment: Deployment) -> None:
    job_id = deployment.submit()["id"]
    assert deployment.post(FETCH, {"request_id": float(job_id)}).json()["id"] == job_id
    for value in (1.5, "1.5", True, "٥", "1e400", "9" * 61, [job_id], "", None):
        assert deployment.post(FETCH, {"request_id": value}).status_code == 400


@pytest.mark.parametrize("blank", [" ", "\n", "\t"])
def test_blanks_around_a_key_do_not_count(deployment: Deployment, blank: str) -> None:
    for image in (IMAGE, IMAGE + " " * 100_000):  # one body is read before its key is known
        body = {"key": f"{blank}{deployment.key}{blank}", "image": image}
        assert deployment.client.post(SUBMIT, json=body, headers={"prefer": "wait=0"}).status_code == 200


def test_deleting_a_job_that_ended_removes_record_and_files(deployment: Deployment) -> None:
    submitted = deployment.submit(output_format="glb")
    assert deployment.post(f"/api/v1/enterprise/3d/delete/{submitted['id']}").status_code == 400
    deployment.finish(submitted["id"])
    assert deployment.post(f"/api/v1/enterprise/3d/delete/{submitted['id']}").json()["status"] == "success"
    assert deployment.client.get(submitted["future_links"][0]).status_code == 404
    assert deployment.post(f"{FETCH}/{submitted['id']}").status_code == 404


def test_events_report_progress_and_then_the_final_body(deployment: Deployment) -> None:
    submitted = deployment.submit(output_format="glb")
    timer = threading.Timer(1.0, deployment.finish, (submitted["id"],))
    timer.start()
    headers = {"authorization": f"Bearer {deployment.key}"}
    answer = deployment.client.get(f"/api/v1/enterprise/3d/events/{submitted['id']}", headers=headers)
    timer.join()
    events = [
        (event.split("\r\n")[0].removeprefix("event: "), json.loads(event.split("\r\n")[1].removeprefix("data: ")))
        for event in answer.text.strip().split("\r\n\r\n")
    ]
    assert events[0][0] == "progress" and events[0][1]["queue_position"] == 1
    assert events[-1][0] == "end" and events[-1][1]["status"] == "success"


@pytest.mark.parametrize("module", [routes, events, exports, account, uploads])
def test_no_request_takes_a_thread_for_what_its_route_depends_on(module: Any) -> None:
    calls = [
        dependency.call
        for route in module.router.routes
        if isinstance(route, APIRoute)
        for dependency in route.dependant.dependencies
    ]
    assert calls and all(inspect.iscoroutinefunction(call) for call in calls)  # FastAPI runs others in threads
