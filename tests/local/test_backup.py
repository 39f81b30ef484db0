"""A backup made as docs/operate.md says, restored into an empty folder."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from pipeline.jobs.api_keys import authenticate, make_key
from pipeline.jobs.model import JobFilter, JobResult, JobState, KeyLimits, LedgerFilter, NewJob
from pipeline.service import open_service
from pipeline.settings import Settings
from pipeline.storage.bucket_details import bucket_of_details
from pipeline.storage.encrypted_bucket import decrypt_bucket, encrypt_bucket
from schemas.s3 import parse_s3_details

PAGE = Path(__file__).resolve().parents[2] / "docs" / "operate.md"


@pytest.mark.skipif(shutil.which("sqlite3") is None, reason="the command sqlite3 is not installed")
def test_a_restored_backup_has_keys_buckets_secrets_jobs_and_the_ledger(tmp_path: Path) -> None:
    before = Settings(data_dir=tmp_path / "data", database_url=None)
    service = open_service(before)
    plain, key = make_key("shop", limits=KeyLimits(queued=7))
    service.store.add_key(key)
    service.store.rotate_secret(key.id)
    secret = service.signer.secret_of(service.store.get_key(key.id))
    details = {
        "endpoint_url": "http://127.0.0.1:1",
        "bucket": "b",
        "aws_access_key_id": "i",
        "aws_secret_access_key": "s",
    }
    bucket = bucket_of_details(parse_s3_details(details))
    service.store.save_s3(key.id, encrypt_bucket(bucket, owner=key.id, secret_box=service.secret_box))
    for number in range(2):
        new = NewJob(api_key_id=key.id, file_prefix=f"p{number}", request=b"{}", request_sha256="0" * 64)
        service.store.submit(new)
    running = service.store.claim("worker", lease_s=30)
    assert running is not None
    service.store.complete(running.lease, JobResult(JobState.SUCCESS, engine="preview"))

    # While the service runs: the newest rows are still in the write-ahead log, which a plain copy would miss.
    command = re.search(r"`(sqlite3 data/jobs.sqlite .*?)`", PAGE.read_text())
    assert command is not None
    subprocess.run(shlex.split(command[1]), cwd=tmp_path, check=True)
    shutil.copy2(tmp_path / "data" / "secret.key", tmp_path / "secret.key")
    service.close()

    after = Settings(data_dir=tmp_path / "restored", database_url=None)
    after.data_dir.mkdir(mode=0o700)
    shutil.move(tmp_path / "copy.sqlite", after.data_dir / "jobs.sqlite")
    shutil.move(tmp_path / "secret.key", after.data_dir / "secret.key")
    restored = open_service(after)
    again = authenticate(restored.store, plain)
    encrypted = restored.store.s3_of(again.id)

    assert again.limits == KeyLimits(queued=7)
    assert restored.signer.secret_of(again) == secret
    assert encrypted is not None
    assert decrypt_bucket(encrypted, owner=again.id, secret_box=restored.secret_box) == bucket
    states = sorted(str(job.state) for job in restored.store.list_jobs(JobFilter(None)))
    assert states == ["queued", "success"]
    assert restored.store.claim("worker", lease_s=30) is not None
    assert [day.calls for day in restored.store.usage_days(LedgerFilter(None))] == [1]
    restored.close()
