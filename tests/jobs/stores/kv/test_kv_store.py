"""The key-value store alone: several processes on one map, crashes between any two operations, maintenance."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import pytest

from pipeline.errors import LimitReached, StoreUnavailable
from pipeline.jobs.api_keys import make_key
from pipeline.jobs.model import (
    ApiKey,
    AttemptResult,
    Job,
    JobFilter,
    JobResult,
    JobState,
    KeyLimits,
    LedgerFilter,
    OutboxTask,
    Progress,
)
from pipeline.jobs.stores.kv import documents
from pipeline.jobs.stores.kv.map import MAX_VALUE_BYTES
from pipeline.jobs.stores.kv.store import KvStore
from tests.fakes.key_values import MemoryKeyValues
from tests.jobs.store_fixtures import Clock, new_job

SUCCESS = JobResult(JobState.SUCCESS, stage_seconds={"generate": 1.5}, gpu_seconds=0.5)
HOOK = "http://127.0.0.1/hook"


class FaultyKeyValues:
    """A map whose operation number `fails_at` (from 1, None for none) raises.

    Args:
        is_done: the operation takes effect before it raises.
        is_fatal: all later operations raise without effect: the process is dead.
    """

    def __init__(self, entries: MemoryKeyValues) -> None:
        self._entries = entries
        self.operations = 0
        self.fails_at: int | None = None
        self.is_done = self.is_fatal = False

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def operate(*arguments: Any) -> Any:
            self.operations += 1
            is_first = self.operations == self.fails_at
            is_later = self.is_fatal and self.fails_at is not None and self.operations > self.fails_at
            if not (is_first or is_later) or (is_first and self.is_done):
                result = getattr(self._entries, name)(*arguments)
            if is_first or is_later:
                raise StoreUnavailable("The store is busy or unavailable.")
            return result

        return operate


def add_key(store: KvStore, **limits: int) -> ApiKey:
    return store.add_key(make_key("tests", limits=KeyLimits(**limits))[1])


class Scenario:
    """Every writing method once, in the order in which two jobs need them."""

    def __init__(self, entries: MemoryKeyValues) -> None:
        self.entries = entries
        self.map = FaultyKeyValues(entries)
        self.store = KvStore(self.map)  # pyright: ignore[reportArgumentType]  # implements every method by name
        self.key = add_key(self.store)
        self.jobs: dict[str, Job] = {}
        self.task: OutboxTask | None = None

    def submit(self, name: str, **fields: object) -> None:
        new = new_job(self.key, webhook_url=HOOK, request_sha256="0" * 64, **fields)
        self.jobs[name] = self.store.submit(new).job

    def claim(self, name: str) -> None:
        claimed = self.store.claim("w", lease_s=30, job_id=self.jobs[name].id)
        assert claimed is not None
        self.jobs[name] = claimed

    def claim_webhook(self) -> None:
        self.task = self.store.claim_task("webhook", claim_s=60)
        assert self.task is not None

    def settle(self) -> None:
        assert self.task is not None
        self.store.settle_task(self.task, AttemptResult(status=500, error="no", seconds=1, retry_in_s=None))

    def steps(self) -> list[Callable[[], object]]:
        jobs, store, key = self.jobs, self.store, self.key
        return [
            lambda: self.submit("a", idempotency_key="once"),
            lambda: self.submit("b"),
            lambda: self.claim("a"),
            lambda: store.renew(jobs["a"].lease, lease_s=30),
            lambda: store.report(jobs["a"].lease, Progress("generate", 40)),
            lambda: store.complete(jobs["a"].lease, SUCCESS),
            self.claim_webhook,
            self.settle,
            lambda: store.redeliver(jobs["a"].id, api_key_id=key.id),
            lambda: store.replace_result(jobs["a"].id, SUCCESS),
            lambda: self.claim("b"),
            lambda: store.requeue(jobs["b"].lease),
            lambda: store.request_cancel(jobs["b"].id, api_key_id=key.id),
            lambda: store.save_s3(key.id, b"encrypted"),
            lambda: store.limit_key(key.id, KeyLimits(queued=50)),
            lambda: store.delete(jobs["a"].id, api_key_id=key.id),
            store.request_restart,
        ]


STEPS = 17


def contents(store: KvStore, key: ApiKey) -> object:
    """Everything that can be read from the store."""
    jobs = store.list_jobs(JobFilter(None), limit=1000)
    tasks = [store.tasks_of(job.id) for job in jobs]
    attempts = [store.attempts_of(task.id) for some in tasks for task in some]
    rest = store.key_use(key.id), store.usage_rows(LedgerFilter(None)), store.s3_of(key.id), store.restarts_requested()
    return jobs, tasks, attempts, store.list_keys(), rest


def check_sums(store: KvStore, key: ApiKey) -> None:
    """Counters, ledger and outbox agree with the jobs; every open job has its request."""
    jobs = store.list_jobs(JobFilter(key.id), limit=1000)
    states = Counter(job.state for job in jobs)
    use = store.key_use(key.id)
    assert (use.queued, use.running) == (states[JobState.QUEUED], states[JobState.RUNNING])
    rows = [row.job_id for row in store.usage_rows(LedgerFilter(key.id))]
    assert len(rows) == len(set(rows)) == sum(store.metrics().ended.values())
    assert {job.id for job in jobs if job.state.is_final} <= set(rows)
    for job in jobs:
        assert len(store.tasks_of(job.id)) == (1 if job.state.is_final else 0)
        if not job.state.is_final:
            assert store.request_of(job.id) == b'{"image": "x"}'


@pytest.mark.parametrize("is_done", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("number", range(STEPS))
def test_a_method_whose_map_fails_once_completes_or_changes_nothing(number: int, is_done: bool) -> None:
    for fails_at in itertools.count(1):
        scenario = Scenario(MemoryKeyValues())
        steps = scenario.steps()
        assert len(steps) == STEPS
        for step in steps[:number]:
            step()
        watcher = KvStore(scenario.entries)
        before = contents(watcher, scenario.key)
        scenario.map.fails_at, scenario.map.is_done = scenario.map.operations + fails_at, is_done

        try:
            steps[number]()
        except StoreUnavailable:
            after = contents(watcher, scenario.key)
            # A heartbeat is a plain write: it may have taken effect, and is repeated.
            assert after == before or number in (3, 4)
            steps[number]()

        is_reached = scenario.map.operations >= scenario.map.fails_at
        scenario.map.fails_at = None
        check_sums(watcher, scenario.key)
        for step in steps[number + 1 :]:
            step()
        if not is_reached:
            return


@pytest.mark.parametrize("is_done", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("number", range(STEPS))
def test_other_processes_go_on_when_one_dies_between_any_two_operations(number: int, is_done: bool) -> None:
    for fails_at in itertools.count(1):
        scenario = Scenario(MemoryKeyValues())
        steps = scenario.steps()
        for step in steps[:number]:
            step()
        scenario.map.fails_at = scenario.map.operations + fails_at
        scenario.map.is_done, scenario.map.is_fatal = is_done, True

        with suppress(StoreUnavailable):
            steps[number]()
        if scenario.map.operations < scenario.map.fails_at:
            return

        other = KvStore(scenario.entries)
        check_sums(other, scenario.key)
        other.submit(new_job(scenario.key, webhook_url=HOOK))
        other.expire_leases("w")
        while (job := other.claim("w2", lease_s=30)) is not None:
            assert other.request_of(job.id) == b'{"image": "x"}'
            other.complete(job.lease, SUCCESS)
        check_sums(other, scenario.key)
        assert other.key_use(scenario.key.id).queued == other.key_use(scenario.key.id).running == 0
        # Maintenance sweeps what the dead process left of jobs that have ended.
        other._wall_clock = lambda: 1e10
        other.run_maintenance()
        assert [name for name in scenario.entries.names() if name.startswith(("request/", "beat/"))] == []


def test_several_processes_share_limits_and_the_queue() -> None:
    entries = MemoryKeyValues()
    stores = [KvStore(entries) for _ in range(4)]
    key = add_key(stores[0], queued=30, running=3)

    def submit(number: int) -> bool:
        try:
            return stores[number % 4].submit(new_job(key)).is_new
        except LimitReached:
            return False

    with ThreadPoolExecutor(8) as pool:
        admitted = sum(pool.map(submit, range(48)))
        claimed = list(pool.map(lambda number: stores[number % 4].claim(f"w{number}", lease_s=30), range(8)))
    leases = [job.lease for job in claimed if job is not None]
    assert (admitted, len({lease.job_id for lease in leases})) == (30, 3)

    def drain(number: int) -> list[int]:
        done = []
        while (job := stores[number].claim(f"d{number}", lease_s=30)) is not None:
            stores[number].complete(job.lease, SUCCESS)
            done.append(job.id)
        return done

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda lease: stores[0].complete(lease, SUCCESS), leases))
        done = [job_id for some in pool.map(drain, range(4)) for job_id in some]

    while (
        job := stores[0].claim("last", lease_s=30)
    ) is not None:  # the workers that found the limit reached have stopped
        stores[0].complete(job.lease, SUCCESS)
        done.append(job.id)
    assert len(done) == len(set(done)) == 27
    assert stores[3].key_use(key.id).queued == stores[2].key_use(key.id).running == 0
    assert len(stores[1].usage_rows(LedgerFilter(key.id))) == 30


class CountedKeyValues(MemoryKeyValues):
    """A map that counts how often it is read."""

    gets = 0

    def get(self, key: str) -> bytes | None:
        self.gets += 1
        return super().get(key)


def test_waiting_for_many_jobs_asks_the_map_once(clock: Clock) -> None:
    entries = CountedKeyValues()
    store = KvStore(entries, clock=clock)
    key = add_key(store)
    jobs = [store.submit(new_job(key)).job for _ in range(100)]
    leases = [job.lease for number in range(100) if (job := store.claim(f"w{number}", lease_s=30)) is not None]
    for lease in leases:
        store.renew(lease, lease_s=30, progress=Progress("generate", 7))
    store.ended([job.id for job in jobs])
    entries.gets = 0

    assert store.ended([job.id for job in jobs]) == []

    assert len(leases) == 100 and entries.gets == 1


def test_one_idempotency_key_in_several_processes_creates_one_job() -> None:
    entries = MemoryKeyValues()
    stores = [KvStore(entries) for _ in range(8)]
    new = new_job(add_key(stores[0]), idempotency_key="once")

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda store: store.submit(new), stores))

    assert len({answer.job.id for answer in answers}) == sum(answer.is_new for answer in answers) == 1
    assert len([name for name in entries.names() if name.startswith("request/")]) == 1


def test_a_large_request_is_stored_in_chunks(clock: Clock) -> None:
    entries = MemoryKeyValues()
    store = KvStore(entries, clock=clock)
    request = bytes(range(256)) * 40_000

    job = store.submit(new_job(add_key(store), request=request)).job

    assert store.request_of(job.id) == request
    assert max(len(entries.get(name) or b"") for name in entries.names()) <= MAX_VALUE_BYTES
    store.request_cancel(job.id, api_key_id=None)
    assert [name for name in entries.names() if name.startswith("request/")] == []


def test_maintenance_keeps_every_record_and_deletes_the_rest(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documents, "PAGE_ROWS", 4)
    entries = MemoryKeyValues()
    store = KvStore(entries, clock=clock, wall_clock=clock)
    key = add_key(store)
    for _ in range(40):
        store.submit(new_job(key, webhook_url=HOOK))
        job = store.claim("w", lease_s=30)
        assert job is not None
        store.complete(job.lease, SUCCESS)
    clock.advance(2 * 86400)
    before = contents(KvStore(entries, clock=clock), key)

    for _ in range(3):
        store.run_maintenance()
        clock.advance(1000)

    assert contents(KvStore(entries, clock=clock), key) == before
    kinds = Counter(name.split("/")[0] for name in entries.names())
    assert kinds["head"] <= 8  # the newest versions and the number of the last commit
    assert (kinds["job"], kinds["page"], kinds["usage"]) == (40, 1, 1)
