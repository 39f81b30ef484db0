"""The backup of a key-value store in a folder, for the case that the map is lost.

It holds what must outlive the map: keys with their counters, buckets, the ledger, the totals. It does not hold jobs.
The file `keys.json` is the backup that is restored. Each backup is also a dated file, kept for a week. A backup never
replaces one that knows more, as it would be that of a map that was lost and begun anew.

A map without commits has the value of the backup: whoever commits first, commits it together with its change, so that
nothing is ever written to a lost map before what it held is restored.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import structlog

from pipeline.errors import StoreUnavailable
from pipeline.jobs.stores.kv.maintenance import MERGED_ROWS, rows_of
from pipeline.jobs.stores.kv.map import KeyValues
from pipeline.jobs.stores.kv.state import HEAD, Head, Written, bucket_key, pack, rows_key
from pipeline.jobs.stores.kv.transaction import Database, Snapshot

KEYS_FILE = "keys.json"
KEPT_S = 7 * 86400.0
STAMP = "keys-%Y%m%dT%H%M%SZ.json"

ReadBackup = Callable[[str], bytes | None]
"""The content of a backup's file, by its path in the backup's folder; None where there is none. May raise anything."""

log = structlog.get_logger()


def read_from(folder: Path) -> ReadBackup:
    """Reads the backup in a folder of this machine."""

    def read(path: str) -> bytes | None:
        file = folder / path
        return file.read_bytes() if file.is_file() else None

    return read


def no_backup(path: str) -> bytes | None:
    """Reads nothing: a map without commits is empty."""
    return None


# ---- restoring ----


def restored_head(read: ReadBackup, entries: KeyValues, *, wall_now: float) -> Head:
    """The head of a map without commits: that of the backup, an empty one where there is no backup.

    The ledger's pages are written to their entries, to which nothing refers before the first commit.

    Raises:
        StoreUnavailable: the backup cannot be read, or the map is unavailable.
    """
    found = _read(read, KEYS_FILE)
    if found is None:
        return Head()
    try:
        head, buckets = HEAD.from_plain(found["head"]), dict(found["buckets"])
        days = {day: list(_read(read, _day_file(day)) or []) for day in found.get("days", [])}
    except (ValueError, KeyError, TypeError) as error:
        raise _unreadable(error) from error
    for day, rows in days.items():
        pages = [rows[start : start + MERGED_ROWS] for start in range(0, len(rows), MERGED_ROWS)]
        for number, page in enumerate(pages):
            entries.put(rows_key(day, number), pack(page))
        head.days[day] = len(pages)
    for api_key_id, encrypted in buckets.items():
        head.written[bucket_key(api_key_id)] = Written(wall_now, encrypted)
    log.warning("the shared map is empty: keys and ledger come from the backup", keys=len(head.accounts))
    return head


def _read(read: ReadBackup, path: str) -> Any:
    """A file of the backup as plain data; None where there is none."""
    try:
        content = read(path)
        return None if content is None else json.loads(content)
    except Exception as error:  # a map that was lost must not be begun anew while its backup may exist
        raise _unreadable(error) from error


def _unreadable(error: Exception) -> StoreUnavailable:
    log.error("the backup cannot be read; where it is damaged, replace keys.json by a dated file", reason=repr(error))
    return StoreUnavailable(f"The store is empty and its backup cannot be read ({type(error).__name__}).")


# ---- writing ----


def write_backup(database: Database, folder: Path, *, wall_now: float) -> None:
    """Write the backup, and delete dated ones that are older than a week."""
    head, buckets, days = database.read(_contents)
    for day, rows in days.items():
        _write_day(folder / _day_file(day), rows)
    accounts = {api_key_id: replace(account, queued=0, running=0) for api_key_id, account in head.accounts.items()}
    saved = Head(seq=head.seq, accounts=accounts, totals=head.totals, successes=head.successes)
    document = {"head": HEAD.to_plain(saved), "buckets": buckets, "days": sorted(_days_in(folder))}
    for old in folder.glob("keys-*.json"):
        if wall_now - _written_at(old) > KEPT_S:
            old.unlink(missing_ok=True)
    _write(folder / datetime.fromtimestamp(wall_now, UTC).strftime(STAMP), document)
    before = folder / KEYS_FILE
    if before.is_file() and _knows_less(document, json.loads(before.read_bytes())):
        log.error("the backup knows keys or jobs that the store does not: it stays; see the operator's manual")
        return
    _write(before, document)


def backup_age_s(folder: Path, *, wall_now: float) -> float:
    """Seconds since the last `write_backup` into a folder, by the files' names; infinite without one."""
    return wall_now - max(map(_written_at, folder.glob("keys-*.json")), default=float("-inf"))


def _contents(snapshot: Snapshot) -> tuple[Head, dict[str, str], dict[str, list[Any]]]:
    """The head, the encrypted buckets by key, and the rows of the ledger by day."""
    head = snapshot.head
    keys = list(head.accounts)
    encrypted = dict(zip(keys, snapshot.get_many(map(bucket_key, keys)), strict=True))
    days = {
        day: rows_of(snapshot.get_many(rows_key(day, number) for number in range(count)))
        for day, count in head.days.items()
    }
    return head, {api_key_id: text for api_key_id, text in encrypted.items() if text is not None}, days


def _knows_less(new: dict[str, Any], old: dict[str, Any]) -> bool:
    """Whether a backup lacks a key of another, or is of an earlier job. Keys are revoked, but never deleted."""
    is_of_earlier_job = new["head"]["seq"] < old["head"]["seq"]
    return is_of_earlier_job or not old["head"]["accounts"].keys() <= new["head"]["accounts"].keys()


def _day_file(day: str) -> str:
    return f"usage/{day}.json"


def _days_in(folder: Path) -> list[str]:
    return [file.stem for file in (folder / _day_file("*")).parent.glob("*.json")]


def _write_day(path: Path, rows: list[Any]) -> None:
    """Write the rows of a day, with those of an earlier backup that the map has lost."""
    known: list[dict[str, Any]] = json.loads(path.read_bytes()) if path.is_file() else []
    own = {row["job_id"] for row in rows}
    _write(path, [*(row for row in known if row["job_id"] not in own), *rows])


def _written_at(file: Path) -> float:
    """The time in the name of a dated backup; 0 for another file."""
    try:
        return datetime.strptime(file.name, STAMP).replace(tzinfo=UTC).timestamp()
    except ValueError:
        return 0.0


def _write(path: Path, document: Any) -> None:
    """Write a file atomically; one that is unchanged is not written."""
    value = pack(document)
    if path.is_file() and path.read_bytes() == value:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_suffix(".part")
    fresh.write_bytes(value)
    fresh.replace(path)
