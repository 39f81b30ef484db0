"""What customers entrust to the service never stands in its log, however much is logged."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
import structlog

from pipeline.errors import DeliveryFailed, InvalidRequest
from pipeline.jobs.memory import MemoryStore
from pipeline.notify import WebhookSender, send_due_webhooks
from pipeline.storage.base import OutputFile
from pipeline.storage.s3 import S3Storage
from pipeline.storage.s3_client import make_client
from pipeline.telemetry import configure_logging
from tests.storage.s3_servers import answer, fault_proxy, moto_server
from tests.storage.test_s3 import SECRET, a_bucket
from tests.test_notify import SIGNER, body_of, ended_job, receiving

pytestmark = pytest.mark.xdist_group("s3")


@contextmanager
def kept_logging() -> Iterator[None]:
    """Put the logging of the test run back afterwards."""
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
    """The service's log, everything in it."""
    written = io.StringIO()
    with kept_logging():
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


def test_neither_a_webhooks_address_nor_its_signature_nor_its_content_is_logged(log_lines: io.StringIO):
    store = MemoryStore()
    with receiving(500) as receiver, httpx.Client() as client:
        job = ended_job(store, f"{receiver.url}/hook?token=entrusted")
        send_due_webhooks(store, WebhookSender(client, signer=SIGNER), body_of)
        ended_job(store, "http://127.0.0.1:1/?token=entrusted")
        send_due_webhooks(store, WebhookSender(client, signer=SIGNER), body_of)

    ((headers, body),) = receiver.got
    assert f'"job_id": {job.id}' in log_lines.getvalue()
    for secret in ("entrusted", headers["webhook-signature"], SIGNER.secret_of(job.key_id), body.decode()):
        assert secret not in log_lines.getvalue()
