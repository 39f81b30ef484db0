"""The commit log under adverse schedules: processes that stall for minutes, crash, and interleave at any operation."""

from __future__ import annotations

import json
import random
import threading
from collections.abc import Callable
from typing import Any

import pytest

from pipeline.errors import StoreUnavailable
from pipeline.jobs.stores.kv import commit_log
from pipeline.jobs.stores.kv.commit_log import CommitLog, Draft
from tests.fakes.key_values import MemoryKeyValues

OPERATION_S = 60.0
"""The log's assumption: an operation takes effect within this time after it was sent, or never."""


class Died(BaseException):
    """The end of a simulated process."""


class Schedule:
    """Time and a map for several threads, of which one at a time does one operation, drawn at random.

    Replaces the module `time` in the commit log.
    """

    def __init__(self, rng: random.Random, *, deaths: float) -> None:
        self._rng = rng
        self._deaths = deaths
        self._entries = MemoryKeyValues()
        self._changed = threading.Condition()
        self._waiting: dict[int, float] = {}
        self._granted: tuple[int, str] | None = None
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
            verdict = self._wait()
            if verdict == "die":
                raise Died
            is_lost = verdict == "late" or self._rng.random() < 0.02
            result = None if verdict == "late" else getattr(self._entries, name)(*arguments)
            if is_lost:
                raise StoreUnavailable("no answer")
            return result

        return operate

    def _wait(self) -> str:
        me = threading.get_ident()
        with self._changed:
            self._waiting[me] = self.now
            self._changed.notify_all()
            assert self._changed.wait_for(lambda: self._granted is not None and self._granted[0] == me, timeout=30)
            assert self._granted is not None
            verdict = self._granted[1]
            self._granted = None
            return verdict

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
                me = self._rng.choice(sorted(self._waiting, key=lambda one: (self._waiting[one], one)))
                sent_at = self._waiting.pop(me)
                verdict = "late" if self.now - sent_at > OPERATION_S else "do"
                self._granted = (me, "die" if self._rng.random() < self._deaths else verdict)
                self.now += self._rng.choice(
                    (0.0, 0.0, 0.02, 0.02, 1.0, 6.0, 40.0 if self._rng.random() < 0.3 else 0.1)
                )
                self._changed.notify_all()
        for thread in threads:
            thread.join(30)


def log_of(schedule: Schedule) -> CommitLog[list[str]]:
    return CommitLog(
        schedule,  # pyright: ignore[reportArgumentType]  # implements every method by name
        "x",
        encode=lambda value: json.dumps(value).encode(),
        decode=json.loads,
        empty=b"[]",
        wall_clock=schedule.time,
    )


@pytest.mark.parametrize("seed", range(25))
def test_no_change_is_lost_repeated_or_forked_under_any_schedule(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = random.Random(seed)
    schedule = Schedule(rng, deaths=0.005)
    monkeypatch.setattr(commit_log, "time", schedule)
    monkeypatch.setattr(commit_log, "VACUUM_EVERY", 2)
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
    schedule._deaths = 0.0
    schedule.run([lambda: final.extend(read_value(log_of(schedule)))])
    assert len(final) == len(set(final))
    assert set(acknowledged) <= set(final)
    for value in seen:
        assert final[: len(value)] == value
    assert len(acknowledged) > 5


def read_value(log: CommitLog[list[str]]) -> list[str]:
    """The value of the log, read until the map answers."""
    while True:
        try:
            return log.read().value
        except StoreUnavailable:
            continue
