"""The commit log under adverse schedules: processes that stall for minutes, crash, and interleave at any operation."""

from __future__ import annotations

import json
import random
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

import pytest

from pipeline.errors import StoreUnavailable
from pipeline.jobs.stores.kv import commit_log
from pipeline.jobs.stores.kv.commit_log import CommitLog, Draft
from tests.fakes.key_values import MemoryKeyValues


class Died(BaseException):
    """The end of a simulated process."""


class Schedule:
    """Time and a map for several threads, of which one at a time does one operation, drawn at random.

    Any operation may take minutes, take effect minutes after its caller was told that it failed, be done again
    minutes after it was done, or be lost before or after its effect. Replaces the module `time` in the commit log.

    Args:
        deaths: how often a process dies instead of doing an operation.
        faults: how often an operation is held back, left for later, done again or lost; each as often.
    """

    def __init__(self, rng: random.Random, *, deaths: float, faults: float = 0.02) -> None:
        self._rng = rng
        self._deaths = deaths
        self._faults = faults
        self._entries = MemoryKeyValues()
        self._changed = threading.Condition()
        self._waiting: dict[int, float] = {}
        self._later: list[tuple[float, Callable[[], object]]] = []
        self._granted: tuple[int, bool] | None = None
        self._alive = 0
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        """Returns at once: operations advance the time."""

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def operate(*arguments: Any) -> Any:
            self._wait()
            do = partial(getattr(self._entries, name), *arguments)
            fault = self._rng.choice(("later", "again", "lost", "unanswered")) if self._draw(3 * self._faults) else ""
            if fault in ("later", "again"):
                self._later.append((self.now + self._rng.uniform(60.0, 400.0), do))
            result = None if fault in ("later", "lost") else do()
            if fault in ("later", "lost", "unanswered"):
                raise StoreUnavailable("no answer")
            return result

        return operate

    def _draw(self, share: float) -> bool:
        return self._rng.random() < share

    def _wait(self) -> None:
        me = threading.get_ident()
        with self._changed:
            self._waiting[me] = self.now + (self._rng.uniform(60.0, 400.0) if self._draw(self._faults) else 0.0)
            self._changed.notify_all()
            assert self._changed.wait_for(lambda: self._granted is not None and self._granted[0] == me, timeout=30)
            assert self._granted is not None
            is_dying = self._granted[1]
            self._granted = None
        if is_dying:
            raise Died

    def run(self, processes: list[Callable[[], None]]) -> None:
        def live(process: Callable[[], None]) -> None:
            try:
                process()
            except Died:
                pass
            finally:
                with self._changed:
                    self._alive -= 1
                    self._changed.notify_all()

        self._alive = len(processes)
        threads = [threading.Thread(target=live, args=(process,), daemon=True) for process in processes]
        for thread in threads:
            thread.start()
        with self._changed:
            while True:
                ready = lambda: self._granted is None and len(self._waiting) >= self._alive  # noqa: E731
                assert self._changed.wait_for(ready, timeout=30)
                if self._alive == 0:
                    break
                self._do_what_is_due()
                order = sorted(self._waiting, key=lambda one: (self._waiting[one], one))
                free = [one for one in order if self._waiting[one] <= self.now] or order[:1]
                me = self._rng.choice(free)
                self.now = max(self.now, self._waiting.pop(me))
                self._granted = (me, self._draw(self._deaths))
                self.now += self._rng.choice((0.0, 0.0, 0.02, 0.02, 1.0, 6.0, 40.0 if self._draw(0.3) else 0.1))
                self._changed.notify_all()
        for thread in threads:
            thread.join(30)

    def _do_what_is_due(self) -> None:
        due = [do for due_at, do in self._later if due_at <= self.now]
        self._later = [(due_at, do) for due_at, do in self._later if due_at > self.now]
        for do in due:
            do()


def log_of(clock: Any, entries: Any = None) -> CommitLog[list[str]]:
    """A process's log, by default over the schedule's map."""
    return CommitLog(
        clock if entries is None else entries,
        "x",
        encode=lambda value: json.dumps(value).encode(),
        decode=json.loads,
        empty=b"[]",
        wall_clock=clock.time,
    )


@pytest.mark.parametrize("seed", range(60))
def test_no_change_is_lost_repeated_or_forked_under_any_schedule(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = random.Random(seed)
    schedule = Schedule(rng, deaths=0.005)
    monkeypatch.setattr(commit_log, "time", schedule)
    monkeypatch.setattr(commit_log, "VACUUM_EVERY", 2)
    monkeypatch.setattr(commit_log, "COMMIT_TIMEOUT_S", 600.0)  # writers go on after minutes, which is the harder case
    seen: list[list[str]] = []
    acknowledged: list[str] = []

    def process(name: int) -> None:
        log = log_of(schedule)
        for number in range(12):
            mark = f"{name}.{number}"
            known_before = list(acknowledged)

            def append(draft: Draft[list[str]], mark: str = mark) -> list[str]:
                draft.value.append(mark)
                return list(draft.value)

            try:
                seen.append(log.commit(append))
                acknowledged.append(mark)
                known_before = list(acknowledged)
                value = list(log.read().value)
                assert set(known_before) <= set(value)
                seen.append(value)
            except StoreUnavailable:
                continue
            if number == 6:
                with suppress(StoreUnavailable):
                    log.sweep()
            if number % 5 == 4:
                log = log_of(schedule)  # a fresh process, which knows no version

    errors: list[BaseException] = []

    def guarded(name: int) -> Callable[[], None]:
        def run() -> None:
            try:
                process(name)
            except AssertionError as error:
                errors.append(error)

        return run

    schedule.run([guarded(name) for name in range(4)])

    assert errors == []
    final: list[str] = []
    schedule._deaths = schedule._faults = 0.0
    schedule.run([lambda: final.extend(read_value(log_of(schedule)))])
    assert len(final) == len(set(final))
    assert set(acknowledged) <= set(final)
    for value in seen:
        assert final[: len(value)] == value
    assert len(acknowledged) > 3


def read_value(log: CommitLog[list[str]]) -> list[str]:
    """The value of the log, read until the map answers."""
    while True:
        try:
            return log.read().value
        except StoreUnavailable:
            continue


class HeldMap(MemoryKeyValues):
    """A map whose next create takes effect after `meanwhile` has run."""

    meanwhile: Callable[[], None] | None = None

    def create(self, key: str, value: bytes) -> bool:
        if self.meanwhile is not None:
            meanwhile, self.meanwhile = self.meanwhile, None
            meanwhile()
        return super().create(key, value)


def append(log: CommitLog[list[str]], mark: str) -> None:
    log.commit(lambda draft: draft.value.append(mark))


@pytest.mark.parametrize("is_killed", [False, True], ids=["its writer goes on", "its writer is killed"])
def test_a_create_that_takes_effect_minutes_late_does_not_fork_the_log(
    is_killed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    schedule = Schedule(random.Random(0), deaths=0.0)
    monkeypatch.setattr(commit_log, "time", schedule)
    entries = HeldMap()
    slow, other = (log_of(schedule, entries) for _ in range(2))
    append(slow, "first")
    append(slow, "second")
    stale = entries.get("x/newest")
    assert stale is not None

    def meanwhile() -> None:
        for number in range(70):
            append(other, f"before {number}")
        schedule.now += 130.0
        append(other, "after")
        other.vacuum()
        if is_killed:
            monkeypatch.setattr(slow, "_is_committed", die)

    entries.meanwhile = meanwhile
    with pytest.raises(Died if is_killed else StoreUnavailable):
        append(slow, "late")

    entries.put("x", b"3")  # as late writers of the number and of the copy would leave them
    entries.put("x/newest", stale)
    assert ("x/3" in entries.names()) is is_killed
    for log in (log_of(schedule, entries), other):
        assert "late" not in log.read().value
        assert log.read().value[-1] == "after"
    other.sweep()
    assert "x/3" not in entries.names()
    append(slow, "again")
    assert log_of(schedule, entries).read().value[-2:] == ["after", "again"]


def die(*arguments: object) -> bool:
    raise Died


def test_a_commit_whose_answer_takes_minutes_is_recognized(monkeypatch: pytest.MonkeyPatch) -> None:
    schedule = Schedule(random.Random(0), deaths=0.0)
    monkeypatch.setattr(commit_log, "time", schedule)

    class Unanswered(MemoryKeyValues):
        is_slow = False

        def create(self, key: str, value: bytes) -> bool:
            is_new = super().create(key, value)
            if self.is_slow:
                self.is_slow = False
                append(other, "meanwhile")
                schedule.now += 100.0
            return is_new

    entries = Unanswered()
    slow, other = (log_of(schedule, entries) for _ in range(2))
    append(slow, "first")

    entries.is_slow = True
    append(slow, "slow")

    assert log_of(schedule, entries).read().value == ["first", "slow", "meanwhile"]


@pytest.mark.parametrize("repeated", [1, 2])
def test_a_copy_that_is_set_back_and_creates_that_are_repeated_do_not_fork_the_log(
    repeated: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    schedule = Schedule(random.Random(0), deaths=0.0)
    monkeypatch.setattr(commit_log, "time", schedule)
    entries = MemoryKeyValues()
    log = log_of(schedule, entries)
    append(log, "first")
    append(log, "second")
    first, second = entries.get("x/1"), entries.get("x/newest")
    assert first is not None and second is not None
    for number in range(60):
        schedule.now += 5.0
        append(log, str(number))
    log.vacuum()
    assert "x/1" not in entries.names() and "x/2" not in entries.names()

    for number, entry in list(enumerate([first, second], 1))[:repeated]:
        entries.create(f"x/{number}", entry)
    entries.put("x/newest", second)

    assert log_of(schedule, entries).read().value[-1] == "59"
    assert log.read().value[-1] == "59"


class Counted(MemoryKeyValues):
    """A map that notes what it is asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[str] = []

    def get(self, key: str) -> bytes | None:
        self.asked.append(key)
        return super().get(key)

    def put(self, key: str, value: bytes) -> None:
        self.asked.append(f"put {key}")
        super().put(key, value)

    def create(self, key: str, value: bytes) -> bool:
        self.asked.append(f"create {key}")
        return super().create(key, value)

    def names(self) -> list[str]:
        self.asked.append("scan")
        return super().names()


def test_a_reader_without_a_recent_version_asks_four_entries() -> None:
    entries = Counted()
    writer, reader = (log_of(time, entries) for _ in range(2))
    append(writer, "first")
    append(writer, "second")
    entries.asked.clear()

    reader.read()

    assert entries.asked == ["x/newest", "x/3", "x/2", "x/1"]


def test_a_map_in_which_version_0_1_0_committed_last_is_read_by_its_number() -> None:
    entries = Counted()
    writer, reader = (log_of(time, entries) for _ in range(2))
    append(writer, "first")
    append(writer, "second")
    entries.delete("x/newest")
    entries.put("x", b"2")
    entries.asked.clear()

    assert reader.read().value == ["first", "second"]
    assert entries.asked == ["x/newest", "x", "x/3", "x/2", "x/1"]


def test_a_process_that_is_far_behind_starts_from_the_copy_and_retries_on_what_it_found() -> None:
    entries = Counted()
    others, late = (log_of(time, entries) for _ in range(2))
    append(others, "0")
    late.read()
    late._later_commits = lambda known: 9.0  # pyright: ignore[reportAttributeAccessIssue]
    for number in range(1, 5):
        append(others, str(number))
    behind = entries.get("x/newest")
    append(others, "5")
    assert behind is not None
    entries.put("x/newest", behind)
    entries.asked.clear()

    append(late, "late")

    assert entries.asked == ["x/newest", "create x/6", "x/newest", "x/6", "create x/7", "put x/newest"]
    assert others.read().value == [*map(str, range(6)), "late"]
