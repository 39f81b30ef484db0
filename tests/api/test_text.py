"""`text_to_3d` on both prefixes: engines that take a text, refusals, the operator's rules."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from pipeline.imaging.inline import MAX_BYTES, MAX_TEXT_CHARS
from pipeline.jobs.api_keys import make_key
from pipeline.jobs.model import KeyLimits
from schemas.text import TextTo3DRequest, request_model
from tests.api.conftest import IMAGE, Deployment
from tests.schemas.test_text import EXAMPLE

PATHS = ("/api/v6/3d/text_to_3d", "/api/v1/enterprise/3d/text_to_3d")
TEXT = {"prompt": "a robot"}


@pytest.fixture
def texts(deploy: Callable[..., Deployment]) -> Deployment:
    """A deployment with the preview engine and one that takes texts."""
    return deploy(engine="preview", engines=("trellis-text",))


@pytest.mark.parametrize(("path", "output_format"), [(PATHS[0], "glb"), (PATHS[1], "obj")])
def test_a_text_is_submitted_to_the_engine_that_takes_one(texts: Deployment, path: str, output_format: str) -> None:
    answer = texts.post(path, {**TEXT, "resolution": "128", "track_id": 7}, prefer="wait=0").json()

    assert answer["status"] == "processing"
    assert {name: answer["meta"][name] for name in ("engine", "prompt", "resolution", "output_format")} == {
        "engine": "trellis-text",
        "prompt": "a robot",
        "resolution": 128,
        "output_format": output_format,
    }
    job = texts.service.store.claim("worker", lease_s=60, job_id=answer["id"])
    assert job is not None
    model = request_model(job.meta.parameters)
    stored = model.model_validate_json(texts.service.store.request_of(answer["id"]))
    assert isinstance(stored, TextTo3DRequest)
    assert (stored.prompt, stored.engine, job.engine) == ("a robot", "trellis-text", "trellis-text")


@pytest.mark.parametrize("path", PATHS)
def test_the_documented_example_is_accepted(texts: Deployment, path: str) -> None:
    answer = texts.post(path, {name: value for name, value in EXAMPLE.items() if name != "key"}, prefer="wait=0")

    assert answer.status_code == 200
    assert "foreground_ratio" in answer.json()["warning"] or "foreground_ratio" in answer.json()["message"]


@pytest.mark.parametrize(
    ("engines", "path", "body", "message"),
    [
        (
            (),
            PATHS[0],
            TEXT,
            "engine preview takes no text; no engine of this deployment takes one; trellis-text would",
        ),
        (
            ("trellis-text",),
            PATHS[0],
            {**TEXT, "engine": "preview"},
            "engine preview takes no text; trellis-text would",
        ),
        (("trellis-text",), PATHS[0], {**TEXT, "engine": "trellis"}, "engine must be one of preview, trellis-text"),
        (
            ("trellis-text",),
            "/api/v6/3d/image_to_3d",
            {"image": IMAGE, "engine": "trellis-text"},
            "engine trellis-text takes no image; preview would take it",
        ),
        (("trellis-text",), PATHS[0], {}, "prompt is required"),
        (("trellis-text",), PATHS[1], {"prompt": "x" * 10_000}, "prompt must have 1 to 1000 characters, got 10000"),
        (("trellis-text",), PATHS[1], {**TEXT, "init_mesh": "aGk="}, "init_mesh is not offered by this deployment"),
    ],
    ids=str,
)
def test_a_refusal_names_what_is_accepted(
    deploy: Callable[..., Deployment], engines: tuple[str, ...], path: str, body: dict[str, Any], message: str
) -> None:
    answer = deploy(engine="preview", engines=engines).post(path, body)

    assert answer.status_code == 400
    assert answer.json()["message"].startswith(message)


def test_images_go_to_an_engine_of_images_where_the_default_takes_texts(deploy: Callable[..., Deployment]) -> None:
    deployment = deploy(engine="trellis-text", engines=("preview",))

    image = deployment.submit("/api/v6/3d/image_to_3d")
    text = deployment.post(PATHS[0], TEXT, prefer="wait=0").json()

    assert (image["meta"]["engine"], text["meta"]["engine"]) == ("preview", None)
    store = deployment.service.store
    assert [store.get(job["id"], api_key_id=None).engine for job in (image, text)] == ["preview", "trellis-text"]


def test_an_idempotent_text_is_one_job(texts: Deployment) -> None:
    ids = {texts.post(PATHS[0], TEXT, **{"idempotency-key": "a", "prefer": "wait=0"}).json()["id"] for _ in range(2)}
    other = texts.post(PATHS[0], {"prompt": "another"}, **{"idempotency-key": "a"})

    assert len(ids) == 1
    assert other.json()["error_code"] == "idempotency_key_reused"


def test_an_estimate_takes_the_body_of_a_text(texts: Deployment) -> None:
    answer = texts.post("/api/v6/3d/estimate", TEXT).json()

    assert answer["engine"] == "trellis-text"
    assert texts.post("/api/v6/3d/estimate", {"prompt": ""}).json()["message"] == "prompt is required"


def test_a_form_may_hold_a_text(texts: Deployment) -> None:
    answer = texts.client.post(PATHS[0], data={"key": texts.key, **TEXT, "seed": "5"}, headers={"prefer": "wait=0"})

    assert (answer.status_code, answer.json()["meta"]["seed"]) == (200, 5)


def test_a_given_mesh_is_taken_where_the_operator_allows_it(deploy: Callable[..., Deployment]) -> None:
    deployment = deploy(engine="trellis-text", init_mesh=True)

    accepted = deployment.post(PATHS[0], {**TEXT, "init_mesh": "Z2xURg=="}, prefer="wait=0")
    blocked = deployment.post(PATHS[0], {**TEXT, "init_mesh": "http://169.254.169.254/a.glb"})
    large = deployment.post(PATHS[0], {**TEXT, "init_mesh": "A" * (MAX_TEXT_CHARS + 1)})

    assert accepted.status_code == 200
    assert "init_mesh" not in accepted.json()["meta"]
    assert blocked.json()["error_code"] == "blocked_address"
    assert large.json()["message"] == "init_mesh must be at most 20 MiB"


def test_a_form_may_hold_the_mesh_as_a_file(deploy: Callable[..., Deployment]) -> None:
    deployment = deploy(engine="trellis-text", init_mesh=True)

    def post(content: bytes, **fields: str) -> httpx.Response:
        files = {"init_mesh": ("shape.stl", content, "application/octet-stream")}
        return deployment.client.post(
            PATHS[0], data={"key": deployment.key, **TEXT, **fields}, files=files, headers={"prefer": "wait=0"}
        )

    accepted, large = post(b"solid \xfb"), post(b"a" * (MAX_BYTES + 1))
    encoded = deployment.client.post(
        PATHS[0],
        content="prompt=a&init_mesh=c29saWQg+w==",  # an unescaped plus sign
        headers={"prefer": "wait=0", "key": deployment.key, "content-type": "application/x-www-form-urlencoded"},
    )

    for answer in (accepted, encoded):
        request = json.loads(deployment.service.store.request_of(answer.json()["id"]))
        assert request["init_mesh"] == "c29saWQg+w=="
    assert large.json()["message"] == "init_mesh must be at most 20 MiB"


def test_a_result_of_this_service_may_be_given_as_a_mesh(deploy: Callable[..., Deployment]) -> None:
    deployment = deploy(engine="trellis-text", engines=("preview",), init_mesh=True)
    job = deployment.submit("/api/v6/3d/image_to_3d")
    deployment.finish(job["id"])
    url = deployment.post(f"/api/v6/3d/fetch/{job['id']}").json()["output"][0]

    assert deployment.post(PATHS[0], {**TEXT, "init_mesh": url}, prefer="wait=0").status_code == 200


def test_a_listed_word_is_refused_before_anything_is_recorded(
    deploy: Callable[..., Deployment], tmp_path: Path
) -> None:
    words = tmp_path / "words.txt"
    words.write_text("sword\n")
    deployment = deploy(engine="trellis-text", prompt_blocklist_file=words)

    for path in PATHS:
        for body in ({"prompt": "a SWORD"}, {"prompt": "a knight", "negative_prompt": "sword"}):
            refused = deployment.post(path, body)
            assert (refused.status_code, refused.json()["error_code"]) == (400, "prompt_refused")
    assert deployment.post("/api/v1/enterprise/3d/list").json()["calls"] == []
    assert deployment.post(PATHS[0], {"prompt": "a swordfish"}, prefer="wait=0").status_code == 200


def test_a_moderation_service_that_does_not_answer_is_a_503(deploy: Callable[..., Deployment]) -> None:
    deployment = deploy(engine="trellis-text", moderation_url="http://127.0.0.1:9/")

    answer = deployment.post(PATHS[0], TEXT)

    assert (answer.status_code, answer.json()["error_code"]) == (503, "service_busy")


def test_a_test_key_answers_a_text_with_the_sample(texts: Deployment) -> None:
    key, record = make_key("trial", limits=KeyLimits(), is_test=True)
    texts.service.store.add_key(record)

    answer = texts.post(PATHS[0], {**TEXT, "key": key}).json()

    assert answer["status"] == "success"
