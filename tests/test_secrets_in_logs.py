"""Customers' secrets never appear in the service's log, traces or metrics, at any log level."""

from __future__ import annotations

import base64
import io
import logging
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
import structlog

from pipeline.errors import DeliveryFailed, InvalidRequest
from pipeline.storage.base import OutputFile
from pipeline.storage.s3 import S3Storage
from pipeline.storage.s3_client import make_client
from pipeline.telemetry import configure_logging
from pipeline.webhooks.sender import WebhookDispatcher, WebhookSender
from tests.e2e.test_serve_command import serving
from tests.fakes.images import draw_figure, encode
from tests.fakes.otlp_collector import trace_receiver
from tests.reference.memory_store import MemoryStore
from tests.servers.s3 import answer, fault_proxy, moto_server
from tests.storage.test_s3 import SECRET, a_bucket
from tests.webhooks.test_sender import SIGNER, body_of, ended_job, receiving

pytestmark = pytest.mark.xdist_group("s3")


@contextmanager
def restored_logging() -> Iterator[None]:
    """Restore the logging of the test run afterwards."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    try:
        yield
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
        structlog.reset_defaults()


@pytest.fixture
def log_lines() -> Iterator[io.StringIO]:
    """The service's log at level DEBUG."""
    written = io.StringIO()
    with restored_logging():
        configure_logging("DEBUG", stream=written)
        yield written


def test_no_secret_or_signature_of_a_bucket_is_logged(log_lines: io.StringIO, tmp_path: Path):
    (tmp_path / "p.glb").write_bytes(b"glTF")
    file = OutputFile(tmp_path / "p.glb", kind="model", content_type="model/gltf-binary")
    with moto_server(tmp_path) as moto, fault_proxy(moto) as proxy, httpx.Client() as http:
        bucket = a_bucket(proxy.url)
        make_client(bucket, http).create_bucket(Bucket=bucket.name)
        S3Storage(bucket, http=http).store([file], file_prefix="p")
        proxy.add(lambda seen: True, answer(403, "AccessDenied"))
        with pytest.raises(DeliveryFailed):
            S3Storage(replace(bucket, directory="other"), http=http).store([file], file_prefix="p")
        with pytest.raises(InvalidRequest):
            S3Storage(bucket, http=http).probe()
        signatures = {seen.headers["authorization"].rpartition("=")[2] for seen in proxy.seen}

    assert len(signatures) >= 5
    for secret in (SECRET, bucket.access_key_id, *signatures):
        assert secret not in log_lines.getvalue()


def test_neither_the_url_nor_the_signature_nor_the_body_of_a_webhook_is_logged(log_lines: io.StringIO):
    store = MemoryStore()
    with receiving(500) as receiver, httpx.Client() as client:
        job = ended_job(store, f"{receiver.url}/hook?token=confidential")
        WebhookDispatcher(
            store, send=WebhookSender(client, signer=SIGNER, key_of=store.get_key), body_of=body_of
        ).send_due()
        ended_job(store, "http://127.0.0.1:1/?token=confidential")
        WebhookDispatcher(
            store, send=WebhookSender(client, signer=SIGNER, key_of=store.get_key), body_of=body_of
        ).send_due()

    ((headers, body),) = receiver.got
    assert f'"job_id": {job.id}' in log_lines.getvalue()
    secret_of_key = SIGNER.secret_of(store.get_key(job.api_key_id))
    for secret in ("confidential", headers["webhook-signature"], secret_of_key, body.decode()):
        assert secret not in log_lines.getvalue()


def test_neither_traces_nor_metrics_nor_log_of_a_running_service_contain_what_a_caller_sent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    image = base64.b64encode(encode(draw_figure(64))).decode()
    monkeypatch.setenv("IMAGE_TO_3D_LOG_LEVEL", "DEBUG")
    monkeypatch.setenv("IMAGE_TO_3D_ALLOW_PRIVATE_ADDRESSES", "1")
    with trace_receiver() as traces, receiving(200) as receiver, httpx.Client(timeout=60) as client:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", traces.url)
        with serving(tmp_path / "data") as (_, port, said):
            address = f"http://127.0.0.1:{port}"
            shown = re.search(r"shown this once: (\S+)", "\n".join(said))
            assert shown is not None
            body = {"key": shown[1], "image": image, "resolution": 64, "texture_size": 512, "no_texture": True}
            body["webhook"] = f"{receiver.url}/hook?token=confidential"
            answer = client.post(f"{address}/api/v6/3d/image_to_3d", json=body).json()
            while answer["status"] == "processing":
                answer = client.post(answer["fetch_result"], json={"key": shown[1]}).json()
            assert client.get(answer["output"][0]).status_code == 200
            client.post(f"{address}/api/v6/3d/image_to_3d", json=body | {"key": "guessed-key"})
            while not receiver.got:
                time.sleep(0.05)
            metrics = client.get(f"{address}/metrics").text
    log = (tmp_path / "service.log").read_text()

    names = {one.name for one in traces.spans}
    assert {"POST", "GET", "call", "stage intake", "stage generate", "stage export", "stage deliver"} <= names
    (trace_id,) = {one.trace_id for one in traces.spans if one.name == "call"}
    assert {one.name for one in traces.spans if one.trace_id == trace_id} == names - {"GET"}
    recorded = "".join(map(str, traces.resources)) + metrics + log
    token = answer["output"][0].split("/files/")[1].split("/")[0]
    signature = receiver.got[0][0]["webhook-signature"]
    for secret in (shown[1], "guessed-key", "confidential", token, signature, signature[3:], image[:60], image[-60:]):
        assert secret not in recorded
    assert str(answer["id"]) in log and str(answer["id"]) in "".join(map(str, traces.spans))
