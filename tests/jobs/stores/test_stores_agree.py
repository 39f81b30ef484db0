"""SQL and key-value store against the store in memory, operation by operation through long random histories."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import ImageTo3DError
from pipeline.jobs.api_keys import key_record
from pipeline.jobs.model import (
    AttemptResult,
    Job,
    JobFilter,
    JobResult,
    JobState,
    KeyLimits,
    Lease,
    LedgerFilter,
    NewJob,
    OutboxTask,
    Progress,
    Submitted,
    UsageRow,
)
from pipeline.jobs.store import Store
from pipeline.jobs.stores.kv.store import KvStore
from pipeline.jobs.stores.sql.store import SqlStore
from pipeline.jobs.transitions import PASSIVE_LEASE_S, Retention, passive_holder
from tests.fakes.key_values import MemoryKeyValues
from tests.jobs.store_fixtures import Clock
from tests.reference.memory_store import MemoryStore

OPERATIONS = 400
RESULTS = (
    JobResult(JobState.SUCCESS, stage_seconds={"intake": 0.25, "generate": 1.5}, gpu_seconds=0.5, engine="preview"),
    JobResult(JobState.FAILED, message="no", error_code="export_failed", stage_seconds={"intake": 0.25}),
    JobResult(JobState.CANCELLED),
)
LEASE_S = 30.0


class Replica:
    """One of two stores that run the same history; jobs are identified by `seq`, since ids are random."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.ids: dict[int, int] = {}
        self.leases: dict[int, Lease] = {}
        self.tasks: dict[tuple[int, str], OutboxTask] = {}

    def do(self, operation: Callable[[Replica], Any]) -> Any:
        """The outcome of an operation without random ids: its result, or the type and message of its error."""
        try:
            return self.plain(operation(self))
        except ImageTo3DError as error:
            message = str(error)
            for seq, job_id in self.ids.items():
                message = message.replace(str(job_id), f"#{seq}")
            return type(error), message.split(" msg_")[0]

    def plain(self, value: Any) -> Any:
        if isinstance(value, Job):
            self.ids[value.seq] = value.id
            if value.worker_id is not None:
                self.leases[value.seq] = value.lease
            return replace(value, id=value.seq)
        if isinstance(value, Submitted):
            return replace(value, job=self.plain(value.job))
        if isinstance(value, OutboxTask):
            seq = self.seq(value.job_id)
            self.tasks[seq, value.kind] = value
            return replace(value, id="", job_id=seq)
        if isinstance(value, UsageRow):
            return replace(value, job_id=self.seq(value.job_id))
        if isinstance(value, list):
            return [self.plain(one) for one in value]
        return value

    def seq(self, job_id: int) -> int:
        return next(seq for seq, known in self.ids.items() if known == job_id)

    def contents(self) -> Any:
        """Everything that can be read from the store."""
        jobs = self.store.list_jobs(JobFilter(None), limit=10_000)
        plain = [self.plain(job) for job in jobs]
        tasks = sorted((self.plain(self.store.tasks_of(job.id)) for job in jobs), key=repr)
        uses = [self.store.key_use(key.id) for key in self.store.list_keys()]
        positions = [self.store.queue_position(job) for job in jobs]
        rows = sorted((self.plain(row) for row in self.store.usage_rows(LedgerFilter(None))), key=repr)
        expired = [self.plain(job) for job in self.store.expired()]
        return (
            plain,
            tasks,
            uses,
            positions,
            rows,
            expired,
            self.store.usage_days(LedgerFilter(None)),
            self.store.timings(),
        )


@pytest.fixture(params=["sqlite", "key-value"])
def replicas(request: pytest.FixtureRequest, tmp_path: Path, clock: Clock) -> Iterator[tuple[Replica, Replica]]:
    retention = Retention(record_lifetime_s=300.0, webhook_window_s=600.0)
    memory = MemoryStore(clock=clock, retention=retention)
    other: Store
    if request.param == "sqlite":
        other = SqlStore(f"sqlite:///{tmp_path / 'jobs.sqlite'}", clock=clock, retention=retention)
    else:
        # Documents move out of the head, and old versions are deleted, while the history runs.
        other = KvStore(MemoryKeyValues(), clock=clock, wall_clock=clock.ever_later, retention=retention)
    limits = (KeyLimits(), KeyLimits(queued=4, running=2), KeyLimits(per_minute=3, per_month=25))
    for number, limit in enumerate(limits):
        key = replace(key_record(f"key {number}", name=f"key {number}", limits=limit, clock=clock), id=str(number))
        memory.add_key(key)
        other.add_key(key)
    yield Replica(memory), Replica(other)
    other.close()


def draw_operation(rng: random.Random, clock: Clock, seqs: list[int]) -> Callable[[Replica], Any]:
    """A random operation, to run on both replicas."""
    seq = rng.choice(seqs[-15:]) if seqs else 0  # mostly jobs that are still open
    api_key_id, worker, holder = str(rng.randrange(3)), f"w{rng.randrange(3)}", passive_holder(str(seq))
    result, kind = rng.choice(RESULTS), rng.choice(("webhook", "upload"))
    error, pause_s = rng.choice((("", None), ("no answer", 60.0), ("no answer", 1000.0), ("no answer", None)))
    result = replace(result, upload_warning=rng.choice(("", "The bucket is unavailable.")))
    new = NewJob(
        api_key_id=api_key_id,
        file_prefix=f"prefix-{rng.random()}",
        request=b"{}",
        request_sha256=f"{rng.randrange(2):064d}",
        track_id=rng.choice((None, 7, "7")),
        webhook_url=rng.choice((None, "http://127.0.0.1/h")),
        idempotency_key=rng.choice((None, None, "a", "b")),
        engine=rng.choice(("", "preview", "trellis")),
    )

    def settle(replica: Replica) -> Any:
        task = replica.tasks.get((seq, kind))
        return task and replica.store.settle_task(
            task, AttemptResult(status=None, error=error, seconds=1.0, retry_in_s=pause_s)
        )

    def under_lease(act: Callable[[Store, Lease], Any]) -> Callable[[Replica], Any]:
        return lambda replica: replica.leases.get(seq) and act(replica.store, replica.leases[seq])

    operations: list[tuple[int, Callable[[Replica], Any]]] = [
        (20, lambda replica: replica.store.submit(new)),
        (20, lambda replica: replica.store.claim(worker, lease_s=LEASE_S)),
        (6, lambda replica: replica.store.claim(worker, lease_s=LEASE_S, engines=("preview",))),
        (6, lambda replica: replica.store.claim(worker, lease_s=LEASE_S, job_id=replica.ids.get(seq))),
        (4, under_lease(lambda store, lease: store.transfer(lease, worker_id=worker, lease_s=LEASE_S))),
        (6, under_lease(lambda store, lease: store.transfer(lease, worker_id=holder, lease_s=PASSIVE_LEASE_S))),
        (16, under_lease(lambda store, lease: store.complete(lease, result))),
        (8, under_lease(lambda store, lease: store.renew(lease, lease_s=LEASE_S))),
        (4, under_lease(lambda store, lease: store.report(lease, Progress("generate", 40)))),
        (4, under_lease(lambda store, lease: store.requeue(lease))),
        (4, lambda replica: replica.store.request_cancel(replica.ids.get(seq, 0), api_key_id=api_key_id)),
        (1, lambda replica: replica.store.cancel_queued(api_key_id=api_key_id)),
        (2, lambda replica: replica.store.delete(replica.ids.get(seq, 0), api_key_id=None)),
        (2, lambda replica: replica.store.expire_leases(worker)),
        (6, lambda replica: replica.store.claim_task(kind, claim_s=60.0)),
        (6, settle),
        (2, lambda replica: replica.store.redeliver(replica.ids.get(seq, 0), api_key_id=api_key_id)),
    ]
    return rng.choices([operation for _, operation in operations], [weight for weight, _ in operations])[0]


@pytest.mark.parametrize("seed", [*range(6), 25, 32])  # the last two shorten a lease when the clock steps back
def test_both_stores_give_the_same_results_throughout_a_history(
    replicas: tuple[Replica, Replica], clock: Clock, seed: int
) -> None:
    rng = random.Random(seed)
    memory, other = replicas
    for number in range(OPERATIONS):
        operation = draw_operation(rng, clock, list(memory.ids))

        assert other.do(operation) == memory.do(operation), f"operation {number}"

        clock.advance(rng.choice((0.0, 0.5, 7.0, 31.0)) if rng.random() < 0.97 else -100.0)
        if number % 10 == 0:
            assert other.contents() == memory.contents(), f"operation {number}"
    assert other.contents() == memory.contents()
    assert other.store.metrics() == memory.store.metrics()
    assert len(memory.store.usage_rows(LedgerFilter(None))) > 20


def test_every_history_obeys_the_invariants(clock: Clock) -> None:
    """The invariants, checked on the simplest store: a job ends once, with one usage row."""
    store = MemoryStore(clock=clock, retention=Retention(record_lifetime_s=1e9))
    store.add_key(replace(key_record("key", name="key", limits=KeyLimits(running=3), clock=clock), id="0"))
    rng, replica = random.Random(1), Replica(store)
    ends: dict[int, Job] = {}
    for _ in range(2000):
        replica.do(draw_operation(rng, clock, list(replica.ids)))
        clock.advance(rng.choice((0.0, 0.5, 7.0, 31.0)))
        for job in store.list_jobs(JobFilter(None), limit=10_000):
            if job.seq in ends:
                assert job == ends[job.seq]
            elif job.state.is_final:
                ends[job.seq] = job
        assert store.key_use("0").running <= 3

    rows = [row.job_id for row in store.usage_rows(LedgerFilter(None))]
    assert len(rows) == len(set(rows)) == len(ends) > 50
