"""What a key-value store needs once a day, and its copy in a folder for the day that the map is lost.

Entries of a Modal Dict expire after 7 days in which nobody read or wrote them, so upkeep reads whatever is to stay. The
copy holds what must outlive even that: keys with their counters, buckets, the ledger, the totals. Calls that had not
ended are not in it.
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipeline.jobs.stores.kv.completion import read_page
from pipeline.jobs.stores.kv.state import (
    HEAD,
    Head,
    bucket_key,
    idempotency_key,
    job_key,
    pack,
    page_key,
    rows_key,
)
from pipeline.jobs.stores.kv.submission import chunks_of
from pipeline.jobs.stores.kv.transaction import Database, Snapshot, Transaction

GARBAGE_AGE_S = 3600.0
"""A request that no call leads to is swept when it is older: its submit may be under way before that."""
MERGED_ROWS = 4096
KEYS_FILE = "keys.json"
DAYS_FOLDER = "usage"


@dataclass(frozen=True)
class MaintenanceReport:
    """What was done: entries swept, documents read to keep them, days of the ledger brought onto fewer pages."""

    swept: int
    kept: int
    merged_days: int


def run_maintenance(database: Database, *, today: str, wall_now: float) -> MaintenanceReport:
    """Tidy, sweep, read what is to stay, and merge the ledger's pages of days that are over.

    Args:
        today: the running day, `2026-01-31`.

    Raises:
        StoreUnavailable: the map is away; done again, it goes on.
    """
    database.vacuum()
    swept = _sweep(database, wall_now)
    kept = database.ask(_read_all)
    days = database.ask(
        lambda snapshot: [day for day, pages in snapshot.head.days.items() if pages > 1 and day < today]
    )
    merged = sum(database.change(lambda transaction, day=day: _merge_day(transaction, day)) for day in days)
    return MaintenanceReport(swept, kept, merged)


def _sweep(database: Database, wall_now: float) -> int:
    """Remove entries that no call leads to: what processes left that died, or that could not remove them."""
    names = [name for name in database.entries.names() if name.startswith(("request/", "beat/"))]

    def useless(snapshot: Snapshot) -> list[str]:
        open_jobs = snapshot.head.open
        used = {name for kept in open_jobs.values() for name in chunks_of(kept.request)}
        found = []
        for name in set(names) - used:
            kind, owner, number = name.split("/")
            if kind == "request":
                is_useless = wall_now - float(owner.split("-")[0]) > GARBAGE_AGE_S
            else:
                kept = open_jobs.get(int(owner))
                is_useless = kept is None or int(number) < kept.lease_epoch
            if is_useless:
                found.append(name)
        return found

    swept = database.ask(useless)
    for name in swept:
        database.entries.delete(name)
    return len(swept)


def _read_all(snapshot: Snapshot) -> int:
    """Read every document and request that the head leads to; returns how many there are."""
    head = snapshot.head
    pages = [read_page(page) for page in snapshot.get_many(map(page_key, head.pages))]
    jobs = snapshot.get_many(job_key(job.id) for page in pages for job in page.values())
    records = [document["job"] for document in jobs if document is not None]
    words = [(job["key_id"], job["idempotency_key"]) for job in records]
    words += [(kept.job.api_key_id, kept.job.idempotency_key) for kept in head.open.values()]
    rest = [rows_key(day, number) for day, count in head.days.items() for number in range(count)]
    rest += [bucket_key(api_key_id) for api_key_id in head.accounts]
    rest += [idempotency_key(api_key_id, word) for api_key_id, word in words if word is not None]
    requests = [name for kept in head.open.values() for name in chunks_of(kept.request)]
    found = [*pages, *jobs, *snapshot.get_many(rest), *snapshot.entries.get_many(requests)]
    return sum(document is not None for document in found)


def _merge_day(transaction: Transaction, day: str) -> bool:
    """Bring a day's rows onto as few pages as their size allows."""
    count = transaction.head.days.get(day, 0)
    pages = transaction.get_many(rows_key(day, number) for number in range(count))
    rows = [row for page in pages for row in page or []]
    merged = [rows[start : start + MERGED_ROWS] for start in range(0, len(rows), MERGED_ROWS)]
    if len(merged) == count:
        return False
    for number in range(count):
        if number < len(merged):
            transaction.put(rows_key(day, number), merged[number])
        else:
            transaction.delete(rows_key(day, number))
    transaction.head.days[day] = len(merged)
    return True


def write_backup(database: Database, folder: Path) -> None:
    """Write the copy; days of the ledger that are in it already and have not grown are left as they are."""

    def read(snapshot: Snapshot) -> tuple[Head, dict[str, str], dict[str, list[Any]]]:
        head = snapshot.head
        keys = list(head.accounts)
        sealed = dict(zip(keys, snapshot.get_many(map(bucket_key, keys)), strict=True))
        days = {
            day: [row for page in snapshot.get_many(rows_key(day, n) for n in range(count)) for row in page or []]
            for day, count in head.days.items()
        }
        return head, {api_key_id: text for api_key_id, text in sealed.items() if text is not None}, days

    head, buckets, days = database.ask(read)
    accounts = {api_key_id: replace(account, queued=0, running=0) for api_key_id, account in head.accounts.items()}
    lasting = Head(seq=head.seq, accounts=accounts, totals=head.totals, successes=head.successes)
    (folder / DAYS_FOLDER).mkdir(parents=True, exist_ok=True)
    for day, rows in days.items():
        _write(folder / DAYS_FOLDER / f"{day}.json", rows)
    _write(folder / KEYS_FILE, {"head": HEAD.to_plain(lasting), "buckets": buckets})
    os.utime(folder)


def backup_age_s(folder: Path) -> float:
    """Seconds since the last `write_backup` into a folder, by the folder's own time; infinite without one."""
    return time.time() - folder.stat().st_mtime if folder.is_dir() else float("inf")


def restore_backup(database: Database, folder: Path) -> bool:
    """Take the copy over into a map that holds no keys; returns whether that was so and there was one."""
    path = folder / KEYS_FILE
    if not path.is_file() or database.ask(lambda snapshot: bool(snapshot.head.accounts or snapshot.head.days)):
        return False
    copy = json.loads(path.read_bytes())
    lasting: Head = HEAD.from_plain(copy["head"])
    days = {file.stem: json.loads(file.read_bytes()) for file in sorted((folder / DAYS_FOLDER).glob("*.json"))}
    counts: dict[str, int] = {}
    for day, rows in days.items():
        starts = range(0, len(rows), MERGED_ROWS)
        for number, start in enumerate(starts):  # nothing leads to these pages before the transaction
            database.entries.put(rows_key(day, number), pack(rows[start : start + MERGED_ROWS]))
        counts[day] = len(starts)

    def act(transaction: Transaction) -> bool:
        head = transaction.head
        if head.accounts or head.days:
            return False
        head.seq, head.accounts, head.totals = lasting.seq, lasting.accounts, lasting.totals
        head.successes, head.days = lasting.successes, counts
        for api_key_id, sealed in copy["buckets"].items():
            transaction.put(bucket_key(api_key_id), sealed)
        return True

    return database.change(act)


def _write(path: Path, document: Any) -> None:
    """Write a file whole or not at all; unchanged ones are left alone."""
    value = pack(document)
    if path.is_file() and path.read_bytes() == value:
        return
    fresh = path.with_suffix(".part")
    fresh.write_bytes(value)
    fresh.replace(path)
