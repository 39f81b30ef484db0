"""The head and the documents as one database: what a question reads and a transaction changes are all of one moment.

A transaction puts documents into the head, under `written`; whoever reads looks there first. When a document has been there
for `KEEP_S`, housekeeping writes it to its own entry and then, as part of its own transaction, drops it from the head. So a
document's entry is never written while a question or transaction that began before the change can still be reading: it would
be beyond `STEP_S` (`pipeline.jobs.stores.kv.commit_log`), and is begun anew. Nor does a late housekeeper undo a newer document: it
had read a head without it, so its writing is over long before the newer one has been there for `KEEP_S`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any, TypeVar

from pipeline.errors import StoreUnavailable
from pipeline.jobs.stores.kv.commit_log import KEEP_S, CommitLog, Draft, SnapshotExpired, Version
from pipeline.jobs.stores.kv.map import KeyValues
from pipeline.jobs.stores.kv.state import HEAD, Head, Written, pack, unpack

R = TypeVar("R")


class Snapshot:
    """The head and the documents at one moment, for questions.

    Args:
        version: the moment.
        before: a snapshot of an earlier moment, whose documents need not be read again: one that changed since then stands
            in the head. Left aside when it is too old for that.
    """

    def __init__(
        self, entries: KeyValues, head: Head, version: Version[Head], *, before: Snapshot | None = None
    ) -> None:
        self.entries = entries
        self.head = head
        self._version = version
        self._read: dict[str, Any] = dict(before._read) if before is not None and before._is_good() else {}

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

    def check(self) -> None:
        """See that what was read is still of one moment.

        Raises:
            SnapshotExpired: it is not; the question is asked anew.
        """
        self._version.check()

    def _is_good(self) -> bool:
        try:
            self._version.check()
        except SnapshotExpired:
            return False
        return True


class Transaction(Snapshot):
    """The next head and the documents in the making: the head may be changed in place.

    Args:
        wall_now: seconds since 1970.
    """

    def __init__(
        self, entries: KeyValues, draft: Draft[Head], *, wall_now: float, before: Snapshot | None = None
    ) -> None:
        super().__init__(entries, draft.value, draft.base, before=before)
        self._wall_now = wall_now
        self.garbage: list[str] = []

    def put(self, key: str, document: Any) -> None:
        """Write a document, plain data."""
        self.head.written[key] = Written(self._wall_now, document)

    def delete(self, key: str) -> None:
        """Remove a document."""
        self.put(key, None)

    def forget(self, key: str) -> None:
        """Name an entry beside the documents that is of no use once the transaction is written."""
        self.garbage.append(key)

    def move_out(self) -> None:
        """Move documents that have been in the head for `KEEP_S` to entries of their own."""
        for key, written in list(self.head.written.items()):
            if self._wall_now - written.at < KEEP_S:
                continue
            self.check()
            if written.document is None:
                self.entries.delete(key)
            else:
                self.entries.put(key, pack(written.document))
            del self.head.written[key]


class Database:
    """The head and the documents in a map: questions and steps.

    Args:
        wall_clock: seconds since 1970, for the age of what was written.
    """

    def __init__(self, entries: KeyValues, *, wall_clock: Callable[[], float] = time.time) -> None:
        self.entries = entries
        self._wall_clock = wall_clock
        self._log: CommitLog[Head] = CommitLog(
            entries,
            "head",
            encode=HEAD.to_json,
            decode=HEAD.from_json,
            empty=HEAD.to_json(Head()),
            housekeeping=lambda draft: self._transaction(draft).move_out(),
            wall_clock=wall_clock,
        )

    def ask(self, question: Callable[[Snapshot], R], *, max_age_s: float = 0.0) -> R:
        """The answer to a question about one moment.

        Args:
            max_age_s: be content with a moment so long ago.
        """
        while True:
            version = self._log.read(max_age_s=max_age_s)
            try:
                return question(Snapshot(self.entries, version.value, version))
            except SnapshotExpired:
                continue

    def change(self, act: Callable[[Transaction], R], *, before: Snapshot | None = None) -> R:
        """Take a transaction; when it is written, what it named as garbage is removed.

        Args:
            act: it is repeated when another process was quicker.
            before: what was read for it.
        """

        def take(draft: Draft[Head]) -> tuple[R, list[str]]:
            transaction = self._transaction(draft, before=before)
            return act(transaction), transaction.garbage

        result, garbage = self._log.change(take)
        self.remove(garbage)
        return result

    def remove(self, keys: Iterable[str]) -> None:
        """Remove entries beside the documents that nothing leads to; what cannot be removed now is swept later."""
        with suppress(StoreUnavailable):
            for key in keys:
                self.entries.delete(key)

    def vacuum(self) -> None:
        """Move documents out of the head and remove its old versions."""
        self._log.vacuum()

    def _transaction(self, draft: Draft[Head], *, before: Snapshot | None = None) -> Transaction:
        return Transaction(self.entries, draft, wall_now=self._wall_clock(), before=before)
