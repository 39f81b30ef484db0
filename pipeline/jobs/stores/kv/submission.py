"""What a submit reads and writes: its request, which is kept in pieces beside the head, and its place in the queue."""

from __future__ import annotations

import secrets

from pipeline.errors import InvalidRequest, NotFound, Unauthorized
from pipeline.jobs.limits import check_limits, minute_of, month_of
from pipeline.jobs.model import MAX_JOB_ID, Job, JobState, NewJob, RateWindow
from pipeline.jobs.stores.kv.api_keys import use_of
from pipeline.jobs.stores.kv.completion import find_document
from pipeline.jobs.stores.kv.leases import with_heartbeat
from pipeline.jobs.stores.kv.map import MAX_VALUE_BYTES, KeyValues
from pipeline.jobs.stores.kv.state import OpenJob, RequestPlace, chunk_key, idempotency_key, job_key
from pipeline.jobs.stores.kv.transaction import Snapshot, Transaction


def keep_request(entries: KeyValues, request: bytes, *, wall_now: float) -> RequestPlace:
    """Write a request where nothing leads to it yet; its token tells its age to the sweeper."""
    place = RequestPlace(f"{int(wall_now)}-{secrets.token_hex(8)}", max(1, -(-len(request) // MAX_VALUE_BYTES)))
    for number in range(place.chunks):
        piece = request[number * MAX_VALUE_BYTES : (number + 1) * MAX_VALUE_BYTES]
        entries.put(chunk_key(place.token, number), piece)
    return place


def chunks_of(place: RequestPlace) -> list[str]:
    """The entries of a request."""
    return [chunk_key(place.token, number) for number in range(place.chunks)]


def read_request(snapshot: Snapshot, job_id: int) -> bytes:
    """The request of a job that has not ended.

    Raises:
        NotFound: there is none.
    """
    kept = snapshot.head.open.get(job_id)
    pieces = [None] if kept is None else snapshot.entries.get_many(chunks_of(kept.request))
    request = b"".join(piece for piece in pieces if piece is not None)
    if None in pieces:
        raise NotFound(f"There is no request of a call with the id {job_id}.")
    return request


def find_job(snapshot: Snapshot, job_id: int, api_key_id: str | None) -> Job:
    """The job as it stands, where this key sees it.

    Raises:
        NotFound: there is none for this key.
    """
    job = look_for_job(snapshot, job_id)
    if job is None or api_key_id not in (None, job.api_key_id):
        raise NotFound(f"There is no call with the id {job_id}.")
    return job


def look_for_job(snapshot: Snapshot, job_id: int) -> Job | None:
    """The job as it stands, None where there is none."""
    kept = snapshot.head.open.get(job_id)
    if kept is not None:
        return with_heartbeat(snapshot, kept)
    document = find_document(snapshot, job_id)
    return None if document is None else document.job


def find_by_idempotency_key(snapshot: Snapshot, new: NewJob) -> Job | None:
    """The job that this submit repeats.

    Raises:
        InvalidRequest: it had another body.
    """
    if new.idempotency_key is None:
        return None
    job_id = snapshot.get(idempotency_key(new.api_key_id, new.idempotency_key))
    job = None if job_id is None else look_for_job(snapshot, job_id)
    if job is not None and job.request_sha256 != new.request_sha256:
        raise InvalidRequest("Idempotency-Key was used before with another body")
    return job


def check_submit(snapshot: Snapshot, new: NewJob, *, now: float) -> RateWindow | None:
    """Refuse a submit that its key does not allow; returns the key's minute after it."""
    account = snapshot.head.accounts.get(new.api_key_id)
    if account is None or account.key.revoked_at is not None:
        raise Unauthorized("Invalid API key")
    return check_limits(account.key.limits, use_of(account, now=now), now=now)


def draw_id(snapshot: Snapshot) -> int:
    """An id that no job on record has."""
    while True:
        job_id = secrets.randbelow(MAX_JOB_ID) + 1
        if is_free(snapshot, job_id):
            return job_id


def is_free(snapshot: Snapshot, job_id: int) -> bool:
    """Whether no job on record has this id."""
    return job_id not in snapshot.head.open and snapshot.get(job_key(job_id)) is None


def add_job(transaction: Transaction, new: NewJob, request: RequestPlace, job_id: int, *, now: float) -> Job:
    """Put a job that its key allows into the queue."""
    head, account = transaction.head, transaction.head.accounts[new.api_key_id]
    account.minute_calls = use_of(account, now=now).this_minute + 1
    account.minute = minute_of(now)
    account.months[month_of(now)] = account.months.get(month_of(now), 0) + 1
    account.queued += 1
    head.totals.submitted += 1
    head.seq += 1
    job = Job(
        id=job_id,
        seq=head.seq,
        api_key_id=new.api_key_id,
        file_prefix=new.file_prefix,
        state=JobState.QUEUED,
        created_at=now,
        request_sha256=new.request_sha256,
        meta=new.meta,
        track_id=new.track_id,
        webhook_url=new.webhook_url,
        idempotency_key=new.idempotency_key,
    )
    head.open[job_id] = OpenJob(job, request)
    if new.idempotency_key is not None:
        transaction.put(idempotency_key(new.api_key_id, new.idempotency_key), job_id)
    return job
