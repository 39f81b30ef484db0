"""The head and the documents as one database: consistent snapshots, and transactions over both.

A transaction puts documents into the head, under `written`; readers look there first. When a document has been there
for `MOVE_OUT_AFTER_S`, housekeeping writes it to its own entry and then, as part of its own commit, drops it from the
head. So the entry of a document is never written while a snapshot or a transaction from before the change is still
valid: one that is older than `SNAPSHOT_VALID_S` (`pipeline.jobs.stores.kv.commit_log`) starts again. Delayed
housekeeping does not overwrite a newer document either: it read a head without that document, so its write ends before
the newer document has been in the head for `MOVE_OUT_AFTER_S`. This assumes that a put or delete takes effect within
250 s of being sent, or never: Modal's client repeats one for at most 160 s, as `pipeline.on_modal.settings` limits its
wait when throttled.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any, TypeVar

from pipeline.errors import StoreUnavailable
from pipeline.jobs.stores.kv.commit_log import CommitLog, Draft, SnapshotExpired, Version
from pipeline.jobs.stores.kv.map import KeyValues
from pipeline.jobs.stores.kv.state import HEAD, Head, Written, pack, unpack

MOVE_OUT_AFTER_S = 300.0
"""Longer than a snapshot is valid, an operation takes and two machines' clocks differ, together."""

R = TypeVar("R")


class Snapshot:
    """The head and the documents as of one version of the log.

    Args:
        before: an earlier snapshot, whose documents need not be read again: one that changed since is in the head.
            Ignored when it has expired.
    """

    def __init__(
        self, entries: KeyValues, head: Head, version: Version[Head], *, before: Snapshot | None = None
    ) -> None:
        self.entries = entries
        self.head = head
        self._version = version
        self._read: dict[str, Any] = dict(before._read) if before is not None and before._version.is_valid() else {}

    def get(self, key: str) -> Any:
        """A document as plain data; None where there is none."""
        return self.get_many([key])[0]

    def get_many(self, keys: Iterable[str]) -> list[Any]:
        """Several documents, in the order asked for."""
        wanted = list(keys)
        written = self.head.written
        missing = [key for key in dict.fromkeys(wanted) if key not in written and key not in self._read]
        for key, value in zip(missing, self.entries.get_many(missing), strict=True):
            self._read[key] = None if value is None else unpack(value)
        self._version.check()
        return [written[key].document if key in written else self._read[key] for key in wanted]


class Transaction(Snapshot):
    """A snapshot that may be changed: the head in place, documents by `put` and `delete`.

    Args:
        wall_now: seconds since 1970.
    """

    def __init__(
        self, entries: KeyValues, draft: Draft[Head], *, wall_now: float, before: Snapshot | None = None
    ) -> None:
        super().__init__(entries, draft.value, draft.base, before=before)
        self._wall_now = wall_now
        self.forgotten: list[str] = []

    def put(self, key: str, document: Any) -> None:
        """Write a document, plain data."""
        self.head.written[key] = Written(self._wall_now, document)

    def delete(self, key: str) -> None:
        """Remove a document."""
        self.put(key, None)

    def forget(self, key: str) -> None:
        """Delete an entry that is neither head nor document once the transaction is committed."""
        self.forgotten.append(key)

    def move_out(self) -> None:
        """Move documents that have been in the head for `MOVE_OUT_AFTER_S` to entries of their own."""
        for key, written in list(self.head.written.items()):
            if self._wall_now - written.at < MOVE_OUT_AFTER_S:
                continue
            self._version.check()
            if written.document is None:
                self.entries.delete(key)
            else:
                self.entries.put(key, pack(written.document))
            del self.head.written[key]


class Database:
    """The head and the documents in a map.

    Args:
        initial: the head of a map without commits.
        may_exist: False for an entry that was never written, and need not be deleted.
        wall_clock: seconds since 1970, for the age of what was written.
    """

    def __init__(
        self,
        entries: KeyValues,
        *,
        initial: Callable[[], Head] = Head,
        may_exist: Callable[[str], bool] = lambda key: True,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self.entries = entries
        self._may_exist = may_exist
        self._wall_clock = wall_clock
        self._log: CommitLog[Head] = CommitLog(
            entries,
            "head",
            encode=HEAD.to_json,
            decode=HEAD.from_json,
            empty=HEAD.to_json(Head()),
            initial=lambda: HEAD.to_json(initial()),
            housekeeping=lambda draft: self._transaction(draft).move_out(),
            wall_clock=wall_clock,
        )

    def read(self, query: Callable[[Snapshot], R], *, max_age_s: float = 0.0) -> R:
        """The result of a query on one snapshot.

        Args:
            query: repeated when its snapshot expires.
            max_age_s: accept a snapshot of this age.
        """
        while True:
            version = self._log.read(max_age_s=max_age_s)
            try:
                return query(Snapshot(self.entries, version.value, version))
            except SnapshotExpired:
                continue

    def commit(self, change: Callable[[Transaction], R], *, before: Snapshot | None = None) -> R:
        """Commit a transaction; the entries that it forgets are deleted afterwards.

        Args:
            change: repeated when another process commits first.
            before: a snapshot that was read for it.
        """

        def run(draft: Draft[Head]) -> tuple[R, list[str]]:
            transaction = self._transaction(draft, before=before)
            return change(transaction), transaction.forgotten

        result, forgotten = self._log.commit(run)
        self.remove(forgotten)
        return result

    def remove(self, keys: Iterable[str]) -> None:
        """Delete entries that nothing refers to; those that cannot be deleted now are swept by maintenance."""
        with suppress(StoreUnavailable):
            for key in filter(self._may_exist, keys):
                self.entries.delete(key)

    def vacuum(self) -> None:
        """Move documents out of the head and delete old versions of the log."""
        self._log.vacuum()

    def sweep(self) -> None:
        """Delete what late creates of the log have left: a scan."""
        self._log.sweep()

    def _transaction(self, draft: Draft[Head], *, before: Snapshot | None = None) -> Transaction:
        return Transaction(self.entries, draft, wall_now=self._wall_clock(), before=before)
