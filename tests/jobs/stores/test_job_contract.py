"""Jobs in every store, from submit to the final state."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from pipeline.errors import InvalidRequest, LeaseLost, NotFound, Unauthorized
from pipeline.jobs.model import (
    ApiKey,
    AttemptResult,
    Job,
    JobFilter,
    JobMeta,
    JobResult,
    JobState,
    Lease,
    LedgerFilter,
    NewJob,
    Progress,
)
from pipeline.jobs.store import Store
from pipeline.jobs.transitions import MAX_ATTEMPTS, PASSIVE_LEASE_S, REQUEST_LIFETIME_S
from pipeline.storage.base import Artifact
from tests.jobs.store_fixtures import Clock, new_job

AddKey = Callable[..., ApiKey]

SUCCESS = JobResult(
    JobState.SUCCESS,
    warnings=("seed has no effect",),
    artifacts=(Artifact("a.glb", "model", "http://127.0.0.1/a.glb", 3, "model/gltf-binary", "0" * 64),),
    stage_seconds={"intake": 0.5, "generate": 2.0},
    gpu_seconds=1.5,
    engine="preview",
    meta={"seed": 7},
)
FAILURE = JobResult(JobState.FAILED, message="export failed", error_code="export_failed", retryable=True)


def claimed(store: Store, worker: str = "w1", lease_s: float = 30.0) -> Job:
    """Claim the next job, which must be there."""
    job = store.claim(worker, lease_s=lease_s)
    assert job is not None
    return job


def test_a_submitted_job_reads_back_as_it_was_sent(store: Store, add_key: AddKey, clock: Clock) -> None:
    key = add_key()
    new = new_job(
        key,
        meta=JobMeta({"output_format": "glb"}, ("a note",), "00-trace"),
        track_id=42,
        webhook_url="http://127.0.0.1/h",
        request=b"\0\xff",
    )

    submitted = store.submit(new)

    job = store.get(submitted.job.id, api_key_id=key.id)
    assert submitted.is_new and submitted.queue_position == 1
    assert job == submitted.job
    assert 1 <= job.id <= 2**31 - 1
    assert (job.state, job.created_at, job.meta) == (JobState.QUEUED, clock.now, new.meta)
    assert job.track_id == 42 and isinstance(job.track_id, int)
    assert store.request_of(job.id) == b"\0\xff"


def test_ids_are_unique_and_not_in_sequence(store: Store, add_key: AddKey) -> None:
    key = add_key()

    ids = [store.submit(new_job(key)).job.id for _ in range(50)]

    assert len(set(ids)) == 50
    assert sorted(ids) != ids
    assert min(abs(a - b) for a, b in itertools.pairwise(ids)) > 1


def test_submits_with_an_unknown_or_revoked_key_are_refused(store: Store, add_key: AddKey) -> None:
    key = add_key()
    store.revoke_key(key.id)

    with pytest.raises(Unauthorized, match="Invalid API key"):
        store.submit(new_job(key))
    with pytest.raises(Unauthorized, match="Invalid API key"):
        store.submit(NewJob(api_key_id="nobody", file_prefix="p", request=b"", request_sha256="0" * 64))


def test_a_repeated_idempotency_key_returns_the_first_job(store: Store, add_key: AddKey) -> None:
    key = add_key(queued=1)
    new = new_job(key, idempotency_key="order-7")

    first, second = store.submit(new), store.submit(new)

    assert second.job == first.job
    assert (first.is_new, second.is_new) == (True, False)
    assert len(store.list_jobs(JobFilter(key.id))) == 1


def test_an_idempotency_key_with_another_body_is_refused(store: Store, add_key: AddKey) -> None:
    key, other = add_key(), add_key()
    store.submit(new_job(key, idempotency_key="order-7"))

    with pytest.raises(InvalidRequest, match="Idempotency-Key was used before with another body"):
        store.submit(new_job(key, idempotency_key="order-7"))
    assert store.submit(new_job(other, idempotency_key="order-7")).is_new


def test_one_idempotency_key_from_many_threads_creates_one_job(store: Store, add_key: AddKey) -> None:
    new = new_job(add_key(), idempotency_key="once")

    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda _: store.submit(new), range(16)))

    assert len({answer.job.id for answer in answers}) == 1
    assert sum(answer.is_new for answer in answers) == 1


def test_another_key_cannot_see_a_job(store: Store, add_key: AddKey) -> None:
    owner, stranger = add_key(), add_key()
    job = store.submit(new_job(owner)).job

    for refused in (
        lambda: store.get(job.id, api_key_id=stranger.id),
        lambda: store.request_cancel(job.id, api_key_id=stranger.id),
        lambda: store.delete(job.id, api_key_id=stranger.id),
        lambda: store.redeliver(job.id, api_key_id=stranger.id),
        lambda: store.get(job.id + 1, api_key_id=owner.id),
    ):
        with pytest.raises(NotFound, match="There is no job with the id"):
            refused()
    assert store.list_jobs(JobFilter(stranger.id)) == []
    assert store.get(job.id, api_key_id=None) == job


def test_lists_are_newest_first_paged_and_filtered(store: Store, add_key: AddKey) -> None:
    key = add_key()
    jobs = [store.submit(new_job(key, track_id=track)).job for track in ("a", "b", 7, "7", "a")]
    store.submit(new_job(add_key(), track_id="a"))
    store.request_cancel(jobs[1].id, api_key_id=key.id)

    def ids(filters: JobFilter, *, before_seq: int | None = None, limit: int = 50) -> list[int]:
        return [job.id for job in store.list_jobs(filters, before_seq=before_seq, limit=limit)]

    newest_first, own = [job.id for job in reversed(jobs)], JobFilter(key.id)
    assert ids(own) == newest_first
    assert ids(own, limit=2) == newest_first[:2]
    assert ids(own, limit=2, before_seq=jobs[3].seq) == newest_first[2:4]
    assert ids(JobFilter(key.id, track_id="a")) == [jobs[4].id, jobs[0].id]
    assert ids(JobFilter(key.id, track_id="7")) == ids(JobFilter(key.id, track_id=7)) == [jobs[3].id, jobs[2].id]
    assert ids(JobFilter(key.id, JobState.CANCELLED)) == [jobs[1].id]
    assert len(store.list_jobs(JobFilter(None))) == 6


def test_get_many_finds_the_jobs_that_exist(store: Store, add_key: AddKey) -> None:
    jobs = [store.submit(new_job(add_key())).job for _ in range(3)]

    found = store.get_many([jobs[2].id, jobs[0].id, jobs[0].id, 5])

    assert sorted(job.seq for job in found) == [jobs[0].seq, jobs[2].seq]
    assert store.get_many([]) == []


def test_jobs_are_claimed_oldest_first_and_each_once(store: Store, add_key: AddKey, clock: Clock) -> None:
    key = add_key()
    jobs = [store.submit(new_job(key)).job for _ in range(3)]
    clock.advance(5)

    order = [claimed(store, f"w{number}") for number in range(3)]

    assert [job.id for job in order] == [job.id for job in jobs]
    assert store.claim("w9", lease_s=30) is None
    first = order[0]
    assert (first.state, first.worker_id, first.attempts) == (JobState.RUNNING, "w0", 1)
    assert (first.started_at, first.lease_expires_at) == (clock.now, clock.now + 30)
    assert store.get(first.id, api_key_id=None) == first


def test_workers_that_claim_at_once_get_different_jobs(store: Store, add_key: AddKey) -> None:
    key = add_key()
    jobs = {store.submit(new_job(key)).job.id for _ in range(24)}

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda number: store.claim(f"w{number}", lease_s=30), range(32)))

    got = [job.id for job in answers if job is not None]
    assert sorted(got) == sorted(jobs)


def test_a_job_can_be_claimed_by_its_id(store: Store, add_key: AddKey) -> None:
    key = add_key()
    older, newer = (store.submit(new_job(key)).job for _ in range(2))

    job = store.claim("w1", lease_s=30, job_id=newer.id)

    assert job is not None and job.id == newer.id
    assert store.claim("w1", lease_s=30, job_id=newer.id) is None
    assert store.queue_position(store.get(older.id, api_key_id=None)) == 1


def test_a_worker_leaves_jobs_of_engines_that_it_lacks(store: Store, add_key: AddKey) -> None:
    key = add_key()
    large, small, of_any = (store.submit(new_job(key, engine=engine)).job for engine in ("trellis", "preview", ""))

    claims = [store.claim("w1", lease_s=30, engines=("preview",)) for _ in range(3)]

    assert [None if job is None else job.id for job in claims] == [small.id, of_any.id, None]
    found = store.claim("w2", lease_s=30, engines=("preview", "trellis"))
    assert found is not None and (found.id, found.engine) == (large.id, "trellis")


def test_a_dead_workers_job_goes_back_to_the_queue_where_the_next_worker_lacks_its_engine(
    store: Store, add_key: AddKey, clock: Clock
) -> None:
    key = add_key()
    job_id = store.submit(new_job(key, engine="trellis")).job.id
    lost = claimed(store, "dead").lease
    clock.advance(31)

    assert store.claim("w2", lease_s=30, engines=("preview",)) is None

    job = store.get(job_id, api_key_id=None)
    assert (job.state, job.attempts, store.key_use(key.id).queued) == (JobState.QUEUED, 1, 1)
    with pytest.raises(LeaseLost):
        store.complete(lost, SUCCESS)
    again = claimed(store, "w3")
    assert (again.id, again.attempts) == (job_id, 2)


def test_any_worker_ends_a_job_that_is_to_be_given_up_or_cancelled(store: Store, add_key: AddKey, clock: Clock) -> None:
    key = add_key()
    cancelled = store.submit(new_job(key, engine="trellis")).job.id
    claimed(store, "dead")
    store.request_cancel(cancelled, api_key_id=key.id)
    clock.advance(31)

    assert store.claim("w2", lease_s=30, engines=("preview",)) is None

    assert store.get(cancelled, api_key_id=None).state is JobState.CANCELLED


def test_the_queue_position_counts_all_keys_and_is_zero_once_claimed(store: Store, add_key: AddKey) -> None:
    submits = [store.submit(new_job(add_key())) for _ in range(3)]

    assert [submitted.queue_position for submitted in submits] == [1, 2, 3]
    claimed(store)

    jobs = store.get_many([submitted.job.id for submitted in submits])
    assert sorted(store.queue_position(job) for job in jobs) == [0, 1, 2]


def test_a_job_with_an_expired_lease_is_claimed_before_the_queue(store: Store, add_key: AddKey, clock: Clock) -> None:
    key = add_key()
    first = store.submit(new_job(key)).job
    store.submit(new_job(key))
    lost = claimed(store, "dead").lease
    started_at = clock.now

    clock.advance(29)
    assert claimed(store, "w2").id != first.id
    clock.advance(2)
    again = claimed(store, "w3")

    assert (again.id, again.attempts, again.worker_id, again.started_at) == (first.id, 2, "w3", started_at)
    for void in (
        lambda: store.renew(lost, lease_s=30),
        lambda: store.report(lost, Progress("generate", 9)),
        lambda: store.complete(lost, SUCCESS),
        lambda: store.requeue(lost),
    ):
        with pytest.raises(LeaseLost, match=f"job {first.id} is no longer held by dead, attempt 1"):
            void()
    assert store.get(first.id, api_key_id=None) == again


def test_a_heartbeat_records_the_progress_that_it_carries(store: Store, add_key: AddKey, clock: Clock) -> None:
    store.submit(new_job(add_key()))
    job = claimed(store)

    store.renew(job.lease, lease_s=30, progress=Progress("generate", 40))
    assert store.get(job.id, api_key_id=None).progress == Progress("generate", 40)
    clock.advance(20)  # where the shared store decides about the lease itself
    store.renew(job.lease, lease_s=30, progress=Progress("export", 70))
    store.renew(job.lease, lease_s=30)

    found = store.get(job.id, api_key_id=None)
    assert (found.progress, found.lease_expires_at) == (Progress("export", 70), clock.now + 30)
    with pytest.raises(LeaseLost):
        store.renew(Lease(job.id, "other", 1), lease_s=30, progress=Progress("export", 71))
    assert store.get(job.id, api_key_id=None).progress == Progress("export", 70)


def test_the_ended_ones_of_several_jobs_are_found(store: Store, add_key: AddKey) -> None:
    key = add_key()
    ended, running, queued = (store.submit(new_job(key)).job for _ in range(3))
    store.request_cancel(ended.id, api_key_id=None)
    assert store.claim("w", lease_s=30, job_id=running.id) is not None

    assert store.ended([queued.id, running.id, ended.id, 1]) == [store.get(ended.id, api_key_id=None)]
    assert store.ended([running.id]) == store.ended([]) == []


def test_a_heartbeat_keeps_the_lease(store: Store, add_key: AddKey, clock: Clock) -> None:
    store.submit(new_job(add_key()))
    lease = claimed(store).lease

    for _ in range(5):
        clock.advance(20)
        assert store.renew(lease, lease_s=30) is False
        assert store.claim("w2", lease_s=30) is None


def test_a_job_whose_workers_keep_dying_fails_after_its_last_attempt(
    store: Store, add_key: AddKey, clock: Clock
) -> None:
    key = add_key()
    job_id = store.submit(new_job(key, webhook_url="http://127.0.0.1/h")).job.id

    for attempt in range(1, MAX_ATTEMPTS + 1):
        assert claimed(store, f"w{attempt}").attempts == attempt
        clock.advance(31)
    assert store.claim("last", lease_s=30) is None

    job = store.get(job_id, api_key_id=None)
    assert job.result is not None
    assert (job.state, job.result.error_code, job.result.retryable) == (JobState.FAILED, "interrupted", True)
    assert [task.kind for task in store.tasks_of(job_id)] == ["webhook"]
    assert [row.job_id for row in store.usage_rows(LedgerFilter(key.id))] == [job_id]
    assert store.key_use(key.id).running == 0


def test_the_leases_of_a_dead_worker_can_be_expired_at_once(store: Store, add_key: AddKey) -> None:
    key = add_key()
    for _ in range(2):
        store.submit(new_job(key))
    mine, others = claimed(store, "dead"), claimed(store, "alive")

    released = store.expire_leases("dead")

    assert released == 1
    again = claimed(store, "w3")
    assert (again.id, again.attempts) == (mine.id, 2)
    assert store.renew(others.lease, lease_s=30) is False


def test_a_requeued_job_keeps_its_position_and_its_attempts(store: Store, add_key: AddKey) -> None:
    key = add_key()
    first = store.submit(new_job(key)).job
    store.submit(new_job(key))
    lease = claimed(store).lease

    back = store.requeue(lease)

    assert (back.state, back.attempts, back.worker_id) == (JobState.QUEUED, 0, None)
    assert store.get(first.id, api_key_id=None) == back
    assert (store.key_use(key.id).queued, store.key_use(key.id).running) == (2, 0)
    with pytest.raises(LeaseLost):
        store.complete(lease, SUCCESS)
    assert claimed(store, "w2").id == first.id


def test_a_clock_that_steps_back_strands_no_job(store: Store, add_key: AddKey, clock: Clock) -> None:
    job_id = store.submit(new_job(add_key())).job.id
    claimed(store, "dead")
    clock.advance(-86400)

    assert (
        store.claim("w2", lease_s=30) is None
    )  # its worker may still be alive, and has one lease from now to send a heartbeat
    clock.advance(31)
    again = claimed(store, "w2")

    assert (again.id, again.attempts) == (job_id, 2)


def test_a_job_is_transferred_within_its_attempt_and_taken_over_by_one_process(
    store: Store, add_key: AddKey, clock: Clock
) -> None:
    key = add_key()
    store.submit(new_job(key))
    first = claimed(store, "first")
    store.renew(first.lease, lease_s=30, progress=Progress("intake", 3))
    clock.advance(5)

    waiting = store.transfer(
        first.lease, worker_id="generation-a", lease_s=PASSIVE_LEASE_S, progress=Progress("generate", 5)
    )

    assert (waiting.worker_id, waiting.attempts, waiting.state) == ("generation-a", 1, JobState.RUNNING)
    assert (waiting.lease_expires_at, waiting.progress) == (clock.now + PASSIVE_LEASE_S, Progress("generate", 5))
    assert store.get(first.id, api_key_id=None) == waiting
    for void in (
        lambda: store.renew(first.lease, lease_s=30),
        lambda: store.complete(first.lease, SUCCESS),
        lambda: store.requeue(first.lease),
        lambda: store.transfer(first.lease, worker_id="generation-b", lease_s=PASSIVE_LEASE_S),
    ):
        with pytest.raises(LeaseLost):
            void()

    assert store.claim("another", lease_s=30) is None  # it looks for any job, and this one waits
    taken = store.claim("second", lease_s=30, job_id=first.id)
    assert taken is not None
    assert store.claim("third", lease_s=30, job_id=first.id) is None
    with pytest.raises(LeaseLost):
        store.transfer(waiting.lease, worker_id="third", lease_s=30)

    assert (taken.worker_id, taken.attempts, taken.progress) == ("second", 1, Progress("generate", 5))
    assert store.key_use(key.id).running == 1
    assert store.complete(taken.lease, SUCCESS).state is JobState.SUCCESS


def test_a_passive_lease_outlasts_those_of_workers_until_it_expires(
    store: Store, add_key: AddKey, clock: Clock
) -> None:
    store.submit(new_job(add_key()))
    waiting = store.transfer(claimed(store).lease, worker_id="generation-a", lease_s=PASSIVE_LEASE_S)

    clock.advance(PASSIVE_LEASE_S - 400)
    assert store.claim("w2", lease_s=30) is None  # cuts nothing either
    store.renew(waiting.lease, lease_s=PASSIVE_LEASE_S)
    clock.advance(PASSIVE_LEASE_S - 10)
    assert store.claim("w2", lease_s=30) is None
    clock.advance(11)

    again = claimed(store, "w2")
    assert (again.id, again.attempts) == (waiting.id, 2)


def test_a_clock_that_steps_back_strands_no_job_that_waits_for_a_call(
    store: Store, add_key: AddKey, clock: Clock
) -> None:
    store.submit(new_job(add_key()))
    waiting = store.transfer(claimed(store).lease, worker_id="generation-a", lease_s=PASSIVE_LEASE_S)
    clock.advance(-86400)

    assert store.claim("w2", lease_s=30) is None
    assert store.get(waiting.id, api_key_id=None).lease_expires_at == clock.now + PASSIVE_LEASE_S
    clock.advance(PASSIVE_LEASE_S + 1)

    assert claimed(store, "w2").id == waiting.id


def test_progress_is_readable_while_running(store: Store, add_key: AddKey) -> None:
    store.submit(new_job(add_key()))
    lease = claimed(store).lease

    store.report(lease, Progress("generate", 37))

    assert store.get(lease.job_id, api_key_id=None).progress == Progress("generate", 37)


@pytest.mark.parametrize(
    "result",
    [SUCCESS, replace(FAILURE, error_code="unreadable_image"), JobResult(JobState.CANCELLED)],
    ids=lambda result: str(result.state),
)
def test_an_ended_job_has_its_result_and_no_request(
    store: Store, add_key: AddKey, clock: Clock, result: JobResult
) -> None:
    job_id = store.submit(new_job(add_key())).job.id
    lease = claimed(store).lease
    clock.advance(12)

    finished = store.complete(lease, result)

    job = store.get(job_id, api_key_id=None)
    assert job == finished
    assert (job.state, job.result) == (result.state, result)
    assert (job.finished_at, job.expires_at, job.lease_expires_at) == (clock.now, clock.now + 1000, None)
    with pytest.raises(NotFound, match="There is no request"):
        store.request_of(job_id)


@pytest.mark.parametrize(
    ("error_code", "is_kept"), [("engine_failed", True), ("interrupted", True), ("download_failed", False)]
)
def test_a_job_that_failed_through_no_fault_of_its_caller_keeps_its_request_for_a_day(
    store: Store, add_key: AddKey, clock: Clock, error_code: str, is_kept: bool
) -> None:
    store.submit(new_job(add_key(), request=b"x" * 5000))
    job = claimed(store)
    store.complete(job.lease, JobResult(JobState.FAILED, error_code=error_code))

    if is_kept:
        assert store.request_of(job.id) == b"x" * 5000
    clock.advance(REQUEST_LIFETIME_S - 1)
    assert store.expire_requests() == 0
    clock.advance(2)
    assert store.expire_requests() == int(is_kept)

    with pytest.raises(NotFound, match="There is no request"):
        store.request_of(job.id)
    assert store.get(job.id, api_key_id=None).state is JobState.FAILED


def test_the_oldest_requests_of_failed_jobs_are_deleted_beyond_a_sum_per_key_and_in_all(
    store: Store, add_key: AddKey, clock: Clock
) -> None:
    first, second = add_key(), add_key()

    def fail(key: ApiKey, size_bytes: int) -> int:
        clock.advance(1)
        job_id = store.submit(new_job(key, request=b"x" * size_bytes)).job.id
        job = store.claim("w1", lease_s=30, job_id=job_id)
        assert job is not None
        store.complete(job.lease, JobResult(JobState.FAILED, error_code="engine_failed"))
        return job_id

    def kept(job_ids: list[int]) -> list[bool]:
        def is_kept(job_id: int) -> bool:
            try:
                return bool(store.request_of(job_id))
            except NotFound:
                return False

        return [is_kept(job_id) for job_id in job_ids]

    of_first = [fail(first, 4000) for _ in range(4)]  # 12,000 bytes per key are kept
    assert kept(of_first) == [False, True, True, True]
    of_second = [fail(second, 5000), fail(second, 6000)]  # 20,000 in all
    assert (kept(of_first), kept(of_second)) == ([False, False, True, True], [True, True])
    assert store.metrics().failed_requests_bytes == 19_000
    too_large = fail(second, 12_001)
    assert (kept([too_large]), kept(of_second)) == ([False], [True, True])

    queued = store.submit(new_job(first, request=b"x" * 50_000)).job.id
    assert fail(second, 1) and kept([queued]) == [True]  # open jobs count towards no sum
    assert store.expire_requests() == 0


def test_a_kept_request_is_deleted_with_its_job(store: Store, add_key: AddKey, clock: Clock) -> None:
    store.submit(new_job(add_key()))
    job = claimed(store)
    store.complete(job.lease, JobResult(JobState.FAILED, error_code="engine_failed"))

    store.delete(job.id, api_key_id=None)

    clock.advance(2 * REQUEST_LIFETIME_S)
    assert store.expire_requests() == 0


def test_a_job_ends_once(store: Store, add_key: AddKey, clock: Clock) -> None:
    key = add_key()
    job_id = store.submit(new_job(key, webhook_url="http://127.0.0.1/h")).job.id
    lease = claimed(store).lease
    ended = store.complete(lease, SUCCESS)
    clock.advance(50)

    assert store.complete(lease, FAILURE) == ended
    assert store.request_cancel(job_id, api_key_id=key.id) == ended
    assert store.claim("w2", lease_s=30) is None
    for void in (
        lambda: store.complete(Lease(job_id, "w2", 1), FAILURE),
        lambda: store.renew(lease, lease_s=30),
        lambda: store.report(lease, Progress("generate", 1)),
        lambda: store.requeue(lease),
    ):
        with pytest.raises(LeaseLost):
            void()

    assert store.get(job_id, api_key_id=None) == ended
    assert len(store.tasks_of(job_id)) == 1
    assert len(store.usage_rows(LedgerFilter(None))) == 1


def test_repeated_completions_of_one_lease_write_one_usage_row(store: Store, add_key: AddKey) -> None:
    store.submit(new_job(add_key(), webhook_url="http://127.0.0.1/h"))
    lease = claimed(store).lease

    with ThreadPoolExecutor(8) as pool:
        jobs = list(pool.map(lambda number: store.complete(lease, (SUCCESS, FAILURE)[number % 2]), range(8)))

    assert len({job.state for job in jobs}) == 1
    assert len(store.usage_rows(LedgerFilter(None))) == 1
    assert len(store.tasks_of(lease.job_id)) == 1


def test_a_queued_job_is_cancelled_at_once(store: Store, add_key: AddKey) -> None:
    key = add_key()
    job_id = store.submit(new_job(key, webhook_url="http://127.0.0.1/h")).job.id

    job = store.request_cancel(job_id, api_key_id=key.id)

    assert job.state is JobState.CANCELLED
    assert store.claim("w1", lease_s=30) is None
    assert store.key_use(key.id).queued == 0
    assert len(store.tasks_of(job_id)) == 1


def test_a_cancellation_request_reaches_a_running_job(store: Store, add_key: AddKey) -> None:
    key = add_key()
    job_id = store.submit(new_job(key)).job.id
    lease = claimed(store).lease

    job = store.request_cancel(job_id, api_key_id=key.id)

    assert (job.state, job.is_cancel_requested) == (JobState.RUNNING, True)
    assert store.renew(lease, lease_s=30) is True


def test_a_cancelled_job_whose_worker_died_or_stopped_is_not_run_again(
    store: Store, add_key: AddKey, clock: Clock
) -> None:
    key = add_key()
    for _ in range(2):
        store.submit(new_job(key))
    dead, stopped = claimed(store, "dead"), claimed(store, "stopped")
    for job in (dead, stopped):
        store.request_cancel(job.id, api_key_id=key.id)

    assert store.requeue(stopped.lease).state is JobState.CANCELLED
    clock.advance(31)
    assert store.claim("w2", lease_s=30) is None

    assert store.get(dead.id, api_key_id=None).state is JobState.CANCELLED
    assert store.key_use(key.id).running == 0


def test_cancelling_the_queue_leaves_other_keys_and_running_jobs(store: Store, add_key: AddKey) -> None:
    key, other = add_key(), add_key()
    for owner in (key, key, key, other):
        store.submit(new_job(owner))
    claimed(store)

    assert store.cancel_queued(api_key_id=key.id) == 2

    states = sorted(job.state for job in store.list_jobs(JobFilter(key.id)))
    assert states == ["cancelled", "cancelled", "running"]
    assert [job.state for job in store.list_jobs(JobFilter(other.id))] == ["queued"]


def test_only_an_ended_job_can_be_deleted_and_the_ledger_stays(store: Store, add_key: AddKey) -> None:
    key = add_key()
    job_id = store.submit(new_job(key, webhook_url="http://127.0.0.1/h", idempotency_key="again")).job.id
    with pytest.raises(InvalidRequest, match=f"Job {job_id} is queued; cancel it before deleting it"):
        store.delete(job_id, api_key_id=key.id)
    lease = claimed(store).lease
    with pytest.raises(InvalidRequest, match="is running"):
        store.delete(job_id, api_key_id=key.id)
    store.complete(lease, SUCCESS)

    deleted = store.delete(job_id, api_key_id=key.id)

    assert deleted.id == job_id
    with pytest.raises(NotFound):
        store.get(job_id, api_key_id=key.id)
    assert store.tasks_of(job_id) == []
    assert store.claim_task("webhook", claim_s=60) is None
    assert [row.job_id for row in store.usage_rows(LedgerFilter(key.id))] == [job_id]


def test_records_expire_when_their_tasks_are_settled(store: Store, add_key: AddKey, clock: Clock) -> None:
    key = add_key()
    plain = store.submit(new_job(key)).job.id
    with_webhook = store.submit(new_job(key, webhook_url="http://127.0.0.1/h")).job.id
    store.submit(new_job(key))
    for _ in range(2):
        store.complete(claimed(store).lease, SUCCESS)

    assert store.expired() == []
    clock.advance(1000)
    assert [job.id for job in store.expired()] == [plain]
    task = store.claim_task("webhook", claim_s=60)
    assert task is not None
    store.settle_task(task, AttemptResult(status=200, error="", seconds=0.1, retry_in_s=None))

    assert [job.id for job in store.expired()] == [plain, with_webhook]
    assert [job.id for job in store.expired(limit=1)] == [plain]


def test_a_late_upload_replaces_the_artifacts_but_not_the_state(store: Store, add_key: AddKey) -> None:
    job_id = store.submit(new_job(add_key())).job.id
    store.complete(claimed(store).lease, SUCCESS)
    moved = replace(SUCCESS, artifacts=(replace(SUCCESS.artifacts[0], url="http://127.0.0.1/bucket/a.glb"),))

    assert store.replace_result(job_id, moved).result == moved

    assert store.get(job_id, api_key_id=None).result == moved
    with pytest.raises(InvalidRequest, match=f"Job {job_id} is success, not failed"):
        store.replace_result(job_id, FAILURE)
    assert len(store.usage_rows(LedgerFilter(None))) == 1


def test_timings_are_means_over_the_last_twenty_successes(store: Store, add_key: AddKey, clock: Clock) -> None:
    key = add_key()
    assert store.timings().calls == 0
    for number in range(22):
        store.submit(new_job(key))
        result = JobResult(JobState.SUCCESS, stage_seconds={"generate": 1000.0 if number < 2 else number})
        clock.advance(1)
        store.complete(claimed(store).lease, result)
    store.submit(new_job(key))
    store.complete(claimed(store).lease, JobResult(JobState.FAILED, stage_seconds={"generate": 5000.0}))

    timings = store.timings()

    assert timings.calls == 20
    assert timings.seconds == pytest.approx(sum(range(2, 22)) / 20)
    assert timings.by_stage == pytest.approx({"generate": sum(range(2, 22)) / 20})


def test_a_recorded_job_has_ended_and_counts_nowhere(store: Store, add_key: AddKey) -> None:
    key = add_key()
    result = JobResult(JobState.SUCCESS, meta={"test": True})
    new = new_job(key, webhook_url="https://example.com/hook", idempotency_key="one")

    job = store.record(new, result)
    again = store.record(new, result)

    assert again == job == store.get(job.id, api_key_id=key.id) and job.result == result
    assert store.list_jobs(JobFilter(key.id)) == [job]
    assert [task.kind for task in store.tasks_of(job.id)] == ["webhook"]
    use = store.key_use(key.id)
    assert (use.queued, use.running, use.this_minute, use.this_month) == (0, 0, 0, 0)
    assert store.usage_rows(LedgerFilter(key.id)) == [] and store.timings().calls == 0
    later = store.submit(new_job(key)).job
    assert later.seq > job.seq
    store.delete(job.id, api_key_id=key.id)
    assert store.list_jobs(JobFilter(key.id)) == [later]
