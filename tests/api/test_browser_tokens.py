"""Browser tokens: what they may do, for how long, for whose pages, and that everything else is closed to them."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from pipeline.api.browser_tokens import issue_token, read_token
from pipeline.errors import Unauthorized
from pipeline.jobs.api_keys import make_key
from pipeline.jobs.model import JobState, KeyLimits
from pipeline.storage.secret_box import SecretBox
from tests.api.conftest import IMAGE, SUBMIT, Deployment
from tests.api.document import openapi_document

API = "/api/v1/enterprise/3d"
PAGE = "https://app.example.com"
OPEN = {
    f"{API}/image_to_3d",
    "/api/v6/3d/image_to_3d",
    f"{API}/text_to_3d",
    "/api/v6/3d/text_to_3d",
    f"{API}/fetch",
    f"{API}/estimate",
    "/api/v6/3d/estimate",
    "/api/v6/3d/fetch",
    f"{API}/fetch/{{call_id}}",
    "/api/v6/3d/fetch/{call_id}",
    f"{API}/cancel/{{call_id}}",
    f"{API}/events/{{call_id}}",
}
"""The paths that take a browser token."""


def token_of(deployment: Deployment, **fields: Any) -> str:
    answer = deployment.post(f"{API}/tokens", fields)
    assert answer.status_code == 200, answer.text
    assert answer.headers["cache-control"] == "no-store"
    return answer.json()["token"]


def send(deployment: Deployment, path: str, token: str, **headers: str) -> Any:
    return deployment.client.post(path, json={"image": IMAGE}, headers={"key": token, "prefer": "wait=0", **headers})


def test_a_token_submits_fetches_follows_and_cancels(deployment: Deployment) -> None:
    token = token_of(deployment)
    job_id = send(deployment, SUBMIT, token).json()["id"]

    fetched = deployment.post(f"{API}/fetch", {"key": token, "request_id": job_id}, prefer="wait=0").json()
    assert fetched["status"] == "processing"
    assert send(deployment, f"{API}/cancel/{job_id}", token).json()["message"]
    bearer = {"authorization": f"Bearer {token}"}
    with deployment.client.stream("GET", f"{API}/events/{job_id}", headers=bearer) as events:
        assert "event: end" in "".join(events.iter_text())
    assert deployment.service.store.get(job_id, api_key_id=None).state is JobState.CANCELLED


def test_a_large_form_is_read_for_a_token(deployment: Deployment) -> None:
    token = token_of(deployment, origin=PAGE)
    files = {"image": ("a.png", b"\x89PNG\r\n\x1a\n" + bytes(200_000), "image/png")}
    headers = {"origin": PAGE, "prefer": "wait=0"}
    answer = deployment.client.post(SUBMIT, data={"key": token}, files=files, headers=headers)
    assert answer.json()["status"] == "processing"


def test_a_token_is_for_so_many_submits(deployment: Deployment) -> None:
    token = token_of(deployment, max_submits=2)
    assert [send(deployment, SUBMIT, token).status_code for _ in range(3)] == [200, 200, 401]
    assert "for 2 submits, which are used" in send(deployment, SUBMIT, token).json()["message"]
    assert send(deployment, SUBMIT, token_of(deployment, max_submits=0)).status_code == 401


def test_an_idempotency_key_works_with_a_token(deployment: Deployment) -> None:
    token = token_of(deployment, max_submits=2)
    first, again, other = (
        send(deployment, SUBMIT, token, **{"idempotency-key": text}) for text in ("once", "once", "twice")
    )
    assert first.json()["id"] == again.json()["id"] != other.json()["id"]
    assert "idempotent-replayed" not in first.headers and again.headers["idempotent-replayed"] == "true"


def test_a_token_sees_only_its_own_jobs_and_those_it_was_issued_for(deployment: Deployment) -> None:
    mine = deployment.submit()["id"]
    by_another_token = send(deployment, SUBMIT, token_of(deployment)).json()["id"]
    for fields, seen in (
        ({}, []),
        ({"jobs": "own"}, []),
        ({"jobs": [mine]}, [mine]),
        ({"jobs": "all"}, [mine, by_another_token]),
    ):
        token = token_of(deployment, **fields)
        own = send(deployment, SUBMIT, token).json()["id"]
        for action in ("fetch", "cancel"):
            for job_id in (mine, by_another_token, own):
                answer = send(deployment, f"{API}/{action}/{job_id}", token)
                assert (answer.status_code == 200) is (job_id in [own, *seen])
                unknown = send(deployment, f"{API}/{action}/1", token)
                assert answer.status_code == 200 or answer.text == unknown.text.replace(" 1.", f" {job_id}.")


def test_a_token_of_one_key_sees_nothing_of_another(deployment: Deployment) -> None:
    theirs = deployment.submit(key=deployment.other_key)["id"]
    token = token_of(deployment, jobs=[theirs])
    assert send(deployment, f"{API}/fetch/{theirs}", token).status_code == 404


@pytest.mark.parametrize(
    ("method", "path"),
    [
        (method, path)
        for path, methods in openapi_document()["paths"].items()
        for method in methods
        if path.startswith("/api/") and path not in OPEN
    ],
)
def test_no_other_route_takes_a_token(deployment: Deployment, method: str, path: str) -> None:
    token = token_of(deployment, jobs="all")
    job_id = deployment.submit()["id"]
    answer = deployment.client.request(method, path.replace("{call_id}", str(job_id)), headers={"key": token})
    assert answer.status_code == 401
    assert answer.json()["message"] == "A browser token is not accepted here; send the API key."


def test_a_token_ends_with_its_key(deployment: Deployment) -> None:
    token = token_of(deployment)
    store = deployment.service.store
    store.revoke_key(store.list_keys()[0].id)
    assert send(deployment, SUBMIT, token).status_code == 401


def test_a_token_for_one_origin_is_refused_from_another(deployment: Deployment) -> None:
    token = token_of(deployment, origin=f"{PAGE.upper()}/")
    assert send(deployment, SUBMIT, token, origin=PAGE).status_code == 200
    for headers in ({}, {"origin": "https://evil.example"}, {"origin": "null"}):
        answer = send(deployment, SUBMIT, token, **headers)
        assert (answer.status_code, answer.json()["message"]) == (
            401,
            f"This browser token is for pages of {PAGE} only.",
        )


def test_a_token_cannot_name_a_webhook(deployment: Deployment) -> None:
    body = {"key": token_of(deployment), "image": IMAGE, "webhook": "https://example.com/hook"}
    answer = deployment.post(SUBMIT, body)
    assert (answer.status_code, "browser token" in answer.json()["message"]) == (400, True)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"expires_in": 5}, "expires_in must be between 60 and 86400, got 5"),
        ({"max_submits": 51}, "max_submits must be between 0 and 50, got 51"),
        ({"origin": "https://a.example/path"}, "origin must be an origin such as"),
        ({"origin": "*"}, "origin must be an http or https URL"),
        ({"jobs": "some"}, "jobs must be a whole number"),
        ({"jobs": list(range(1, 22))}, "jobs must be own, all, or a list of at most 20 ids, got 21"),
    ],
)
def test_a_token_out_of_bounds_is_refused(deployment: Deployment, fields: dict[str, Any], message: str) -> None:
    answer = deployment.post(f"{API}/tokens", fields)
    assert answer.status_code == 400 and answer.json()["message"].startswith(message)


def test_a_token_is_neither_read_nor_made_by_others() -> None:
    _, key = make_key("a", limits=KeyLimits())
    box, other = SecretBox([b"a master key of the tests"]), SecretBox([b"another key of the tests"])
    text, token = issue_token(box, key, expires_in_s=60, max_submits=1, origin=None, jobs=())

    assert key.sha256 not in text and token.expires_at > time.time() + 58
    assert read_token(box, text, origin=None) == token
    assert read_token(SecretBox([b"a new master key, first", b"a master key of the tests"]), text, origin=None) == token
    bucket = "i3dt_" + box.encrypt(json.dumps({"id": "x"}).encode(), owner=key.id).decode()
    for forged in (text[:-4] + "AAA=", "i3dt_", "i3dt_é", "i3dt_" + "A" * 9000, bucket):
        with pytest.raises(Unauthorized, match="Invalid browser token"):
            read_token(box, forged, origin=None)
    with pytest.raises(Unauthorized, match="Invalid"):
        read_token(other, text, origin=None)
    with pytest.raises(Unauthorized, match="has expired"):
        read_token(box, text, origin=None, clock=lambda: token.expires_at)
