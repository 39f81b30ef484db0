"""The worker loop over a real SQLite store."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import structlog
from structlog.testing import capture_logs

from pipeline.errors import StoreUnavailable
from pipeline.jobs import worker_loop
from pipeline.jobs.api_keys import make_key
from pipeline.jobs.model import ApiKey, Job, JobResult, JobState, KeyLimits, Lease, Progress
from pipeline.jobs.stores.sql.store import SqlStore
from pipeline.jobs.transfer import Transferred
from pipeline.jobs.transitions import PASSIVE_LEASE_S
from pipeline.jobs.worker_loop import LeaseKeeper, QueueWorker, Work, WorkerOptions
from tests.jobs.store_fixtures import new_job

DONE = JobResult(JobState.SUCCESS, stage_seconds={"generate": 0.1})
WAIT_S = 20.0  # far longer than anything takes here; only a failing test waits so long


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[SqlStore]:
    store = SqlStore(f"sqlite:///{tmp_path / 'jobs.sqlite'}")
    yield store
    store.close()


@pytest.fixture
def key(opened: SqlStore) -> ApiKey:
    return opened.add_key(make_key("tests", limits=KeyLimits())[1])


def worker_for(
    store: SqlStore, work: Work, *, on_end: Callable[[Job], None] = lambda job: None, **changed: object
) -> QueueWorker:
    options = WorkerOptions("w1", lease_s=1.0, stop_grace_s=0.0, poll_s=0.01)
    return QueueWorker(store, work, replace(options, **changed), on_end=on_end)


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline, "timed out"
        time.sleep(0.01)


def work_until_cancelled(job: Job, keeper: LeaseKeeper) -> JobResult:
    """Work that stops when it is cancelled."""
    wait_until(keeper.is_cancelled)
    return JobResult(JobState.CANCELLED)


def test_the_result_of_the_work_ends_the_job(opened: SqlStore, key: ApiKey) -> None:
    submitted = opened.submit(new_job(key, webhook_url="http://127.0.0.1/h")).job
    upload = replace(DONE, upload_warning="Your bucket is unavailable.")

    claimed = worker_for(opened, lambda job, keeper: upload).run_one(threading.Event())

    assert claimed is not None and claimed.id == submitted.id
    job = opened.get(submitted.id, api_key_id=None)
    assert (job.state, job.result) == (JobState.SUCCESS, upload)
    assert {task.kind for task in opened.tasks_of(job.id)} == {"webhook", "upload"}
    assert worker_for(opened, lambda job, keeper: DONE).run_one(threading.Event()) is None


def test_work_that_raises_fails_the_job_without_exposing_details(opened: SqlStore, key: ApiKey) -> None:
    job_id = opened.submit(new_job(key)).job.id

    def work(job: Job, keeper: LeaseKeeper) -> JobResult:
        raise KeyError("/secret/path")

    worker_for(opened, work).run_one(threading.Event())

    result = opened.get(job_id, api_key_id=None).result
    assert result is not None
    assert (result.state, result.message) == (JobState.FAILED, "The job failed for an internal reason (KeyError).")


def test_the_log_of_a_failed_job_says_why_where_and_whose(opened: SqlStore, key: ApiKey) -> None:
    job_id = opened.submit(new_job(key)).job.id
    failed = JobResult(
        JobState.FAILED,
        message="the GPU ran out of memory",
        error_code="out_of_memory",
        stage_seconds={"intake": 0.1, "generate": 0.2},
        engine="trellis",
    )

    with capture_logs(processors=[structlog.contextvars.merge_contextvars]) as lines:
        worker_for(opened, lambda job, keeper: failed).run_one(threading.Event())

    (line,) = (line for line in lines if line["event"] == "job failed")
    assert line.pop("seconds") >= 0
    assert line == {
        "event": "job failed",
        "log_level": "warning",
        "job_id": job_id,
        "key_id": key.id,
        "attempt": 1,
        "error_code": "out_of_memory",
        "reason": "the GPU ran out of memory",
        "stage": "generate",
        "engine": "trellis",
    }


def test_work_that_the_store_interrupts_is_requeued(opened: SqlStore, key: ApiKey) -> None:
    job_id = opened.submit(new_job(key)).job.id
    tries = []

    def work(job: Job, keeper: LeaseKeeper) -> JobResult:
        tries.append(job.attempts)
        if len(tries) == 1:
            raise StoreUnavailable("busy")
        return DONE

    worker = worker_for(opened, work)
    for _ in range(2):
        worker.run_one(threading.Event())

    assert tries == [1, 1]
    assert opened.get(job_id, api_key_id=None).state is JobState.SUCCESS


def test_on_end_is_called_when_the_result_is_recorded(opened: SqlStore, key: ApiKey) -> None:
    job_id = opened.submit(new_job(key)).job.id
    completed: list[Job] = []

    worker_for(opened, lambda job, keeper: DONE, on_end=completed.append).run_one(threading.Event())

    assert completed == [opened.get(job_id, api_key_id=None)]


def test_progress_reaches_the_store_while_the_work_runs(opened: SqlStore, key: ApiKey) -> None:
    job_id = opened.submit(new_job(key)).job.id

    def work(job: Job, keeper: LeaseKeeper) -> JobResult:
        keeper.report("generate", 40)
        wait_until(lambda: opened.get(job_id, api_key_id=None).progress == Progress("generate", 40))
        return DONE

    worker_for(opened, work).run_one(threading.Event())

    assert opened.get(job_id, api_key_id=None).state is JobState.SUCCESS


def test_heartbeats_keep_a_job_that_takes_longer_than_its_lease(opened: SqlStore, key: ApiKey) -> None:
    job_id = opened.submit(new_job(key)).job.id
    rivals: list[Job | None] = []

    def work(job: Job, keeper: LeaseKeeper) -> JobResult:
        for _ in range(12):
            time.sleep(0.25)
            rivals.append(opened.claim("rival", lease_s=2.0))
        return DONE

    worker_for(opened, work, lease_s=2.0).run_one(threading.Event())

    assert rivals == [None] * 12
    assert opened.get(job_id, api_key_id=None).attempts == 1


def test_a_cancellation_request_stops_the_work(opened: SqlStore, key: ApiKey) -> None:
    job_id = opened.submit(new_job(key)).job.id

    def work(job: Job, keeper: LeaseKeeper) -> JobResult:
        opened.request_cancel(job_id, api_key_id=key.id)
        return work_until_cancelled(job, keeper)

    worker_for(opened, work).run_one(threading.Event())

    assert opened.get(job_id, api_key_id=None).state is JobState.CANCELLED


def test_a_stop_requeues_unfinished_work(opened: SqlStore, key: ApiKey) -> None:
    job_id = opened.submit(new_job(key)).job.id
    stop = threading.Event()

    def work(job: Job, keeper: LeaseKeeper) -> JobResult:
        stop.set()
        return work_until_cancelled(job, keeper)

    worker_for(opened, work).run(stop)

    job = opened.get(job_id, api_key_id=None)
    assert (job.state, job.attempts) == (JobState.QUEUED, 0)
    assert opened.workers() == []


def test_a_stop_lets_work_finish_within_the_grace_period(opened: SqlStore, key: ApiKey) -> None:
    job_ids = [opened.submit(new_job(key)).job.id for _ in range(2)]
    stop = threading.Event()

    def work(job: Job, keeper: LeaseKeeper) -> JobResult:
        stop.set()
        time.sleep(0.6)
        return JobResult(JobState.CANCELLED) if keeper.is_cancelled() else DONE

    worker_for(opened, work, stop_grace_s=WAIT_S).run(stop)

    assert [opened.get(job_id, api_key_id=None).state for job_id in job_ids] == ["success", "queued"]


def test_work_whose_lease_is_lost_stops_and_changes_nothing(opened: SqlStore, key: ApiKey) -> None:
    job_id = opened.submit(new_job(key)).job.id

    def work(job: Job, keeper: LeaseKeeper) -> JobResult:
        opened.expire_leases("w1")
        assert opened.claim("w2", lease_s=60) is not None
        return work_until_cancelled(job, keeper)

    worker_for(opened, work).run_one(threading.Event())

    job = opened.get(job_id, api_key_id=None)
    assert (job.state, job.worker_id, job.attempts) == (JobState.RUNNING, "w2", 2)


def test_work_that_hangs_is_reported(opened: SqlStore, key: ApiKey) -> None:
    opened.submit(new_job(key))
    is_overdue = threading.Event()

    def work(job: Job, keeper: LeaseKeeper) -> JobResult:
        assert is_overdue.wait(WAIT_S)
        return DONE

    worker_for(opened, work, timeout_s=0.1, on_timeout=is_overdue.set).run_one(threading.Event())

    assert is_overdue.is_set()


def test_a_completion_is_repeated_until_the_store_is_available(
    opened: SqlStore, key: ApiKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_loop, "COMPLETION_PAUSES_S", (0.0, 0.0, 0.0, 0.0))
    job_id = opened.submit(new_job(key)).job.id
    store = FailingStore(opened, failures=3)

    worker_for(store, lambda job, keeper: DONE).run_one(threading.Event())  # pyright: ignore[reportArgumentType]

    assert store.failures == 0
    assert opened.get(job_id, api_key_id=None).state is JobState.SUCCESS


def test_an_idle_worker_ends_after_a_restart_request(opened: SqlStore, key: ApiKey) -> None:
    job_id = opened.submit(new_job(key)).job.id
    opened.request_restart()  # before this worker started, so it is ignored

    def work(job: Job, keeper: LeaseKeeper) -> JobResult:
        opened.request_restart()
        return DONE

    worker = threading.Thread(target=worker_for(opened, work).run, args=(threading.Event(),), daemon=True)
    worker.start()
    worker.join(WAIT_S)

    assert not worker.is_alive()
    assert opened.get(job_id, api_key_id=None).state is JobState.SUCCESS


def test_a_running_worker_is_listed(opened: SqlStore, key: ApiKey) -> None:
    stop = threading.Event()
    worker = threading.Thread(target=worker_for(opened, lambda job, keeper: DONE, engine="preview").run, args=(stop,))
    worker.start()

    wait_until(lambda: [one.worker_id for one in opened.workers()] == ["w1"])
    assert opened.workers()[0].engine == "preview"
    stop.set()
    worker.join(WAIT_S)

    assert opened.workers() == []


def test_a_worker_that_is_not_registered_is_never_listed(opened: SqlStore, key: ApiKey) -> None:
    job_id = opened.submit(new_job(key)).job.id
    listed: list[object] = []

    def work(job: Job, keeper: LeaseKeeper) -> JobResult:
        keeper.report("generate", 40)
        wait_until(lambda: opened.get(job_id, api_key_id=None).progress.percent == 40)
        listed.extend(opened.workers())
        return DONE

    worker_for(opened, work, is_registered=False).run_dispatched(job_id, threading.Event())

    assert opened.get(job_id, api_key_id=None).state is JobState.SUCCESS
    assert listed == opened.workers() == []


def test_a_worker_that_is_not_able_claims_no_job(opened: SqlStore, key: ApiKey) -> None:
    job_id = opened.submit(new_job(key)).job.id
    stop, is_able = threading.Event(), threading.Event()
    queue_worker = worker_for(opened, lambda job, keeper: DONE, is_able=is_able.is_set)
    worker = threading.Thread(target=queue_worker.run, args=(stop,))
    worker.start()

    wait_until(lambda: [one.is_ready for one in opened.workers()] == [False])
    time.sleep(0.2)  # some rounds of its loop
    assert opened.get(job_id, api_key_id=None).state is JobState.QUEUED
    is_able.set()
    wait_until(lambda: opened.get(job_id, api_key_id=None).state is JobState.SUCCESS)
    stop.set()
    worker.join(WAIT_S)


class FailingStore:
    """A store whose `complete` fails a few times, as with a locked database."""

    def __init__(self, store: SqlStore, *, failures: int) -> None:
        self._store = store
        self.failures = failures

    def __getattr__(self, name: str) -> object:
        return getattr(self._store, name)

    def complete(self, *arguments: object, **options: object) -> object:
        if self.failures:
            self.failures -= 1
            raise StoreUnavailable("busy")
        return self._store.complete(*arguments, **options)  # pyright: ignore[reportArgumentType]


class BrokenAt:
    """A store whose renewals of these numbers raise something that no store should raise."""

    def __init__(self, store: SqlStore, *numbers: int) -> None:
        self._store = store
        self._numbers = numbers
        self.renewals = 0

    def __getattr__(self, name: str) -> object:
        return getattr(self._store, name)

    def renew(self, lease: Lease, **options: Any) -> bool:
        self.renewals += 1
        if self.renewals in self._numbers:
            raise RuntimeError("stream terminated")
        return self._store.renew(lease, **options)


def test_heartbeats_go_on_after_any_exception(opened: SqlStore, key: ApiKey) -> None:
    opened.submit(new_job(key))
    broken = BrokenAt(opened, 2, 3)

    def work(job: Job, keeper: LeaseKeeper) -> JobResult:
        keeper.report("generate", 40)
        wait_until(lambda: broken.renewals > 5)
        opened.request_cancel(job.id, api_key_id=None)
        return work_until_cancelled(job, keeper)

    store: Any = broken
    claimed = worker_for(store, work, heartbeat_interval_s=0.02).run_one(threading.Event())

    assert claimed is not None
    assert opened.get(claimed.id, api_key_id=None).state is JobState.CANCELLED


def test_a_job_is_transferred_before_what_it_waits_for_is_started(opened: SqlStore, key: ApiKey) -> None:
    job_id = opened.submit(new_job(key)).job.id
    seen: list[Job] = []

    def work(job: Job, keeper: LeaseKeeper) -> JobResult:
        keeper.report("generate", 5)
        raise Transferred("generation-a", lambda: seen.append(opened.get(job_id, api_key_id=None)))

    worker_for(opened, work).run_one(threading.Event())

    waiting = opened.get(job_id, api_key_id=None)
    assert seen == [waiting]
    assert (waiting.state, waiting.worker_id, waiting.attempts) == (JobState.RUNNING, "generation-a", 1)
    assert waiting.progress == Progress("generate", 5)
    assert waiting.lease_expires_at is not None and waiting.lease_expires_at > time.time() + PASSIVE_LEASE_S / 2


def test_a_dispatched_worker_takes_a_waiting_job_over_at_once_in_the_same_attempt(
    opened: SqlStore, key: ApiKey
) -> None:
    job_id = opened.submit(new_job(key)).job.id
    works: list[Work] = [lambda job, keeper: DONE, transfers]

    for name in ("first", "second"):
        worker_for(opened, works.pop(), worker_id=name).run_dispatched(job_id, threading.Event())

    job = opened.get(job_id, api_key_id=None)
    assert (job.state, job.worker_id, job.attempts) == (JobState.SUCCESS, "second", 1)


def test_a_start_that_fails_leaves_the_job_waiting(opened: SqlStore, key: ApiKey) -> None:
    job_id = opened.submit(new_job(key)).job.id

    def fail() -> None:
        raise ConnectionError("no route")

    def work(job: Job, keeper: LeaseKeeper) -> JobResult:
        raise Transferred("generation-a", fail)

    worker_for(opened, work).run_one(threading.Event())

    assert opened.get(job_id, api_key_id=None).worker_id == "generation-a"


def test_a_cancellation_that_the_transfer_meets_starts_nothing(opened: SqlStore, key: ApiKey) -> None:
    job_id = opened.submit(new_job(key)).job.id
    started: list[str] = []

    def work(job: Job, keeper: LeaseKeeper) -> JobResult:
        if keeper.is_cancel_requested:
            return JobResult(JobState.CANCELLED)
        opened.request_cancel(job_id, api_key_id=None)
        raise Transferred("generation-a", lambda: started.append("generation"))

    worker_for(opened, work, heartbeat_interval_s=60.0, lease_s=600.0).run_one(threading.Event())

    assert opened.get(job_id, api_key_id=None).state is JobState.CANCELLED
    assert started == []


@pytest.mark.parametrize("at_once", [True, False])
def test_a_new_stage_is_written_at_once_unless_writes_compete(
    opened: SqlStore, key: ApiKey, monkeypatch: pytest.MonkeyPatch, at_once: bool
) -> None:
    job_id = opened.submit(new_job(key)).job.id
    written: list[Progress | None] = []
    renew = opened.renew

    def renewed(lease: Lease, *, lease_s: float, progress: Progress | None = None) -> bool:
        written.append(progress)
        return renew(lease, lease_s=lease_s, progress=progress)

    monkeypatch.setattr(opened, "renew", renewed)

    def has_written(number: int) -> bool:
        return len(written) == number

    def work(job: Job, keeper: LeaseKeeper) -> JobResult:
        for number, stage in enumerate(("intake", "generate"), start=1):
            keeper.report(stage, 5)
            if at_once:
                wait_until(partial(has_written, number))
        return DONE

    worker_for(opened, work, heartbeat_interval_s=60.0, lease_s=600.0, writes_stages_at_once=at_once).run_one(
        threading.Event()
    )

    assert written == ([Progress("intake", 5), Progress("generate", 5)] if at_once else [])
    assert opened.get(job_id, api_key_id=None).state is JobState.SUCCESS


def transfers(job: Job, keeper: LeaseKeeper) -> JobResult:
    """Work that goes on elsewhere."""
    raise Transferred("generation-a")
