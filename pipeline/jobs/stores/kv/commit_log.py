"""A value that many processes change by optimistic commits, over a map whose only primitive is an atomic create.

The commit protocol is Delta Lake's (Armbrust et al., "Delta Lake: High-Performance ACID Table Storage over Cloud Object
Stores", VLDB 2020, section 3.2): version n of the log `x` is the entry `x/n`, written once. A process that read version
n commits by creating `x/n+1`; if that entry exists, another process was faster, and the change is repeated on the new
version. The entry `x/newest` is Delta's `_last_checkpoint`: a copy of a version not far below the newest, from which a
reader walks up until an entry is missing. Unlike Delta's, every version holds the whole value, so older versions are
needed by nobody, and `vacuum` deletes them. The entry `x` holds the number of such a version, which is all that version
0.1.0 reads and writes.

Many processes that write at once spend most of their operations in vain: on reads of versions that are not the newest
any more, and on creates that another process was faster with. So a process that knows a recent version starts a change
from the copy without asking for a later one, which the create does anyway. After a create that was too late it reads
the copy again, which also shows that the version was another process's: each has the times of those before it. From the
second such create on it pauses before it reads.

A deleted version must not be mistaken for one that was never written. Four rules prevent it:

1. A version is deleted only when it is older than `RETAIN_S`, all older ones are deleted, and it is neither the newest
   nor the one before the newest.
2. A snapshot is valid for `SNAPSHOT_VALID_S`: a commit whose create has not been sent by then starts again.
3. A reader that finds entry u+1 missing, and did not know u as the newest within the last `SNAPSHOT_VALID_S`, reads u
   and u-1 afterwards, and trusts u only if u-1 is the version that u was made from; and, where the copy is old enough
   for later versions to be deleted, if u is later than the number in `x/deleted`, which a vacuum writes before it
   deletes that version. Otherwise a scan of all names finds the newest version.
4. A writer whose create took longer than `TRUSTED_S` asks, before anything else, whether its version is part of the
   log, and deletes it where it is not.

A create of u+1 that takes effect minutes late, when u+1 has been deleted, leaves an entry that is not part of the log.
By 3, no reader takes it for the newest version: u-1 or u was deleted before u+1 (1: oldest first), or the token in it
differs. The same holds for any old version: u-1 was there later, so u+1 had not been deleted, hence did not exist yet.
By 4, its writer does not take it for a commit. Within `TRUSTED_S` of u being the newest, all later versions are younger
than that, hence (1) still there, and an entry that was created is the first of its number. What `x` and
`x/newest` hold does not matter for this: a late writer may set them back.

The protocol assumes that the clocks of two machines differ by less than 30 s: `RETAIN_S` exceeds the sum of that,
`SNAPSHOT_VALID_S` and `TRUSTED_S`. It assumes nothing about how long an operation takes, and tolerates operations that
are repeated later by the network, but not four at once, each more than `RETAIN_S` late: creates of two deleted versions
u and u+1, and puts that set both `x/newest` and `x/deleted` back before u. A reader that knows no version would take
u+1 for the newest.

Each version carries a random token. An operation that failed without an answer may have taken effect; the token shows
whether it did. Changes that threads of one process request at the same time share one commit.
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
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any, Generic, TypeVar

from pipeline.errors import ImageTo3DError, StoreUnavailable
from pipeline.jobs.stores.kv.map import MAX_VALUE_BYTES, KeyValues

SNAPSHOT_VALID_S = 10.0
TRUSTED_S = 30.0
"""A version that was created within this time after its base was the newest is the first of its number: rule 4."""
RETAIN_S = 120.0
OPTIMISTIC_S = 0.25
"""A change starts from a snapshot of this age without reading again; the create shows whether it was the newest."""
OPTIMISTIC_COMMITS = 1.0
"""But not where others have probably made so many commits since: a create in vain costs two operations."""
FAR_BEHIND_COMMITS = 2.0
"""From so many commits on, the copy is nearer than the next version."""
NUMBER_EVERY = 8
"""The number of a commit is recorded at every eighth: only version 0.1.0 asks for it where there is a copy."""
RATE_WINDOW_S = 5.0
"""The rate of commits is that of the last seconds before a version was read."""
COMMIT_TIMEOUT_S = 30.0
"""How long a change is repeated while other processes commit first."""
MOST_PAUSE_S = 2.0
"""Longest pause between two tries. Pauses grow from the time that a try takes, which is that of the map's operations:
with a slow map and many writers, tries that follow each other at once only make each other fail."""
VACUUM_EVERY = 32
"""A vacuum follows one commit in so many."""
MAX_BATCH = 64
"""Changes in one commit."""

S = TypeVar("S")
R = TypeVar("R")


class SnapshotExpired(Exception):
    """A snapshot is older than `SNAPSHOT_VALID_S`; the operation starts again. Never leaves the store."""


class Encoded(Generic[S]):
    """A value as bytes, which is decoded when it is asked for first: a reader passes versions that nobody looks at."""

    def __init__(self, body: bytes, decode: Callable[[bytes], S]) -> None:
        self.body = body
        self._decode = decode

    @cached_property
    def value(self) -> S:
        """The value; the same object each time."""
        return self._decode(self.body)


@dataclass(frozen=True)
class Version(Generic[S]):
    """One version of the log, as it was read.

    Attributes:
        number: 0 for a log without commits.
        previous: the token of the version before it; None in entries of version 0.1.0. Stored as `prev`.
        read_at_s: monotonic; this version was the newest at some time since then, so all later ones are younger.
        encoded: the value; shared by all readers, who must not change it.
        retained: (number, time of the commit) of the versions that are not deleted, oldest first. Stored as `trail`.
    """

    number: int
    read_at_s: float
    token: str
    previous: str | None
    encoded: Encoded[S]
    retained: tuple[tuple[int, float], ...]

    @property
    def value(self) -> S:
        """The value, decoded."""
        return self.encoded.value

    def is_valid(self) -> bool:
        """Whether it was read recently enough to be used: rule 2."""
        return time.monotonic() - self.read_at_s <= SNAPSHOT_VALID_S

    def check(self) -> None:
        """Refuse to continue with a version that is not valid any more.

        Raises:
            SnapshotExpired: it is not.
        """
        if not self.is_valid():
            raise SnapshotExpired


@dataclass
class Draft(Generic[S]):
    """The next version before its commit: changes modify `value` in place."""

    base: Version[S]
    value: S
    retained: tuple[tuple[int, float], ...]


@dataclass(eq=False)
class _Request(Generic[S]):
    """A change that one thread asks for, and its outcome."""

    change: Callable[[Draft[S]], Any]
    is_done: bool = False
    result: Any = None
    error: ImageTo3DError | None = None


class CommitLog(Generic[S]):
    """A value under optimistic concurrency control; safe from several threads and processes.

    Args:
        name: the log's entries are this name, and this name with a slash and a number.
        encode, decode: the value to bytes and back; equal values give equal bytes.
        empty: the encoded value of an empty log.
        initial: the encoded value before the first commit, `empty` by default; asked for where there is none. One that
            is not empty is committed with the first change, even where that changes nothing.
        housekeeping: a change that every vacuum makes.
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
        initial: Callable[[], bytes] | None = None,
        housekeeping: Callable[[Draft[S]], None] | None = None,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._entries = entries
        self._name = name
        self._encode = encode
        self._decode = decode
        self._empty = empty
        self._initial = initial or (lambda: empty)
        self._housekeeping = housekeeping
        self._wall_clock = wall_clock
        self._known: Version[S] | None = None
        self._waiting: deque[_Request[S]] = deque()
        self._lock = threading.Lock()

    # ---- reading ----

    def read(self, *, max_age_s: float = 0.0) -> Version[S]:
        """The newest version: one operation where nobody has committed since this process last read.

        Args:
            max_age_s: accept a version that was the newest so long ago.

        Raises:
            StoreUnavailable: the map is unavailable.
        """
        known = self._known
        if known is not None and time.monotonic() - known.read_at_s < max_age_s:
            return known
        if known is not None and time.monotonic() - known.read_at_s <= SNAPSHOT_VALID_S / 2:
            newest = self._walk_up(known)
            if newest is not None:
                return self._remember(newest)
        return self._remember(self._find())

    def _walk_up(self, known: Version[S]) -> Version[S] | None:
        """The newest version, from one that was the newest recently; None where the walk took too long to trust."""
        newest, steps = known, 2 if self._later_commits(known) >= FAR_BEHIND_COMMITS else 0
        while True:
            if steps == 2:  # far behind: the copy is nearer
                newest = self._later_copy(newest)
            asked_at_s = time.monotonic()
            entry = self._entries.get(self._key(newest.number + 1))
            if entry is None:
                return replace(newest, read_at_s=asked_at_s) if known.is_valid() else None
            newest, steps = self._open(newest.number + 1, entry, asked_at_s), steps + 1

    def _later_copy(self, known: Version[S]) -> Version[S]:
        """The version in the copy where it is later, else the known one. It need not be the newest, but it was after
        the known one: what is true of the time since that was read is true of it.
        """
        copy = self._copy(known.read_at_s)
        return known if copy is None or copy.number <= known.number else copy

    def _copy(self, read_at_s: float) -> Version[S] | None:
        """A version not far below the newest, or a deleted one; None where 0.1.0 alone has committed."""
        entry = self._entries.get(self._copy_key)
        if entry is None:
            return None
        copy = self._open(0, entry, read_at_s)
        return replace(copy, number=copy.retained[-1][0])

    def _later_commits(self, known: Version[S]) -> float:
        """How many commits others have probably made since a version was read, at the rate before.

        An estimate, for which machines' clocks need not agree: it decides what is asked first.
        """
        age_s = time.monotonic() - known.read_at_s
        since = self._wall_clock() - age_s - RATE_WINDOW_S
        recent = sum(at >= since for _, at in known.retained)
        return recent / RATE_WINDOW_S * age_s

    def _find(self) -> Version[S]:
        """The newest version, without knowing a recent one: rule 3."""
        copy, scanned_at_s = self._copy(time.monotonic()), float("-inf")
        number = self._last_commit() if copy is None else copy.number  # its value may be an old one, set back
        is_old = copy is not None and self._wall_clock() - copy.retained[-1][1] > RETAIN_S / 2
        deleted = int(self._entries.get(self._deleted_key) or 0) if is_old else 0
        while True:
            asked_at_s = time.monotonic()
            if number == 0:
                number, scanned_at_s = self._newest_by_scan(), asked_at_s
                if number == 0:
                    initial = self._initial()
                    return Version(0, asked_at_s, "", None, Encoded(initial, self._decode), ())
            while self._entries.get(self._key(number + 1)) is not None:
                number += 1
                asked_at_s = time.monotonic()
            entry, before = self._entries.get_many([self._key(number), self._key(number - 1)])
            if time.monotonic() - asked_at_s > TRUSTED_S:
                continue  # the entries were read too far apart to be compared
            if entry is not None:
                newest = self._open(number, entry, asked_at_s)
                # Versions that a scan has missed are younger than the scan, so none of them is deleted yet.
                is_scanned = time.monotonic() - scanned_at_s <= TRUSTED_S
                if is_scanned or (number > deleted and self._is_made_from(newest, before)):
                    return newest
            number = 0  # the last commit on record is deleted

    def _is_made_from(self, version: Version[S], before: bytes | None) -> bool:
        """Whether an entry holds the version that another was made from."""
        return before is not None and version.previous in (None, _fields_of(before)[0]["token"])

    def _newest_by_scan(self) -> int:
        return max(self._numbers(), default=0)

    def _numbers(self) -> list[int]:
        """The numbers of all entries, in any order."""
        prefix = f"{self._name}/"
        numbers = [name.removeprefix(prefix) for name in self._entries.names() if name.startswith(prefix)]
        return [int(number) for number in numbers if number.isdigit()]

    def _last_commit(self) -> int:
        """The number of a commit not far below the newest, or of a deleted one; 0 where none is on record."""
        return int(self._entries.get(self._name) or 0)

    @property
    def _copy_key(self) -> str:
        return f"{self._name}/newest"

    @property
    def _deleted_key(self) -> str:
        return f"{self._name}/deleted"

    def _key(self, number: int) -> str:
        return f"{self._name}/{number}"

    def _open(self, number: int, entry: bytes, read_at_s: float) -> Version[S]:
        fields, body = _fields_of(entry)
        retained = tuple((int(number), float(at)) for number, at in fields["trail"])
        encoded = Encoded(body, self._decode)
        return Version(number, read_at_s, fields["token"], fields.get("prev"), encoded, retained)

    def _remember(self, version: Version[S]) -> Version[S]:
        known = self._known
        if known is None or (version.number, version.read_at_s) > (known.number, known.read_at_s):
            self._known = version
        return version

    # ---- committing ----

    def commit(self, change: Callable[[Draft[S]], R]) -> R:
        """Commit a change and return its result.

        Args:
            change: modifies the draft's value, or raises and changes nothing. It is repeated as often as another
                process commits first, so its other effects must be safe to repeat.

        Raises:
            StoreUnavailable: the map is unavailable, or other processes always committed first.
            ImageTo3DError: what the change raised.
        """
        request: _Request[S] = _Request(change)
        self._waiting.append(request)
        is_vacuum_due = False
        with self._lock:
            if not request.is_done:
                requests = self._next_requests()
                while request not in requests:
                    is_vacuum_due |= self._serve(requests)
                    requests = self._next_requests()
                is_vacuum_due |= self._serve(requests)
        if is_vacuum_due:
            with suppress(StoreUnavailable):  # the change itself is committed
                self.vacuum()
        if request.error is not None:
            raise request.error
        return request.result

    def _next_requests(self) -> list[_Request[S]]:
        return [self._waiting.popleft() for _ in range(min(len(self._waiting), MAX_BATCH))]

    def vacuum(self) -> None:
        """Run the housekeeping and delete old versions.

        The versions are deleted first, and only then taken out of `retained`: a commit that took as long as many
        deletes would always be too late where others write, and would repeat them all.

        Raises:
            StoreUnavailable: the map is unavailable; the next vacuum deletes the rest.
        """
        base, deleted, now = self.read(), set[int](), self._wall_clock()
        old = [number for number, at in base.retained if number < base.number - 1 and now - at >= RETAIN_S]
        if old:
            self._entries.put(self._deleted_key, str(max(old)).encode())
        for number in old:
            if not base.is_valid():
                break
            self._entries.delete(self._key(number))
            deleted.add(number)

        def change(draft: Draft[S]) -> None:
            if self._housekeeping is not None:
                self._housekeeping(draft)
            draft.retained = tuple((number, at) for number, at in draft.retained if number not in deleted)

        self.commit(change)

    def sweep(self) -> None:
        """Delete what creates that took effect too late have left: a scan, for maintenance.

        Raises:
            StoreUnavailable: the map is unavailable; the next sweep deletes the rest, also of what took too long.
        """
        numbers = self._numbers()
        newest = self.read()
        oldest = newest.retained[0][0] if newest.retained else newest.number
        for number in sorted(number for number in numbers if number < oldest):
            if not newest.is_valid():
                return
            self._entries.delete(self._key(number))

    def _serve(self, requests: list[_Request[S]]) -> bool:
        """Commit the changes of all requests in one version; returns whether a vacuum is due."""
        try:
            number = self._commit(requests)
            return number > 0 and number % VACUUM_EVERY == 0
        except StoreUnavailable as error:
            for request in requests:
                request.error = error
            return False
        except BaseException as error:  # this thread is being ended: the others must not read that as success
            for request in requests:
                request.error = StoreUnavailable(f"The store was interrupted ({type(error).__name__}).")
            raise
        finally:
            for request in requests:
                request.is_done = True

    def _commit(self, requests: list[_Request[S]]) -> int:
        """Repeat the changes until they are committed; returns the version's number, 0 where nothing changed."""
        began_at_s, losses, must_read = time.monotonic(), 0, False
        while time.monotonic() - began_at_s < COMMIT_TIMEOUT_S:
            base = self.read() if must_read else self._base(losses)
            tried_at_s = time.monotonic()
            try:
                draft = self._change(base, requests)
                body = self._encode(draft.value)
                is_unwritten = base.number == 0 and base.encoded.body != self._empty
                if body == base.encoded.body and draft.retained == base.retained and not is_unwritten:
                    if base.read_at_s >= began_at_s:
                        return 0
                    must_read = True  # with nothing to create, only another read tells whether the base is the newest
                    continue
                base.check()
            except SnapshotExpired:
                must_read = True
                continue
            losses += 1
            if self._write(draft, body, pause=partial(_pause, losses, tried_at_s)):
                return base.number + 1
            must_read = False
        raise StoreUnavailable("The store is busy.")

    def _base(self, losses: int) -> Version[S]:
        """A version for the next try. It need not be the newest, which the create shows: a read that makes sure takes
        another operation, after which it may be as old as before.

        Args:
            losses: tries that found another process's commit. The last has read that commit or a later one.
        """
        known = self._known
        if known is None or time.monotonic() - known.read_at_s > SNAPSHOT_VALID_S / 2:
            return self.read()
        later = self._later_commits(known)
        if losses or (time.monotonic() - known.read_at_s <= OPTIMISTIC_S and later < OPTIMISTIC_COMMITS):
            return known
        return self._remember(self._later_copy(known)) if later >= OPTIMISTIC_COMMITS else self.read()

    def _change(self, base: Version[S], requests: list[_Request[S]]) -> Draft[S]:
        """All changes on one draft. When one raises, the others are repeated without it, on a fresh draft."""
        for request in requests:
            request.error = None
        while True:
            draft = Draft(base, self._decode(base.encoded.body), base.retained)
            for request in requests:
                if request.error is not None:
                    continue
                try:
                    request.result = request.change(draft)
                except ImageTo3DError as error:
                    request.error = error
                    break
            else:
                return draft

    def _write(self, draft: Draft[S], body: bytes, *, pause: Callable[[], None]) -> bool:
        """Create the next version; False where another process committed first: then its version is known, or one
        after it.

        Args:
            body: the draft's value, encoded.
            pause: called before that version is read, so that it is as new as it can be when the next try begins.
        """
        number, token, now = draft.base.number + 1, secrets.token_hex(8), self._wall_clock()
        retained = (*draft.retained, (number, now))
        fields = {"token": token, "prev": draft.base.token, "trail": retained}
        entry = zlib.compress(json.dumps(fields).encode() + b"\n" + body, 1)
        if len(entry) > MAX_VALUE_BYTES:
            raise StoreUnavailable(f"The store is full: its open jobs take {len(entry)} bytes.")
        created_at_s = time.monotonic()
        if not self._create(draft.base, entry) and not self._is_own(draft.base, token, now, pause):
            return False
        if time.monotonic() - draft.base.read_at_s > TRUSTED_S and not self._is_committed(number, token):
            return False
        self._remember(Version(number, created_at_s, token, draft.base.token, Encoded(body, self._decode), retained))
        with suppress(StoreUnavailable):  # the version is committed; the next writer copies its own
            self._entries.put(self._copy_key, entry)
            if number % NUMBER_EVERY == 1:
                self._entries.put(self._name, str(number).encode())
        return True

    def _create(self, base: Version[S], entry: bytes) -> bool:
        """Whether the next version was created; False where it was there: another process's, or that of this create,
        which the client has repeated.
        """
        key = self._key(base.number + 1)
        try:
            return self._entries.create(key, entry)
        except StoreUnavailable:  # it may have taken effect; a second create shows whether it did
            if not base.is_valid():
                raise
            return self._entries.create(key, entry)

    def _is_own(self, base: Version[S], token: str, committed_at: float, pause: Callable[[], None]) -> bool:
        """Whether the version after `base` is the one that was to be created with this token at this time.

        The copy shows in most cases that it is not, and is the version to try on: its `retained` has the time of each.
        """
        pause()
        newest = self._remember(self._later_copy(base))
        if any(number == base.number + 1 and at != committed_at for number, at in newest.retained):
            return False
        existing = self._entries.get(self._key(base.number + 1))
        if existing is None:  # it existed, and is old enough to be deleted: too late to tell whose it was
            raise StoreUnavailable("The store is busy.")
        found = self._remember(self._open(base.number + 1, existing, base.read_at_s))
        return found.token == token

    def _is_committed(self, number: int, token: str) -> bool:
        """Whether a version that was created late is part of the log; deletes it where it is not: rule 4.

        Raises:
            StoreUnavailable: it is too old to tell.
        """
        newest = self._find()
        if newest.number == number:
            return newest.token == token
        after = self._entries.get(self._key(number + 1))
        if after is not None and _fields_of(after)[0].get("prev") == token:
            return True
        own = self._entries.get(self._key(number))
        if own is not None and _fields_of(own)[0]["token"] == token:
            self._entries.delete(self._key(number))
        if after is None:
            raise StoreUnavailable("The store is busy: a change was not written in time.")
        return False


def _pause(losses: int, since_s: float) -> None:
    """Let other processes commit, after the second try that found the commit of one, and after each later one.

    Args:
        since_s: begin of the try.
    """
    if losses > 1:
        took_s = time.monotonic() - since_s
        time.sleep(random.uniform(0.0, min(MOST_PAUSE_S, took_s * 2 ** min(losses + 2, 10))))


def _fields_of(entry: bytes) -> tuple[dict[str, Any], bytes]:
    """What an entry says about its version, and the encoded value."""
    head, _, body = zlib.decompress(entry).partition(b"\n")
    return json.loads(head), body
