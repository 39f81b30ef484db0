"""Endpoints that drip, hang, or answer out of bounds: transfers end in time, with a sentence, and can be cancelled."""

from __future__ import annotations

import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from pipeline.errors import Cancelled, DeliveryFailed, InvalidRequest
from pipeline.net.egress import guarded_client
from pipeline.storage.base import OutputFile
from pipeline.storage.s3 import Patience, S3Storage
from pipeline.storage.s3_client import Bucket
from tests.net.policies import LAPTOP
from tests.storage.hostile_bucket import (
    ENTITIES,
    LONG,
    NESTED,
    Answer,
    drip_body,
    drip_head,
    hang,
    hostile_bucket,
    sending,
)

BRIEF = Patience(attempts=4, timeout=httpx.Timeout(30.0), base_s=0.5, min_bytes_per_s=1 << 30)
PATIENT = Patience(attempts=4, timeout=httpx.Timeout(30.0), base_s=60)


@pytest.fixture
def http() -> Iterator[httpx.Client]:
    with guarded_client(LAPTOP) as client:
        yield client


@pytest.fixture
def file(tmp_path: Path) -> OutputFile:
    (tmp_path / "a.glb").write_bytes(b"glTF" * 1000)
    return OutputFile(tmp_path / "a.glb", kind="model", content_type="model/gltf-binary")


def at(url: str) -> Bucket:
    return Bucket(url, "b", "us-east-1", True, "", f"{url}/b", "AKIAEXAMPLE", "secret")


@pytest.mark.parametrize("answer", [hang, drip_head, drip_body])
def test_a_transfer_to_a_slow_bucket_ends_at_its_deadline(http: httpx.Client, file: OutputFile, answer: Answer) -> None:
    with hostile_bucket(answer) as bucket:
        storage = S3Storage(at(bucket.url), http=http, patience=BRIEF)

        with pytest.raises(DeliveryFailed, match=r"^the bucket's endpoint takes too long$"):
            storage.store([file], file_prefix="a")
        with pytest.raises(InvalidRequest, match=r"^the bucket's endpoint takes too long$"):
            S3Storage(at(bucket.url), http=http, patience=BRIEF).probe()


@pytest.mark.parametrize("answer", [hang, drip_head, drip_body])
@pytest.mark.parametrize("transfer", ["store", "probe", "check_public_url"])
def test_a_cancellation_reaches_a_transfer(http: httpx.Client, file: OutputFile, answer: Answer, transfer: str) -> None:
    is_cancelled = threading.Event()
    with hostile_bucket(answer) as bucket:
        storage = S3Storage(at(bucket.url), http=http, patience=PATIENT, is_cancelled=is_cancelled.is_set)

        def cancel_when_asked() -> None:
            while not bucket.requests:
                time.sleep(0.01)
            is_cancelled.set()

        threading.Thread(target=cancel_when_asked, daemon=True).start()
        calls: dict[str, Callable[[], object]] = {
            "store": lambda: storage.store([file], file_prefix="a"),
            "probe": storage.probe,
            "check_public_url": lambda: storage.check_public_url([_artifact(f"{bucket.url}/b/a.glb")]),
        }
        if transfer == "check_public_url" and answer is drip_body:
            pytest.skip("only the head of this answer is read")
        with pytest.raises(Cancelled):
            calls[transfer]()


def _artifact(url: str) -> object:
    from pipeline.storage.base import Artifact

    return Artifact("a.glb", "model", url, 1, "model/gltf-binary", "")


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (sending(403, NESTED), "AccessDenied on PutObject: the credentials may not do this"),
        (sending(503, NESTED), "HTTP 503 on PutObject"),
        (sending(400, ENTITIES), "HTTP 400 on PutObject"),
        (sending(403, LONG), "AccessDenied on PutObject: the credentials may not do this"),
        (sending(200, NESTED), "the endpoint does not answer like S3"),
        (sending(200, LONG), "the endpoint does not answer like S3"),
        (sending(200, ENTITIES), "the endpoint does not answer like S3"),
    ],
    ids=["nested", "nested 503", "entities", "long", "nested success", "long success", "entities in success"],
)
def test_an_answer_out_of_bounds_is_dropped_unparsed(http: httpx.Client, answer: Answer, words: str) -> None:
    once = Patience(attempts=1, timeout=httpx.Timeout(30.0), base_s=30)
    with hostile_bucket(answer) as bucket:
        storage = S3Storage(at(bucket.url), http=http, patience=once)
        storage._client  # noqa: B018  # loads boto3 and its descriptions, which the bound below must not count

        tracemalloc.start()
        with pytest.raises(InvalidRequest) as refused:
            storage.probe()
        _, peak_bytes = tracemalloc.get_traced_memory()
        tracemalloc.stop()

    assert str(refused.value).startswith(words)
    assert peak_bytes < 8 << 20


def test_no_part_of_a_cancelled_upload_stays(http: httpx.Client, tmp_path: Path) -> None:
    """The deletion has a deadline of its own: that of the transfer may have passed."""
    is_cancelled = threading.Event()

    def begin_then_hang(connection: object, ended: threading.Event) -> None:
        request = bucket.requests[-1]
        if request.startswith(b"HEAD"):
            sending(404, b"")(connection, ended)  # type: ignore[arg-type]
        elif request.startswith(b"POST"):
            content = b"<InitiateMultipartUploadResult><UploadId>up</UploadId></InitiateMultipartUploadResult>"
            sending(200, content)(connection, ended)  # type: ignore[arg-type]
        elif request.startswith(b"DELETE"):
            sending(204, b"")(connection, ended)  # type: ignore[arg-type]
        else:
            is_cancelled.set()
            ended.wait(30)

    (tmp_path / "a.glb").write_bytes(bytes(17 << 20))
    file = OutputFile(tmp_path / "a.glb", kind="model", content_type="model/gltf-binary")
    with hostile_bucket(begin_then_hang) as bucket:
        storage = S3Storage(at(bucket.url), http=http, patience=PATIENT, is_cancelled=is_cancelled.is_set)
        with pytest.raises(Cancelled):
            storage.store([file], file_prefix="a")

    assert bucket.requests[-1].startswith(b"DELETE /b/a.glb?uploadId=up")
