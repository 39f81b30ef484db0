"""Data of version 0.1.0 opens in every persistent store, and its jobs and tasks go on."""

from __future__ import annotations

import base64
import json
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.errors import Unauthorized
from pipeline.jobs.api_keys import authenticate
from pipeline.jobs.model import (
    AttemptResult,
    Job,
    JobFilter,
    JobMeta,
    JobResult,
    JobState,
    KeyLimits,
    KeyUse,
    LedgerFilter,
    Progress,
    UsageDay,
)
from pipeline.jobs.store import Store
from pipeline.jobs.stores.kv.store import KvStore
from pipeline.jobs.stores.sql.store import SqlStore
from pipeline.stages.deliver import retry_uploads
from pipeline.storage.base import Artifact, OutputFile
from pipeline.storage.local import LinkSigner, LocalStorage
from tests.fakes.key_values import MemoryKeyValues
from tests.jobs.store_fixtures import NOON, Clock, new_job

FIXTURES = Path(__file__).with_name("fixtures")
HOUR_S = 3600.0
SHOP_KEY = "i3d_shop_0123456789abcdef0123456789"
UPLOADED = Artifact("prefix-1.glb", "model", "http://127.0.0.1/bucket/prefix-1.glb", 3, "model/gltf-binary", "0" * 64)


@pytest.fixture
def clock() -> Clock:
    return Clock(NOON + HOUR_S)


@pytest.fixture(params=["sqlite", "key-value"])
def old(request: pytest.FixtureRequest, tmp_path: Path, clock: Clock) -> Iterator[Store]:
    """A store that opens what version 0.1.0 left an hour ago."""
    store: Store
    if request.param == "sqlite":
        connection = sqlite3.connect(tmp_path / "jobs.sqlite")
        connection.executescript((FIXTURES / "version_0_1_0.sql").read_text())
        connection.close()
        store = SqlStore(f"sqlite:///{tmp_path / 'jobs.sqlite'}", clock=clock)
    else:
        entries = MemoryKeyValues()
        stored = json.loads((FIXTURES / "version_0_1_0.json").read_text())["entries"]
        for name, value in stored.items():
            entries.put(name, base64.b64decode(value))
        store = KvStore(entries, clock=clock, wall_clock=clock)
    yield store
    store.close()


class Bucket:
    """A customer's bucket that takes every file."""

    def store(self, files: list[OutputFile], *, file_prefix: str) -> list[Artifact]:
        assert [file.path.read_bytes() for file in files] == [b"glb"]
        return [UPLOADED]

    def check_public_url(self, artifacts: object) -> str:
        return ""


def job(store: Store, seq: int) -> Job:
    return next(job for job in store.list_jobs(JobFilter(None)) if job.seq == seq)


def test_every_record_reads(old: Store) -> None:
    states = [job.state for job in old.list_jobs(JobFilter(None))]
    assert states == ["queued", "queued", "running", "cancelled", "failed", "success"]
    first, failed, running = job(old, 1), job(old, 2), job(old, 4)
    assert first.meta == JobMeta(
        {"output_format": "glb", "seed": 1, "temp": False},
        ("a note",),
        "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    )
    assert first.result is not None and failed.result is not None
    assert first.result.artifacts == (
        Artifact("prefix-1.glb", "model", "http://127.0.0.1/x/prefix-1.glb", 3, "model/gltf-binary", "0" * 64),
    )
    assert first.result.warnings[0] == "seed has no effect" and first.result.seconds == 3.5
    assert (failed.track_id, failed.result.error_code, failed.result.retryable) == ("mark", "engine_failed", True)
    assert (running.worker_id, running.attempts, running.progress) == ("w-dead", 1, Progress("generate", 20))
    assert json.loads(old.request_of(running.id)) == {"image": ["http://127.0.0.1/a.png"], "seed": 4}

    metrics, usage = old.metrics(), old.usage_days(LedgerFilter(None))
    assert (metrics.submitted, dict(metrics.ended)) == (6, {"success": 1, "failed": 1, "cancelled": 1})
    assert dict(metrics.stage_runs) == {"intake": 2, "generate": 2, "export": 1, "deliver": 1, "notify": 1}
    shop = authenticate(old, SHOP_KEY)
    assert usage == [
        UsageDay(shop.id, "2026-06-01", calls=3, succeeded=1, failed=1, cancelled=1, seconds=4.25, gpu_seconds=1.5)
    ]
    assert old.timings().seconds == 3.5


def test_keys_buckets_and_counters_go_on(old: Store, clock: Clock) -> None:
    shop = authenticate(old, SHOP_KEY)
    with pytest.raises(Unauthorized):
        authenticate(old, SHOP_KEY.replace("shop", "gone"))

    assert shop.limits == KeyLimits(queued=50, running=4, per_minute=600, per_month=1000)
    assert old.s3_of(shop.id) == b"encrypted\xff"
    assert old.key_use(shop.id) == KeyUse(queued=1, running=1, this_minute=0, this_month=3)
    repeated = new_job(shop, idempotency_key="order-1", request_sha256=f"{1:064d}")
    assert old.submit(repeated).job == job(old, 1)
    assert old.submit(new_job(shop)).queue_position == 3


def test_open_jobs_are_claimed_and_completed(old: Store) -> None:
    claimed: list[Job] = []
    while (found := old.claim("new", lease_s=30)) is not None:
        claimed.append(found)
        assert old.renew(found.lease, lease_s=30) is False
        old.complete(found.lease, JobResult(JobState.SUCCESS))

    assert [(one.seq, one.attempts) for one in claimed] == [(4, 2), (5, 1), (6, 1)]
    assert old.key_use(authenticate(old, SHOP_KEY).id).running == 0
    assert len(old.usage_rows(LedgerFilter(None))) == 6


def test_webhooks_are_sent_and_redelivered(old: Store, clock: Clock) -> None:
    sent: list[tuple[int, int]] = []
    while (task := old.claim_task("webhook", claim_s=60)) is not None:
        sent.append((old.get(task.job_id, api_key_id=None).seq, task.attempts))
        old.settle_task(task, AttemptResult(status=200, error="", seconds=0.1, retry_in_s=None))

    assert sorted(sent) == [(1, 1), (2, 0)]
    first = old.redeliver(job(old, 1).id, api_key_id=None)
    assert (first.attempts, first.next_attempt_at) == (0, clock.now)
    assert [(attempt.number, attempt.status) for attempt in old.attempts_of(first.id)] == [(1, 500), (2, 200)]


def test_a_late_upload_removes_its_warning(old: Store, clock: Clock, tmp_path: Path) -> None:
    temporary = LocalStorage(tmp_path / "files", signer=LinkSigner([b"0" * 32]), clock=clock)
    (tmp_path / "prefix-1.glb").write_bytes(b"glb")
    copy = [OutputFile(tmp_path / "prefix-1.glb", "model", "model/gltf-binary")]
    temporary.for_job(created_at=job(old, 1).created_at).store(copy, file_prefix="prefix-1")

    tried = retry_uploads(old, temporary=temporary, bucket_of=lambda api_key_id: Bucket())

    result = job(old, 1).result
    assert tried == 1 and result is not None
    assert (result.warnings, result.upload_warning) == (("seed has no effect",), "")
    assert result.artifacts == (UPLOADED,)
    assert [task.state for task in old.tasks_of(job(old, 1).id)] == ["pending", "done"]


def test_old_records_can_be_deleted_and_maintained(old: Store, tmp_path: Path) -> None:
    cancelled = job(old, 3)

    old.delete(cancelled.id, api_key_id=cancelled.api_key_id)
    old.maintain(tmp_path / "backup")

    assert [job.seq for job in old.list_jobs(JobFilter(None))] == [6, 5, 4, 2, 1]
    assert len(old.usage_rows(LedgerFilter(None))) == 3
