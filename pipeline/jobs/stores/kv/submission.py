"""What a submit reads and writes: its request, in entries of its own, and its place in the head."""

from __future__ import annotations

import secrets

from pipeline.errors import NotFound
from pipeline.jobs import limits, transitions
from pipeline.jobs.limits import NOT_USED, minute_of
from pipeline.jobs.model import MAX_JOB_ID, Job, NewJob, RateWindow
from pipeline.jobs.stores.kv.documents import find_document
from pipeline.jobs.stores.kv.leases import with_heartbeat
from pipeline.jobs.stores.kv.map import MAX_VALUE_BYTES, KeyValues
from pipeline.jobs.stores.kv.state import OpenJob, RequestPlace, chunk_key, idempotency_key, job_key
from pipeline.jobs.stores.kv.transaction import Snapshot, Transaction


def write_request(entries: KeyValues, request: bytes, *, wall_now: float) -> RequestPlace:
    """Write a request to entries that nothing refers to yet; the token holds the time, for the sweep of orphans."""
    chunks = max(1, -(-len(request) // MAX_VALUE_BYTES))
    place = RequestPlace(f"{int(wall_now)}-{secrets.token_hex(8)}", chunks, len(request))
    for number in range(place.chunks):
        chunk = request[number * MAX_VALUE_BYTES : (number + 1) * MAX_VALUE_BYTES]
        entries.put(chunk_key(place.token, number), chunk)
    return place


def chunks_of(place: RequestPlace) -> list[str]:
    """The entries of a request."""
    return [chunk_key(place.token, number) for number in range(place.chunks)]


def read_request(snapshot: Snapshot, job_id: int) -> bytes:
    """The request of a job that has not ended, or that failed and kept it.

    Raises:
        NotFound: there is none.
    """
    owner = snapshot.head.open.get(job_id) or snapshot.head.kept.get(job_id)
    chunks = [None] if owner is None else snapshot.entries.get_many(chunks_of(owner.request))
    if None in chunks:
        raise NotFound(f"There is no request of a job with the id {job_id}.")
    return b"".join(chunk for chunk in chunks if chunk is not None)


def visible_job(snapshot: Snapshot, job_id: int, api_key_id: str | None) -> Job:
    """The job as it is, where this key may see it.

    Raises:
        NotFound: there is none for this key.
    """
    return transitions.visible(find_job(snapshot, job_id), job_id, api_key_id=api_key_id)


def find_job(snapshot: Snapshot, job_id: int) -> Job | None:
    """The job as it is, None where there is none."""
    open_job = snapshot.head.open.get(job_id)
    if open_job is not None:
        return with_heartbeat(snapshot, open_job)
    document = find_document(snapshot, job_id)
    return None if document is None else document.job


def find_by_idempotency_key(snapshot: Snapshot, new: NewJob) -> Job | None:
    """The job that this submit repeats.

    Raises:
        IdempotencyKeyReused: it had another body.
    """
    if new.idempotency_key is None:
        return None
    job_id = snapshot.get(idempotency_key(new.api_key_id, new.idempotency_key))
    job = None if job_id is None else find_job(snapshot, job_id)
    return None if job is None else transitions.repeated(job, new)


def check_submit(snapshot: Snapshot, new: NewJob, *, now: float) -> RateWindow | None:
    """Refuse a submit that its key does not allow; returns the key's minute after it."""
    account = snapshot.head.accounts.get(new.api_key_id)
    if account is None:
        return limits.check_submit(None, NOT_USED, now=now)
    is_export = new.meta.export_of is not None
    return limits.check_submit(account.key, account.use(now=now), now=now, is_export=is_export)


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
    """Queue a job that its key allows, and count it."""
    head, account = transaction.head, transaction.head.accounts[new.api_key_id]
    account.minute_calls = account.use(now=now).this_minute + 1
    account.minute = minute_of(now)
    head.totals.submitted += 1
    head.seq += 1
    job = transitions.queued(new, job_id=job_id, seq=head.seq, now=now)
    account.count(transitions.usage_change(None, job))
    head.open[job_id] = OpenJob(job, request)
    if new.idempotency_key is not None:
        transaction.put(idempotency_key(new.api_key_id, new.idempotency_key), job_id)
    return job
