"""The clients against a running service: submit to download, refusals, failures, webhooks."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from standardwebhooks import Webhook

from pipeline import client as package
from pipeline.client import ApiError, AsyncClient, Client, ClientError, InvalidWebhook, JobFailed, verify_webhook
from pipeline.client.messages import ExportParameters, SubmitParameters, TextParameters, file_name
from schemas.export import EXPORT_FIELDS
from schemas.request import ImageTo3DRequest
from schemas.responses import FailedBody, ProcessingBody, SuccessBody
from schemas.text import TextTo3DRequest
from tests.e2e.test_serve_command import serving
from tests.fakes.images import draw_figure, encode

pytestmark = pytest.mark.xdist_group("client")
SMALL = {"resolution": 64, "texture_size": 512, "seed": 5}
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"


@dataclass(frozen=True)
class Endpoint:
    url: str
    key: str


@pytest.fixture(scope="module")
def endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Endpoint]:
    with serving(tmp_path_factory.mktemp("client") / "data") as (_, port, said):
        key = next(line.rpartition(" ")[2] for line in said if "i3d_" in line)
        yield Endpoint(f"http://127.0.0.1:{port}", key)


@pytest.fixture
def client(endpoint: Endpoint) -> Iterator[Client]:
    with Client(endpoint.url, endpoint.key) as client:
        yield client


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "figure.png"
    path.write_bytes(encode(draw_figure(), "PNG"))
    return path


def test_a_local_image_becomes_files_in_a_folder(client: Client, image: Path, tmp_path: Path) -> None:
    stages: list[str] = []

    job = client.submit(image, output_format="obj", track_id="order 7", **SMALL)  # type: ignore[arg-type]
    result = client.wait(job, on_progress=lambda job: stages.append(job.stage))
    paths = client.download(result, tmp_path / "out")

    assert result.track_id == "order 7" and result.meta["seed"] == 5
    assert stages
    assert [path.suffix for path in paths][:2] == [".obj", ".mtl"]
    assert all(path.stat().st_size > 0 for path in paths) and not list((tmp_path / "out").glob("*.part"))
    assert {entry.kind for entry in result.files} >= {"model", "material", "texture", "thumbnail"}

    again = client.wait(client.export(result, output_format="stl"))
    assert again.output[0].endswith(".stl")
    assert [job.id for job in client.jobs()][:2] == [again.id, result.id]
    client.delete(again)
    assert again.id not in [job.id for job in client.jobs()]


def test_an_uploaded_image_and_several_views_are_taken(client: Client, image: Path) -> None:
    url = client.upload(image)
    assert client.estimate(url, **SMALL).eta >= 1  # type: ignore[arg-type]

    views = client.generate([image, image.read_bytes()], view_angles=["front", "back"], **SMALL)  # type: ignore[arg-type]

    assert views.meta["multi_image"] is True and views.meta["view_angles"] == [0, 180]


def test_one_idempotency_key_gives_one_job(client: Client, image: Path) -> None:
    first, second = (client.submit(image, idempotency_key="the same", **SMALL) for _ in range(2))  # type: ignore[arg-type]

    assert first.id == second.id


def test_a_refusal_has_its_code_and_sentence(client: Client, endpoint: Endpoint, image: Path) -> None:
    with pytest.raises(ApiError, match="resolution must be between 64 and 512, got '9'") as refused:
        client.submit(image, resolution=9)
    assert (refused.value.status, refused.value.error_code) == (400, "invalid_request")
    with Client(endpoint.url, "wrong") as stranger, pytest.raises(ApiError) as unknown:
        stranger.fetch(1)
    assert (unknown.value.status, unknown.value.error_code) == (401, "unauthorized")


def test_a_failed_and_a_cancelled_job_raise(client: Client, image: Path) -> None:
    with pytest.raises(JobFailed) as failed:
        client.generate(image.read_bytes()[:400])
    assert failed.value.job.error_code == "unreadable_image" and not failed.value.job.retryable

    job = client.submit(image, texture_size=4096)
    cancelled = client.cancel(job)
    if not isinstance(cancelled, SuccessBody):
        with pytest.raises(JobFailed, match="cancelled"):
            client.wait(cancelled)


def test_the_asynchronous_client_runs_jobs_side_by_side(endpoint: Endpoint, image: Path, tmp_path: Path) -> None:
    async def run() -> list[list[Path]]:
        async with AsyncClient(endpoint.url, endpoint.key) as client:
            results = await asyncio.gather(*(client.generate(image, **SMALL) for _ in range(2)))  # type: ignore[arg-type]
            listed = [job.id async for job in client.jobs(status="success")]
            assert {result.id for result in results} <= set(listed)
            with pytest.raises(ApiError, match="texture_size"):
                await client.submit(image, texture_size=1)
            return [await client.download(result, tmp_path / str(result.id)) for result in results]

    for paths in asyncio.run(run()):
        assert paths[0].suffix == ".glb" and paths[0].read_bytes()[:4] == b"glTF"


# ---- what needs no service ----


def answering(*answers: httpx.Response | Exception) -> tuple[Client, list[httpx.Request]]:
    """A client whose requests get these answers."""
    seen: list[httpx.Request] = []
    left = list(answers)

    def handle(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        answer = left.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    return Client("http://service/studio/", "k", transport=httpx.MockTransport(handle)), seen


@pytest.fixture
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "sleep", lambda seconds: None)


PROCESSING = {
    "status": "processing", "eta": 1, "message": "", "fetch_result": "", "id": 7, "future_links": [], "progress": 0,
    "stage": "queued", "queue_position": 1,
}  # fmt: skip


def test_a_submit_is_repeated_under_one_idempotency_key(no_pause: None) -> None:
    client, seen = answering(httpx.ConnectError("refused"), httpx.Response(503), httpx.Response(200, json=PROCESSING))

    job = client.submit("https://example.com/a.png")

    assert isinstance(job, ProcessingBody) and len(seen) == 3
    assert len({request.headers["idempotency-key"] for request in seen}) == 1
    assert {str(request.url) for request in seen} == {"http://service/studio/api/v6/3d/image_to_3d"}


def test_attempts_end(no_pause: None) -> None:
    client, seen = answering(*[httpx.ConnectError("refused")] * 9)

    with pytest.raises(httpx.ConnectError):
        client.fetch(7)

    assert len(seen) == 5


def test_limits_are_not_repeated_and_say_when(no_pause: None) -> None:
    body = {"status": "error", "message": "Rate limit exceeded.", "error_code": "rate_limited", "retry_after": 30}
    client, seen = answering(httpx.Response(429, json=body, headers={"retry-after": "30"}))

    with pytest.raises(ApiError) as limited:
        client.submit("https://example.com/a.png")

    assert (limited.value.retry_after_s, len(seen)) == (30.0, 1)


def test_another_server_is_recognized() -> None:
    client, _ = answering(httpx.Response(200, html="<h1>It works!</h1>"))

    with pytest.raises(ApiError, match="HTTP 200 with text/html"):
        client.fetch(7)


def test_the_key_is_not_sent_to_the_files_and_a_name_has_no_folder(tmp_path: Path) -> None:
    client, seen = answering(httpx.Response(200, content=b"glTF"))
    result = SuccessBody(id=7, generationTime=1.0, output=["http://bucket/a/..%2F..%2Fmodel.glb?x=1"], proxy_links=[])

    assert client.download(result, tmp_path) == [tmp_path / "model.glb"]
    assert "key" not in seen[0].headers
    assert file_name("http://bucket/..") == "file"


def test_files_and_urls_are_not_mixed(image: Path) -> None:
    client, _ = answering()

    with pytest.raises(ClientError, match="upload the files first"):
        client.submit([image, "https://example.com/a.png"])


def signed(body: str) -> dict[str, str]:
    from datetime import UTC, datetime

    now = datetime.now(UTC)
    return {
        "Webhook-Id": "msg_1",
        "Webhook-Timestamp": str(int(now.timestamp())),
        "Webhook-Signature": Webhook(SECRET).sign("msg_1", now, body),
    }


def test_a_webhook_is_verified_and_typed() -> None:
    body = json.dumps({"status": "failed", "id": 7, "message": "no", "error_code": "engine_failed", "retryable": True})

    job = verify_webhook(body.encode(), signed(body), secret=SECRET)

    assert isinstance(job, FailedBody) and job.retryable
    for altered, headers in ((body + " ", signed(body)), (body, {}), ("[]", signed("[]"))):
        with pytest.raises(InvalidWebhook):
            verify_webhook(altered, headers, secret=SECRET)


@pytest.mark.parametrize(
    ("parameters", "fields"),
    [
        (SubmitParameters, ImageTo3DRequest.model_fields.keys() - {"key", "image"}),
        (TextParameters, TextTo3DRequest.model_fields.keys() - {"key", "prompt", "init_mesh"}),
        (ExportParameters, set(EXPORT_FIELDS) - {"key"}),
    ],
)
def test_the_parameters_are_the_fields_of_the_contract(parameters: type, fields: set[str]) -> None:
    assert parameters.__annotations__.keys() == fields


def test_both_clients_have_the_same_methods() -> None:
    def public(cls: type) -> set[str]:
        return {name for name in vars(cls) if not name.startswith("_")}

    assert public(Client) == public(AsyncClient)
    assert all(hasattr(package, name) for name in package.__all__)
