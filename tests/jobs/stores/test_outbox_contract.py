"""Outbox, ledger, metrics and workers in every store."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from pipeline.errors import InvalidRequest, NotFound
from pipeline.jobs.model import (
    ApiKey,
    AttemptResult,
    Job,
    JobFilter,
    JobResult,
    JobState,
    LedgerFilter,
    OutboxTask,
    UsageDay,
    WorkerRecord,
)
from pipeline.jobs.store import Store
from pipeline.jobs.transitions import MAX_SKEW_S
from tests.jobs.store_fixtures import NOON, Clock, new_job

AddKey = Callable[..., ApiKey]
HOOK = "http://127.0.0.1/hook"


def ended(store: Store, key: ApiKey, result: JobResult, **fields: object) -> Job:
    """A job that was submitted, claimed and completed."""
    store.submit(new_job(key, **fields))
    job = store.claim("w1", lease_s=30)
    assert job is not None
    return store.complete(job.lease, result)


def claimed(store: Store) -> OutboxTask:
    task = store.claim_task("webhook", claim_s=60)
    assert task is not None
    return task


def test_a_job_without_a_webhook_has_no_task(store: Store, add_key: AddKey) -> None:
    job = ended(store, add_key(), JobResult(JobState.SUCCESS))

    assert store.tasks_of(job.id) == []
    with pytest.raises(InvalidRequest, match="has not ended, or has no webhook"):
        store.redeliver(job.id, api_key_id=None)


def test_a_webhook_is_due_when_its_job_ends(store: Store, add_key: AddKey, clock: Clock) -> None:
    job = ended(store, add_key(), JobResult(JobState.FAILED), webhook_url=HOOK)

    task = claimed(store)

    assert (task.job_id, task.api_key_id, task.target, task.state) == (job.id, job.api_key_id, HOOK, "pending")
    assert task.id.startswith("msg_")
    assert (task.attempts, task.give_up_at) == (0, clock.now + 7200)
    assert [known.id for known in store.tasks_of(job.id)] == [task.id]


def test_a_claimed_task_is_hidden_until_its_claim_expires(store: Store, add_key: AddKey, clock: Clock) -> None:
    ended(store, add_key(), JobResult(JobState.SUCCESS), webhook_url=HOOK)
    first = claimed(store)

    clock.advance(59)
    assert store.claim_task("webhook", claim_s=60) is None
    clock.advance(1)

    assert claimed(store).id == first.id


def test_many_senders_claim_different_tasks(store: Store, add_key: AddKey) -> None:
    key = add_key()
    for _ in range(12):
        ended(store, key, JobResult(JobState.SUCCESS), webhook_url=HOOK)

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: store.claim_task("webhook", claim_s=60), range(16)))

    ids = [task.id for task in answers if task is not None]
    assert len(ids) == len(set(ids))
    while (task := store.claim_task("webhook", claim_s=60)) is not None:  # a sender may have found the row just locked
        ids.append(task.id)
    assert len(ids) == len(set(ids)) == 12


def test_a_failed_attempt_is_due_again_after_its_pause_under_the_same_id(
    store: Store, add_key: AddKey, clock: Clock
) -> None:
    job = ended(store, add_key(), JobResult(JobState.SUCCESS), webhook_url=HOOK)
    task = claimed(store)
    store.settle_task(task, AttemptResult(status=503, error="answered 503", seconds=0.2, retry_in_s=100))

    clock.advance(99)
    assert store.claim_task("webhook", claim_s=60) is None
    clock.advance(1)
    again = claimed(store)
    done = store.settle_task(again, AttemptResult(status=200, error="", seconds=0.1, retry_in_s=None))

    assert again.id == task.id
    assert (again.attempts, again.last_status, again.last_error) == (1, 503, "answered 503")
    assert (done.state, done.attempts, done.last_status, done.last_error) == ("done", 2, 200, "")
    assert done.done_at == clock.now
    tries = store.attempts_of(task.id)
    assert [(one.number, one.status, one.error, one.seconds) for one in tries] == [
        (1, 503, "answered 503", 0.2),
        (2, 200, "", 0.1),
    ]
    assert [known.state for known in store.tasks_of(job.id)] == ["done"]
    clock.advance(7000)
    assert store.claim_task("webhook", claim_s=60) is None


@pytest.mark.parametrize("retry_in_s", [None, 7201.0])
def test_a_task_is_given_up_without_a_retry_or_after_its_window(
    store: Store, add_key: AddKey, retry_in_s: float | None
) -> None:
    ended(store, add_key(), JobResult(JobState.SUCCESS), webhook_url=HOOK)

    settled = store.settle_task(
        claimed(store), AttemptResult(status=None, error="no answer", seconds=30, retry_in_s=retry_in_s)
    )

    assert (settled.state, settled.last_error) == ("given_up", "no answer")


def test_redelivery_starts_afresh_under_the_same_id(store: Store, add_key: AddKey, clock: Clock) -> None:
    job = ended(store, add_key(), JobResult(JobState.SUCCESS), webhook_url=HOOK)
    task = claimed(store)
    store.settle_task(task, AttemptResult(status=None, error="no answer", seconds=30, retry_in_s=None))
    clock.advance(9000)

    again = store.redeliver(job.id, api_key_id=job.api_key_id)

    assert (again.id, again.state, again.attempts, again.done_at) == (task.id, "pending", 0, None)
    assert (again.next_attempt_at, again.give_up_at) == (clock.now, clock.now + 7200)
    store.settle_task(claimed(store), AttemptResult(status=204, error="", seconds=0.1, retry_in_s=None))
    assert [one.number for one in store.attempts_of(task.id)] == [1, 2]


@pytest.mark.parametrize("step_s", [-120, -3600, -86400])
def test_a_clock_that_steps_back_delays_no_task(store: Store, add_key: AddKey, clock: Clock, step_s: float) -> None:
    ended(store, add_key(), JobResult(JobState.SUCCESS), webhook_url=HOOK)
    clock.advance(step_s)

    assert claimed(store).target == HOOK
    assert store.claim_task("webhook", claim_s=60) is None


@pytest.mark.parametrize("step_s", [-120, -3600, -86400])
def test_a_clock_that_steps_back_delays_no_retry(store: Store, add_key: AddKey, clock: Clock, step_s: float) -> None:
    ended(store, add_key(), JobResult(JobState.SUCCESS), webhook_url=HOOK)
    store.settle_task(claimed(store), AttemptResult(status=None, error="no answer", seconds=30, retry_in_s=13))
    clock.advance(step_s)

    again = claimed(store)

    store.settle_task(again, AttemptResult(status=None, error="no answer", seconds=30, retry_in_s=13))
    assert store.claim_task("webhook", claim_s=60) is None
    clock.advance(13)
    assert claimed(store).id == again.id


def test_a_machine_whose_clock_lags_a_little_respects_claims(store: Store, add_key: AddKey, clock: Clock) -> None:
    ended(store, add_key(), JobResult(JobState.SUCCESS), webhook_url=HOOK)
    claimed(store)
    clock.advance(-MAX_SKEW_S)

    assert store.claim_task("webhook", claim_s=60) is None


def test_a_clock_that_steps_back_delays_no_redelivery(store: Store, add_key: AddKey, clock: Clock) -> None:
    job = ended(store, add_key(), JobResult(JobState.SUCCESS), webhook_url=HOOK)
    store.settle_task(claimed(store), AttemptResult(status=204, error="", seconds=0.1, retry_in_s=None))
    clock.advance(7000)
    store.redeliver(job.id, api_key_id=job.api_key_id)
    clock.advance(-3600)

    assert claimed(store).job_id == job.id


def test_a_late_upload_is_its_own_task(store: Store, add_key: AddKey, clock: Clock) -> None:
    job = ended(
        store, add_key(), JobResult(JobState.SUCCESS, upload_warning="The bucket is unavailable."), webhook_url=HOOK
    )

    upload = store.claim_task("upload", claim_s=60)

    assert upload is not None
    assert (upload.job_id, upload.target, upload.give_up_at) == (job.id, "", clock.now + 86400)
    assert {task.kind for task in store.tasks_of(job.id)} == {"webhook", "upload"}
    assert claimed(store).id != upload.id


def test_settling_a_task_of_a_deleted_job_is_not_found(store: Store, add_key: AddKey) -> None:
    job = ended(store, add_key(), JobResult(JobState.SUCCESS), webhook_url=HOOK)
    task = claimed(store)
    store.delete(job.id, api_key_id=None)

    with pytest.raises(NotFound, match=f"There is no task {task.id}"):
        store.settle_task(task, AttemptResult(status=200, error="", seconds=0.1, retry_in_s=None))
    assert store.attempts_of(task.id) == []


def test_usage_is_summed_by_day_and_key(store: Store, add_key: AddKey, clock: Clock) -> None:
    one, two = add_key(), add_key()
    work = {"stage_seconds": {"intake": 1.0, "generate": 3.0}, "gpu_seconds": 2.5, "engine": "preview"}
    ended(store, one, JobResult(JobState.SUCCESS, **work), track_id="t")
    ended(store, one, JobResult(JobState.FAILED, gpu_seconds=0.5))
    ended(store, two, JobResult(JobState.CANCELLED))
    clock.advance(86400)
    ended(store, one, JobResult(JobState.SUCCESS, **work))

    days = store.usage_days(LedgerFilter(one.id))

    assert days == [
        UsageDay(one.id, "2026-06-01", calls=2, succeeded=1, failed=1, cancelled=0, seconds=4.0, gpu_seconds=3.0),
        UsageDay(one.id, "2026-06-02", calls=1, succeeded=1, failed=0, cancelled=0, seconds=4.0, gpu_seconds=2.5),
    ]
    assert sum(day.calls for day in store.usage_days(LedgerFilter(None))) == 4
    assert store.usage_days(LedgerFilter(one.id, since=NOON + 1)) == days[1:]
    assert store.usage_days(LedgerFilter(one.id, until=NOON + 86400)) == days[:1]
    first = store.usage_rows(LedgerFilter(one.id))[0]
    assert (first.state, first.engine, first.seconds, first.gpu_seconds) == (JobState.SUCCESS, "preview", 4.0, 2.5)
    assert (first.track_id, first.finished_at) == ("t", NOON)
    assert len(store.usage_rows(LedgerFilter(None), limit=3)) == 3


def test_metrics_count_what_happened_and_outlive_the_records(store: Store, add_key: AddKey, clock: Clock) -> None:
    key = add_key()
    stages = {"intake": 1.0, "generate": 3.0}
    first = ended(
        store,
        key,
        JobResult(JobState.SUCCESS, stage_seconds=stages, gpu_seconds=2.0, kernel_fallbacks=("sparse_conv",)),
        webhook_url=HOOK,
    )
    ended(store, key, JobResult(JobState.FAILED, stage_seconds={"intake": 0.5}), webhook_url=HOOK)
    task = claimed(store)
    store.settle_task(task, AttemptResult(status=None, error="no answer", seconds=1, retry_in_s=100))
    store.settle_task(task, AttemptResult(status=200, error="", seconds=1, retry_in_s=None))
    for job in store.list_jobs(JobFilter(None, state=JobState.SUCCESS)):
        store.delete(job.id, api_key_id=None)
    assert first.state is JobState.SUCCESS
    store.submit(new_job(key))
    clock.advance(8)
    store.submit(new_job(key))

    metrics = store.metrics()

    assert metrics.submitted == 4
    assert dict(metrics.ended) == {"success": 1, "failed": 1}
    assert dict(metrics.states) == {"failed": 1, "queued": 2}
    assert metrics.oldest_queued_s == pytest.approx(8)
    assert dict(metrics.stage_seconds) == pytest.approx({"intake": 1.5, "generate": 3.0})
    assert dict(metrics.stage_runs) == {"intake": 2, "generate": 1}
    assert metrics.gpu_seconds == pytest.approx(2.0)
    assert dict(metrics.kernel_fallbacks) == {"sparse_conv": 1}
    assert dict(metrics.task_attempts) == {("webhook", "ok"): 1, ("webhook", "error"): 1}
    assert sum(metrics.tasks_pending.values()) <= 1


def test_an_empty_store_has_metrics(store: Store) -> None:
    metrics = store.metrics()

    assert (metrics.submitted, metrics.oldest_queued_s, metrics.gpu_seconds) == (0, 0.0, 0.0)
    assert dict(metrics.states) == {}


def test_workers_are_listed_while_they_send_heartbeats(store: Store, clock: Clock) -> None:
    store.heartbeat_worker(WorkerRecord("w1", "preview", 0.0, is_ready=False))
    store.heartbeat_worker(WorkerRecord("w2", "preview", 0.0, is_ready=True, job_id=5))
    clock.advance(20)
    store.heartbeat_worker(WorkerRecord("w1", "preview", 0.0, is_ready=True))
    clock.advance(11)

    assert store.workers() == [WorkerRecord("w1", "preview", clock.now - 11, is_ready=True)]
    assert len(store.workers(seen_within_s=40)) == 2
    store.deregister_worker("w1")
    assert store.workers() == []


def test_restart_requests_are_counted(store: Store) -> None:
    assert store.restarts_requested() == 0

    assert [store.request_restart(), store.request_restart()] == [1, 2]

    assert store.restarts_requested() == 2
