"""One value that many processes change in turn, over a map that has no compare-and-set but an atomic create.

Version n of the cell `x` is the entry `x/n`, written once. Who reads version n and creates `x/n+1` has changed the cell
from what was read; who finds `x/n+1` taken has lost, reads again and repeats the change. The entry `x` is a hint, a
number not far below the newest version, from which a reader walks up until an entry is missing.

Old versions must go, and a version that went must not be mistaken for one that never was. Three rules see to it:

1. A version is deleted only when it has been there for `KEEP_S`, is not the newest, and all older ones are gone.
2. What was read is good for `STEP_S`: a change whose create has not been sent by then is begun anew.
3. Who finds entry u+1 missing without having known u as the newest within `STEP_S` looks for u afterwards, and believes
   it only if u is still there.

So nobody takes an old version for the newest: by 3, u being there later means (1: oldest first) that u+1 had not been
deleted, hence was not there yet. Within `STEP_S` of u being the newest, all later versions are younger than `STEP_S`,
hence (1) still there. And nobody creates a version a second time: a create of u+1 takes effect within `STEP_S` (2) and
one operation's time of u being the newest, and another's u+1 from that while is kept for `KEEP_S`. Where the hint leads
does not remover for this: a late writer may set it back, and if what it names is gone, the newest is found by a scan.

What is assumed: an operation takes effect within a minute of being sent or never, and the clocks of two machines differ
by less than 30 s. `KEEP_S` is above `STEP_S` and both.

Each version carries a random token. An operation that failed without an answer may have happened: the token tells.
Threads of one process that change the cell at the same time are served together, in one version.
"""

from __future__ import annotations

import json
import random
import secrets
import threading
import time
import zlib
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from pipeline.errors import ImageTo3DError, StoreUnavailable
from pipeline.jobs.stores.kv.map import MAX_VALUE_BYTES, KeyValues

STEP_S = 10.0
KEEP_S = 120.0
OPTIMISTIC_S = 0.25
"""A change starts from what was known so lately without looking again; the create tells whether it was still true."""
CHANGE_WITHIN_S = 30.0
"""How long a change is repeated while others are quicker."""
VACUUM_EVERY = 32
"""One version in so many is followed by the removal of old ones."""
MAX_BATCH = 64

S = TypeVar("S")
R = TypeVar("R")


class SnapshotExpired(Exception):
    """What a transaction has read may no longer be true; the transaction is begun anew. Never leaves a cell."""


@dataclass(frozen=True)
class Version(Generic[S]):
    """The cell as it was read.

    Attributes:
        number: 0 for a cell that nobody has written.
        read_at_s: monotonic; it was the newest at some time since then, and later ones were all made since then.
        body: the value, encoded.
        value: the value; shared by all readers, who leave it as it is.
        trail: (number, time of writing) of the versions that are kept, oldest first.
    """

    number: int
    read_at_s: float
    token: str
    body: bytes
    value: S
    trail: tuple[tuple[int, float], ...]

    def check(self) -> None:
        """See that what was read is still good.

        Raises:
            SnapshotExpired: it is not.
        """
        if time.monotonic() - self.read_at_s > STEP_S:
            raise SnapshotExpired


@dataclass
class Draft(Generic[S]):
    """The next version in the making: steps change `value` in place."""

    base: Version[S]
    value: S
    trail: tuple[tuple[int, float], ...]


@dataclass(eq=False)
class _Ticket(Generic[S]):
    """One thread's wish to change the cell, and what came of it."""

    transaction: Callable[[Draft[S]], Any]
    is_done: bool = False
    result: Any = None
    error: ImageTo3DError | None = None


@dataclass
class _Tried(Generic[S]):
    draft: Draft[S]
    results: dict[_Ticket[S], Any]
    refusals: dict[_Ticket[S], ImageTo3DError] = field(default_factory=dict)


class CommitLog(Generic[S]):
    """A value under optimistic locking; safe from several threads and processes.

    Args:
        entries: where it is kept.
        name: its entries are this and what begins with this and a slash.
        encode, decode: the value to bytes and back; equal values give equal bytes.
        empty: the encoded value of a cell that nobody has written.
        housekeeping: a transaction that is taken whenever old versions are removed.
        wall_clock: seconds since 1970, for the age of versions.
    """

    def __init__(
        self,
        entries: KeyValues,
        name: str,
        *,
        encode: Callable[[S], bytes],
        decode: Callable[[bytes], S],
        empty: bytes,
        housekeeping: Callable[[Draft[S]], None] | None = None,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._entries = entries
        self._name = name
        self._encode = encode
        self._decode = decode
        self._empty = empty
        self._housekeeping = housekeeping
        self._wall_clock = wall_clock
        self._known: Version[S] | None = None
        self._waiting: deque[_Ticket[S]] = deque()
        self._lock = threading.Lock()

    # ---- reading ----

    def read(self, *, max_age_s: float = 0.0) -> Version[S]:
        """The newest version: one operation where nobody has written since this process last looked.

        Args:
            max_age_s: be content with what was the newest so long ago.

        Raises:
            StoreUnavailable: the map is away.
        """
        known = self._known
        if known is not None and time.monotonic() - known.read_at_s <= max_age_s:
            return known
        if known is not None and time.monotonic() - known.read_at_s <= STEP_S / 2:
            newest = self._walk_up(known)
            if newest is not None:
                return self._remember(newest)
        return self._remember(self._find())

    def _walk_up(self, known: Version[S]) -> Version[S] | None:
        """The newest from one that was the newest lately; None where the walk took too long to be believed."""
        newest, steps = known, 0
        while True:
            asked_at_s = time.monotonic()
            entry = self._entries.get(self._key(newest.number + 1))
            if entry is None:
                is_good = time.monotonic() - known.read_at_s <= STEP_S
                return self._at(newest, asked_at_s) if is_good else None
            newest, steps = self._open(newest.number + 1, entry, asked_at_s), steps + 1
            if steps == 2:  # far behind: the hint is nearer
                hint = self._last_commit()
                entry = self._entries.get(self._key(hint)) if hint > newest.number else None
                newest = newest if entry is None else self._open(hint, entry, asked_at_s)

    def _find(self) -> Version[S]:
        """The newest, without knowing any; see rule 3."""
        number = self._last_commit()
        while True:
            asked_at_s = time.monotonic()
            if number == 0:
                number = self._newest_by_scan()
                if number == 0:
                    value = self._decode(self._empty)
                    return Version(0, asked_at_s, "", self._empty, value, ())
            while self._entries.get(self._key(number + 1)) is not None:
                number += 1
                asked_at_s = time.monotonic()
            entry = self._entries.get(self._key(number))
            if entry is not None:
                return self._open(number, entry, asked_at_s)
            number = 0  # the hint named one that is gone

    def _newest_by_scan(self) -> int:
        prefix = f"{self._name}/"
        numbers = [name.removeprefix(prefix) for name in self._entries.names() if name.startswith(prefix)]
        return max((int(number) for number in numbers if number.isdigit()), default=0)

    def _last_commit(self) -> int:
        return int(self._entries.get(self._name) or 0)

    def _key(self, number: int) -> str:
        return f"{self._name}/{number}"

    def _open(self, number: int, entry: bytes, read_at_s: float) -> Version[S]:
        head, _, body = zlib.decompress(entry).partition(b"\n")
        fields = json.loads(head)
        trail = tuple((int(kept), float(at)) for kept, at in fields["trail"])
        return Version(number, read_at_s, fields["token"], body, self._decode(body), trail)

    @staticmethod
    def _at(version: Version[S], read_at_s: float) -> Version[S]:
        return Version(version.number, read_at_s, version.token, version.body, version.value, version.trail)

    def _remember(self, version: Version[S]) -> Version[S]:
        known = self._known
        if known is None or (version.number, version.read_at_s) > (known.number, known.read_at_s):
            self._known = version
        return version

    # ---- changing ----

    def change(self, transaction: Callable[[Draft[S]], R]) -> R:
        """Change the cell in one atomic transaction.

        Args:
            transaction: changes the draft's value and returns the answer, or raises and changes nothing. It is repeated as
                often as another process is quicker, so it has no other effects but those that bear repeating.

        Raises:
            StoreUnavailable: the map is away, or others were always quicker.
            ImageTo3DError: what the transaction raised.
        """
        ticket: _Ticket[S] = _Ticket(transaction)
        self._waiting.append(ticket)
        is_tidy_due = False
        with self._lock:
            if not ticket.is_done:
                batch = [self._waiting.popleft() for _ in range(min(len(self._waiting), MAX_BATCH))]
                while ticket not in batch:
                    is_tidy_due |= self._serve(batch)
                    batch = [self._waiting.popleft() for _ in range(min(len(self._waiting), MAX_BATCH))]
                is_tidy_due |= self._serve(batch)
        if is_tidy_due:
            with suppress(StoreUnavailable):  # the change itself is done
                self.vacuum()
        if ticket.error is not None:
            raise ticket.error
        return ticket.result

    def vacuum(self) -> None:
        """Do the housekeeping and remove old versions.

        Raises:
            StoreUnavailable: the map is away; what is left is removed another time.
        """

        def transaction(draft: Draft[S]) -> None:
            if self._housekeeping is not None:
                self._housekeeping(draft)
            while draft.trail and draft.trail[0][0] < draft.base.number:
                number, written_at = draft.trail[0]
                if self._wall_clock() - written_at < KEEP_S:
                    break
                draft.base.check()
                self._entries.delete(self._key(number))
                draft.trail = draft.trail[1:]

        self.change(transaction)

    def _serve(self, batch: list[_Ticket[S]]) -> bool:
        """Take the steps of all tickets in one version; returns whether it is time to vacuum up."""
        try:
            tried, number = self._repeat(batch)
            for ticket in batch:
                ticket.result, ticket.error = tried.results.get(ticket), tried.refusals.get(ticket)
            return number > 0 and number % VACUUM_EVERY == 0
        except StoreUnavailable as error:
            for ticket in batch:
                ticket.error = error
            return False
        except BaseException as error:  # this thread is being ended: the others must not take silence for an answer
            for ticket in batch:
                ticket.error = StoreUnavailable(f"The store was interrupted ({type(error).__name__}).")
            raise
        finally:
            for ticket in batch:
                ticket.is_done = True

    def _repeat(self, batch: list[_Ticket[S]]) -> tuple[_Tried[S], int]:
        """Repeat the steps until they are written; the number is that of the version, 0 where nothing was changed."""
        began_at_s, tries = time.monotonic(), 0
        while time.monotonic() - began_at_s < CHANGE_WITHIN_S:
            base = self.read(max_age_s=OPTIMISTIC_S if tries == 0 else 0.0)
            try:
                tried = self._try(base, batch)
                tries += 1
                if tried.draft.value == base.value and tried.draft.trail == base.trail:
                    if base.read_at_s >= began_at_s:
                        return tried, 0
                    continue  # nothing to write, so nobody has told yet whether the base was the newest
                base.check()
            except SnapshotExpired:
                continue
            if self._write(tried.draft):
                return tried, base.number + 1
            time.sleep(random.uniform(0.0, 0.01 * min(tries, 20)))
        raise StoreUnavailable("The store is busy.")

    def _try(self, base: Version[S], batch: list[_Ticket[S]]) -> _Tried[S]:
        """All steps on one draft; when one raises, the others are repeated without it, on a fresh one."""
        refusals: dict[_Ticket[S], ImageTo3DError] = {}
        while True:
            draft = Draft(base, self._decode(base.body), base.trail)
            results: dict[_Ticket[S], Any] = {}
            for ticket in batch:
                if ticket in refusals:
                    continue
                try:
                    results[ticket] = ticket.transaction(draft)
                except ImageTo3DError as error:
                    refusals[ticket] = error
                    break
            else:
                return _Tried(draft, results, refusals)

    def _write(self, draft: Draft[S]) -> bool:
        """Create the next version; False where another process was quicker."""
        number, token, now = draft.base.number + 1, secrets.token_hex(8), self._wall_clock()
        trail = (*draft.trail, (number, now))
        body = self._encode(draft.value)
        entry = zlib.compress(json.dumps({"token": token, "trail": trail}).encode() + b"\n" + body, 1)
        if len(entry) > MAX_VALUE_BYTES:
            raise StoreUnavailable(f"The store is full: its open calls take {len(entry)} bytes.")
        created_at_s = time.monotonic()
        if not self._create(draft.base, entry, token):
            return False
        self._remember(Version(number, created_at_s, token, body, draft.value, trail))
        with suppress(StoreUnavailable):  # it is written; the next writer sets the hint
            self._entries.put(self._name, str(number).encode())
        return True

    def _create(self, base: Version[S], entry: bytes, token: str) -> bool:
        key = self._key(base.number + 1)
        try:
            if self._entries.create(key, entry):
                return True
        except StoreUnavailable:  # whether it was written is not known; once more tells
            if time.monotonic() - base.read_at_s > STEP_S:
                raise
            if self._entries.create(key, entry):
                return True
        there = self._entries.get(key)
        if there is None:  # too late to tell: it was there, and is old enough to be gone
            raise StoreUnavailable("The store is busy.")
        found = self._remember(self._open(base.number + 1, there, base.read_at_s))
        return found.token == token
