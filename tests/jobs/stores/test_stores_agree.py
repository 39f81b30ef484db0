"""The other stores against their slow and obvious twin in memory, transaction by transaction through long random histories."""

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
    Job,
    JobResult,
    JobState,
    KeyLimits,
    Lease,
    NewJob,
    OutboxTask,
    Progress,
    Submitted,
    UsageRow,
)
from pipeline.jobs.store import Store
from pipeline.jobs.stores.kv.store import KvStore
from pipeline.jobs.stores.sql.store import SqlStore
from pipeline.jobs.transitions import Retention
from tests.fakes.key_values import MemoryKeyValues
from tests.jobs.store_fixtures import Clock
from tests.reference.memory_store import MemoryStore

STEPS = 400
RESULTS = (
    JobResult(JobState.SUCCESS, stage_seconds={"intake": 0.25, "generate": 1.5}, gpu_seconds=0.5, engine="preview"),
    JobResult(JobState.FAILED, message="no", error_code="export_failed", stage_seconds={"intake": 0.25}),
    JobResult(JobState.CANCELLED),
)
LEASE_S = 30.0


class Twin:
    """One of two stores that live through the same history; jobs are named by their `seq`, since ids are drawn."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.ids: dict[int, int] = {}
        self.leases: dict[int, Lease] = {}
        self.tasks: dict[tuple[int, str], OutboxTask] = {}

    def do(self, transaction: Callable[[Twin], Any]) -> Any:
        """What came of a transaction, without what is drawn: its result, or its error's type and sentence."""
        try:
            return self.plain(transaction(self))
        except ImageTo3DError as error:
            sentence = str(error)
            for seq, job_id in self.ids.items():
                sentence = sentence.replace(str(job_id), f"#{seq}")
            return type(error), sentence.split(" msg_")[0]

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

    def picture(self) -> Any:
        """All that the store tells."""
        jobs = self.store.list_jobs(api_key_id=None, limit=10_000)
        plain = [self.plain(job) for job in jobs]
        tasks = sorted((self.plain(self.store.tasks_of(job.id)) for job in jobs), key=repr)
        uses = [self.store.key_use(key.id) for key in self.store.list_keys()]
        positions = [self.store.queue_position(job) for job in jobs]
        rows = sorted((self.plain(row) for row in self.store.usage_rows(api_key_id=None)), key=repr)
        expired = [self.plain(job) for job in self.store.expired()]
        return (
            plain,
            tasks,
            uses,
            positions,
            rows,
            expired,
            self.store.usage_days(api_key_id=None),
            self.store.timings(),
        )


@pytest.fixture(params=["sqlite", "key-value"])
def twins(request: pytest.FixtureRequest, tmp_path: Path, clock: Clock) -> Iterator[tuple[Twin, Twin]]:
    retention = Retention(record_lifetime_s=300.0, webhook_window_s=600.0)
    memory = MemoryStore(clock=clock, retention=retention)
    other: Store
    if request.param == "sqlite":
        other = SqlStore(f"sqlite:///{tmp_path / 'jobs.sqlite'}", clock=clock, retention=retention)
    else:
        # Documents move out of the head, and old versions go, while the history runs.
        other = KvStore(MemoryKeyValues(), clock=clock, wall_clock=clock.ever_later, retention=retention)
    limits = (KeyLimits(), KeyLimits(queued=4, running=2), KeyLimits(per_minute=3, per_month=25))
    for number, limit in enumerate(limits):
        key = replace(key_record(f"key {number}", name=f"key {number}", limits=limit, clock=clock), id=str(number))
        memory.add_key(key)
        other.add_key(key)
    yield Twin(memory), Twin(other)
    other.close()


def draw_step(rng: random.Random, clock: Clock, seqs: list[int]) -> Callable[[Twin], Any]:
    """A transaction that both twins take; some of the clock's go back."""
    seq = rng.choice(seqs[-15:]) if seqs else 0  # mostly those that are still open
    api_key_id, worker = str(rng.randrange(3)), f"w{rng.randrange(3)}"
    result, kind = rng.choice(RESULTS), rng.choice(("webhook", "upload"))
    error, pause_s = rng.choice((("", None), ("no answer", 60.0), ("no answer", 1000.0), ("no answer", None)))
    result = replace(result, upload_warning=rng.choice(("", "The bucket is away.")))
    new = NewJob(
        api_key_id=api_key_id,
        file_prefix=f"prefix-{rng.random()}",
        request=b"{}",
        request_sha256=f"{rng.randrange(2):064d}",
        track_id=rng.choice((None, 7, "7")),
        webhook_url=rng.choice((None, "http://127.0.0.1/h")),
        idempotency_key=rng.choice((None, None, "a", "b")),
    )

    def settle(twin: Twin) -> Any:
        task = twin.tasks.get((seq, kind))
        return task and twin.store.settle_task(task, status=None, error=error, seconds=1.0, retry_in_s=pause_s)

    def under_lease(act: Callable[[Store, Lease], Any]) -> Callable[[Twin], Any]:
        return lambda twin: twin.leases.get(seq) and act(twin.store, twin.leases[seq])

    steps: list[tuple[int, Callable[[Twin], Any]]] = [
        (20, lambda twin: twin.store.submit(new)),
        (20, lambda twin: twin.store.claim(worker, lease_s=LEASE_S)),
        (3, lambda twin: twin.store.claim(worker, lease_s=LEASE_S, job_id=twin.ids.get(seq))),
        (16, under_lease(lambda store, lease: store.complete(lease, result))),
        (8, under_lease(lambda store, lease: store.renew(lease, lease_s=LEASE_S))),
        (4, under_lease(lambda store, lease: store.report(lease, Progress("generate", 40)))),
        (4, under_lease(lambda store, lease: store.requeue(lease))),
        (4, lambda twin: twin.store.request_cancel(twin.ids.get(seq, 0), api_key_id=api_key_id)),
        (1, lambda twin: twin.store.cancel_queued(api_key_id=api_key_id)),
        (2, lambda twin: twin.store.delete(twin.ids.get(seq, 0), api_key_id=None)),
        (2, lambda twin: twin.store.expire_leases(worker)),
        (6, lambda twin: twin.store.claim_task(kind, claim_s=60.0)),  # type: ignore[arg-type]
        (6, settle),
        (2, lambda twin: twin.store.redeliver(twin.ids.get(seq, 0), api_key_id=api_key_id)),
    ]
    return rng.choices([transaction for _, transaction in steps], [weight for weight, _ in steps])[0]


@pytest.mark.parametrize("seed", range(6))
def test_both_stores_live_through_the_same_history(twins: tuple[Twin, Twin], clock: Clock, seed: int) -> None:
    rng = random.Random(seed)
    memory, other = twins
    for number in range(STEPS):
        transaction = draw_step(rng, clock, list(memory.ids))

        assert other.do(transaction) == memory.do(transaction), f"transaction {number}"

        clock.advance(rng.choice((0.0, 0.5, 7.0, 31.0)) if rng.random() < 0.97 else -100.0)
        if number % 10 == 0:
            assert other.picture() == memory.picture(), f"transaction {number}"
    assert other.picture() == memory.picture()
    assert other.store.metrics() == memory.store.metrics()
    assert len(memory.store.usage_rows(api_key_id=None)) > 20


def test_every_history_keeps_to_the_rules(clock: Clock) -> None:
    """The laws, checked on the twin that is easiest to believe: one end, one line of usage, one task of a kind."""
    store = MemoryStore(clock=clock, retention=Retention(record_lifetime_s=1e9))
    store.add_key(replace(key_record("key", name="key", limits=KeyLimits(running=3), clock=clock), id="0"))
    rng, twin = random.Random(1), Twin(store)
    ends: dict[int, Job] = {}
    for _ in range(2000):
        twin.do(draw_step(rng, clock, list(twin.ids)))
        clock.advance(rng.choice((0.0, 0.5, 7.0, 31.0)))
        for job in store.list_jobs(api_key_id=None, limit=10_000):
            if job.seq in ends:
                assert job == ends[job.seq]
            elif job.state.is_final:
                ends[job.seq] = job
        assert store.key_use("0").running <= 3

    rows = [row.job_id for row in store.usage_rows(api_key_id=None)]
    assert len(rows) == len(set(rows)) == len(ends) > 50
