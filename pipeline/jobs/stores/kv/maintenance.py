"""The daily maintenance of a key-value store.

Entries of a Modal Dict expire after 7 days without a read or a write, so maintenance reads every entry that must stay.
"""

from __future__ import annotations

from typing import Any

from pipeline.jobs.stores.kv.documents import read_page
from pipeline.jobs.stores.kv.state import bucket_key, idempotency_key, job_key, page_key, rows_key
from pipeline.jobs.stores.kv.submission import chunks_of
from pipeline.jobs.stores.kv.transaction import Database, Snapshot, Transaction

GARBAGE_AGE_S = 3600.0
"""A request that no job refers to is swept when it is older: its submit may still be in progress before that."""
MERGED_ROWS = 4096


def run_maintenance(database: Database, *, today: str, wall_now: float) -> None:
    """Vacuum, sweep orphans, read every entry that must stay, and merge the ledger's pages of past days.

    Args:
        today: the current day, `2026-01-31`.

    Raises:
        StoreUnavailable: the map is unavailable; a repetition is safe and completes the work.
    """
    database.vacuum()
    database.sweep()
    _sweep(database, wall_now)
    database.read(_read_all)
    days = database.read(
        lambda snapshot: [day for day, pages in snapshot.head.days.items() if pages > 1 and day < today]
    )
    for day in days:
        database.commit(lambda transaction, day=day: _merge_day(transaction, day))


def _sweep(database: Database, wall_now: float) -> None:
    """Delete requests that no job needs and heartbeats of no open job: processes that died may leave some."""
    names = [name for name in database.entries.names() if name.startswith(("request/", "beat/"))]

    def find_orphans(snapshot: Snapshot) -> list[str]:
        open_jobs = snapshot.head.open
        used = set(_requests_in_use(snapshot))
        found: list[str] = []
        for name in set(names) - used:
            kind, owner, number = name.split("/")
            if kind == "request":
                is_orphan = wall_now - float(owner.split("-")[0]) > GARBAGE_AGE_S
            else:
                open_job = open_jobs.get(int(owner))
                is_orphan = open_job is None or int(number) < open_job.lease_epoch
            if is_orphan:
                found.append(name)
        return found

    for name in database.read(find_orphans):
        database.entries.delete(name)


def _read_all(snapshot: Snapshot) -> None:
    """Read every document and request that the head refers to."""
    head = snapshot.head
    pages = [read_page(page) for page in snapshot.get_many(map(page_key, head.pages))]
    jobs = snapshot.get_many(job_key(job.id) for page in pages for job in page.values())
    records = [document["job"] for document in jobs if document is not None]
    open_jobs = list(head.open.values())
    owned = [(job["key_id"], job["idempotency_key"]) for job in records]
    owned += [(open_job.job.api_key_id, open_job.job.idempotency_key) for open_job in open_jobs]
    rest = [rows_key(day, number) for day, count in head.days.items() for number in range(count)]
    rest += [bucket_key(api_key_id) for api_key_id in head.accounts]
    rest += [idempotency_key(api_key_id, key) for api_key_id, key in owned if key is not None]
    snapshot.get_many(rest)
    snapshot.entries.get_many(_requests_in_use(snapshot))


def _requests_in_use(snapshot: Snapshot) -> list[str]:
    """The entries of requests that open jobs need, or that failed jobs kept."""
    owners = [*snapshot.head.open.values(), *snapshot.head.kept.values()]
    return [name for owner in owners for name in chunks_of(owner.request)]


def _merge_day(transaction: Transaction, day: str) -> None:
    """Merge the rows of a day into as few pages as their size allows."""
    count = transaction.head.days.get(day, 0)
    pages = transaction.get_many(rows_key(day, number) for number in range(count))
    rows = rows_of(pages)
    merged = [rows[start : start + MERGED_ROWS] for start in range(0, len(rows), MERGED_ROWS)]
    if len(merged) == count:
        return
    for number in range(count):
        if number < len(merged):
            transaction.put(rows_key(day, number), merged[number])
        else:
            transaction.delete(rows_key(day, number))
    transaction.head.days[day] = len(merged)


def rows_of(pages: list[Any]) -> list[Any]:
    """The rows of a day from its pages; a page that the map has lost is None."""
    return [row for page in pages if page is not None for row in page]
