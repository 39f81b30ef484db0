"""Every decision about a job, on records alone."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest

from pipeline.errors import InvalidRequest, LeaseLost, NotFound
from pipeline.jobs import transitions
from pipeline.jobs.model import Job, JobResult, JobState, KeyLimits, Lease, NewJob, OutboxTask, Progress, UsageDay
from pipeline.jobs.transitions import (
    CANCELLED,
    GIVEN_UP,
    MAX_ATTEMPTS,
    MAX_PAUSE_S,
    MAX_SKEW_S,
    REQUEST_LIFETIME_S,
    AttemptResult,
    Completion,
    Decision,
    FailedRequest,
    Retention,
    UsageChange,
)

NOW = 1_780_315_200.0  # 2026-06-01 12:00:00 UTC
LEASE_S = 30.0
RETENTION = Retention(record_lifetime_s=1000.0, webhook_window_s=7200.0, upload_window_s=86400.0)
NEW = NewJob("key", "prefix", b"{}", "0" * 64, webhook_url="http://127.0.0.1/hook", track_id=7)
QUEUED = transitions.queued(NEW, job_id=5, seq=3, now=NOW)
RUNNING = transitions.claimed(QUEUED, "w1", now=NOW, lease_s=LEASE_S)
SUCCESS = JobResult(JobState.SUCCESS, stage_seconds={"intake": 1.0, "generate": 3.0}, gpu_seconds=2.5, engine="preview")
FAILURE = JobResult(JobState.FAILED, error_code="export_failed")


def completed(job: Job, result: JobResult, *, now: float = NOW) -> Completion:
    ids = (f"msg_{number}" for number in itertools.count())
    return transitions.completed(job, result, now=now, retention=RETENTION, draw_task_id=lambda: next(ids))


def checked(job: Job, now: float) -> Decision:
    return transitions.lease_checked(job, "w2", now=now, lease_s=LEASE_S)


def test_a_submitted_job_is_queued_with_what_was_sent() -> None:
    assert (QUEUED.id, QUEUED.seq, QUEUED.state, QUEUED.created_at) == (5, 3, JobState.QUEUED, NOW)
    assert (QUEUED.api_key_id, QUEUED.track_id, QUEUED.webhook_url) == ("key", 7, NEW.webhook_url)
    assert (QUEUED.attempts, QUEUED.worker_id, QUEUED.result) == (0, None, None)


def test_a_claim_grants_a_lease_and_counts_an_attempt() -> None:
    assert (RUNNING.state, RUNNING.worker_id, RUNNING.attempts) == (JobState.RUNNING, "w1", 1)
    assert (RUNNING.started_at, RUNNING.lease_expires_at) == (NOW, NOW + LEASE_S)


def test_a_lease_that_holds_leaves_the_job_alone() -> None:
    assert checked(RUNNING, NOW + LEASE_S - 1) is RUNNING


def test_a_job_whose_lease_expired_is_claimed_again_and_keeps_its_start() -> None:
    again = checked(RUNNING, NOW + LEASE_S)

    assert isinstance(again, Job) and transitions.is_claim(RUNNING, again)
    assert (again.worker_id, again.attempts, again.started_at) == ("w2", 2, NOW)


def test_a_job_is_given_up_when_its_last_attempt_dies() -> None:
    last = replace(RUNNING, attempts=MAX_ATTEMPTS)

    assert isinstance(checked(replace(RUNNING, attempts=MAX_ATTEMPTS - 1), NOW + LEASE_S), Job)
    assert checked(last, NOW + LEASE_S) is GIVEN_UP
    assert (GIVEN_UP.state, GIVEN_UP.error_code, GIVEN_UP.retryable) == (JobState.FAILED, "interrupted", True)
    assert GIVEN_UP.message == "The job was interrupted 3 times and given up."


def test_a_requested_cancellation_takes_effect_when_the_lease_expires() -> None:
    job = replace(RUNNING, is_cancel_requested=True, attempts=MAX_ATTEMPTS)

    assert checked(job, NOW + LEASE_S) is CANCELLED


def test_a_lease_from_before_the_clock_stepped_back_is_cut_to_one_lease_from_now() -> None:
    now = NOW - 86400

    cut = checked(RUNNING, now)

    assert cut == replace(RUNNING, lease_expires_at=now + LEASE_S)
    assert not transitions.is_claim(RUNNING, cut)


def test_a_requeued_job_loses_its_worker_and_the_attempt() -> None:
    assert transitions.requeued(RUNNING) == replace(
        RUNNING, state=JobState.QUEUED, attempts=0, worker_id=None, lease_expires_at=None
    )
    assert transitions.requeued(replace(RUNNING, is_cancel_requested=True)) is CANCELLED


def test_a_cancellation_depends_on_the_state() -> None:
    ended = completed(RUNNING, SUCCESS).job

    assert transitions.cancel_requested(QUEUED) is CANCELLED
    assert transitions.cancel_requested(RUNNING) == replace(RUNNING, is_cancel_requested=True)
    assert transitions.cancel_requested(ended) is ended


@pytest.mark.parametrize("job", [None, QUEUED, completed(RUNNING, SUCCESS).job, replace(RUNNING, attempts=2)])
def test_a_lease_holds_only_for_its_own_attempt(job: Job | None) -> None:
    assert transitions.held(RUNNING, RUNNING.lease) is RUNNING
    with pytest.raises(LeaseLost, match="job 5 is no longer held by w1, attempt 1"):
        transitions.held(job, RUNNING.lease)


def test_a_repeated_completion_under_one_lease_changes_nothing() -> None:
    ended = completed(RUNNING, SUCCESS).job

    assert transitions.completion(RUNNING, RUNNING.lease, SUCCESS) is SUCCESS
    assert transitions.completion(ended, RUNNING.lease, FAILURE) is ended
    with pytest.raises(LeaseLost):
        transitions.completion(ended, Lease(5, "w2", 1), FAILURE)


def test_a_completion_writes_the_record_the_outbox_and_the_ledger() -> None:
    end = completed(RUNNING, replace(SUCCESS, upload_warning="The bucket is unavailable."), now=NOW + 12)

    assert (end.job.state, end.job.finished_at, end.job.expires_at) == (JobState.SUCCESS, NOW + 12, NOW + 1012)
    assert (end.job.lease_expires_at, end.job.progress) == (None, Progress("", 100))
    webhook, upload = end.tasks
    assert (webhook.id, webhook.kind, webhook.target) == ("msg_0", "webhook", NEW.webhook_url)
    assert (upload.id, upload.kind, upload.target) == ("msg_1", "upload", "")
    assert (webhook.give_up_at, upload.give_up_at) == (NOW + 12 + 7200, NOW + 12 + 86400)
    assert {(task.state, task.next_attempt_at, task.scheduled_at) for task in end.tasks} == {
        ("pending", NOW + 12, NOW + 12)
    }
    assert (end.usage.state, end.usage.seconds, end.usage.gpu_seconds) == (JobState.SUCCESS, 4.0, 2.5)
    assert (end.usage.created_at, end.usage.finished_at, end.usage.track_id) == (NOW, NOW + 12, 7)


def test_a_failed_job_keeps_its_progress_and_without_a_webhook_has_no_task() -> None:
    job = replace(RUNNING, webhook_url=None, progress=Progress("generate", 40))

    end = completed(job, FAILURE)

    assert (end.job.progress, end.tasks) == (Progress("generate", 40), ())


def test_counters_follow_the_state_and_unsuccessful_jobs_give_the_quota_back() -> None:
    def change(before: Job | None, after: Job) -> tuple[int, int, int]:
        found = transitions.usage_change(before, after)
        assert found == UsageChange(found.queued, found.running, "2026-06", found.month_calls)
        return found.queued, found.running, found.month_calls

    later = NOW + 40 * 86400
    failed = completed(RUNNING, FAILURE, now=later).job
    assert change(None, QUEUED) == (1, 0, 1)
    assert change(QUEUED, RUNNING) == (-1, 1, 0)
    assert change(RUNNING, replace(RUNNING, attempts=2)) == (0, 0, 0)
    assert change(RUNNING, QUEUED) == (1, -1, 0)
    assert change(RUNNING, completed(RUNNING, SUCCESS, now=later).job) == (0, -1, 0)
    assert change(RUNNING, failed) == (0, -1, -1)
    assert change(QUEUED, completed(QUEUED, CANCELLED).job) == (-1, 0, -1)
    assert change(failed, replace(failed, result=replace(FAILURE, message="x"))) == (0, 0, 0)
    with pytest.raises(AssertionError, match="failed -> queued"):
        transitions.usage_change(failed, QUEUED)


def test_a_result_is_replaced_only_by_one_of_the_same_state() -> None:
    ended = completed(RUNNING, SUCCESS).job
    other = replace(SUCCESS, engine="trellis")

    assert transitions.result_replaced(ended, other) == replace(ended, result=other)
    with pytest.raises(InvalidRequest, match="Job 5 is success, not failed"):
        transitions.result_replaced(ended, FAILURE)


def test_only_an_ended_job_is_deletable() -> None:
    transitions.check_deletable(completed(RUNNING, SUCCESS).job)
    with pytest.raises(InvalidRequest, match="Job 5 is running; cancel it before deleting it"):
        transitions.check_deletable(RUNNING)


def test_an_idempotency_key_repeats_only_the_same_body() -> None:
    assert transitions.repeated(QUEUED, NEW) is QUEUED
    with pytest.raises(InvalidRequest, match="used before with another body"):
        transitions.repeated(QUEUED, replace(NEW, request_sha256="1" * 64))


def test_another_keys_job_reads_as_missing() -> None:
    assert transitions.visible(QUEUED, 5, api_key_id="key") is transitions.visible(QUEUED, 5, api_key_id=None)
    for job, api_key_id in ((QUEUED, "other"), (None, None)):
        with pytest.raises(NotFound, match="There is no job with the id 5"):
            transitions.visible(job, 5, api_key_id=api_key_id)


def test_the_running_limit_counts_the_jobs_that_run() -> None:
    assert transitions.may_run_more(KeyLimits(), running=100)
    assert transitions.may_run_more(KeyLimits(running=3), running=2)
    assert not transitions.may_run_more(KeyLimits(running=3), running=3)


def webhook() -> OutboxTask:
    return completed(RUNNING, SUCCESS).tasks[0]


@pytest.mark.parametrize(
    ("next_attempt_at", "scheduled_at", "is_due"),
    [
        (NOW, NOW, True),
        (NOW + 1, NOW, False),
        (NOW + MAX_PAUSE_S, NOW, False),
        (NOW + MAX_PAUSE_S + 1, NOW, True),  # written before the clock stepped back
        (NOW + 1, NOW + MAX_SKEW_S, False),
        (NOW + 1, NOW + MAX_SKEW_S + 1, True),  # the same
    ],
)
def test_a_task_is_due_at_its_time_and_after_the_clock_stepped_back(
    next_attempt_at: float, scheduled_at: float, is_due: bool
) -> None:
    assert transitions.is_task_due(next_attempt_at, scheduled_at=scheduled_at, now=NOW) is is_due


def test_a_claim_hides_a_task_for_at_most_the_longest_pause() -> None:
    claimed = transitions.task_claimed(webhook(), now=NOW + 5, claim_s=60)

    assert (claimed.next_attempt_at, claimed.scheduled_at) == (NOW + 65, NOW + 5)
    assert transitions.task_claimed(webhook(), now=NOW, claim_s=1e9).next_attempt_at == NOW + MAX_PAUSE_S


def test_an_attempt_settles_a_task() -> None:
    def settled(error: str, retry_in_s: float | None) -> OutboxTask:
        result = AttemptResult(status=503, error=error, seconds=0.2, retry_in_s=retry_in_s)
        task, attempt = transitions.task_settled(webhook(), result, attempts_before=4, now=NOW)
        assert (attempt.number, attempt.at, attempt.status, attempt.error) == (5, NOW, 503, error)
        assert (task.attempts, task.last_status, task.last_error) == (1, 503, error)
        return task

    assert (settled("", None).state, settled("", None).done_at) == ("done", NOW)
    assert (settled("no", None).state, settled("no", None).done_at) == ("given_up", NOW)
    assert settled("no", 7201.0).state == "given_up"
    again = settled("no", 100.0)
    assert (again.state, again.next_attempt_at, again.done_at) == ("pending", NOW + 100, None)


def test_redelivery_starts_a_webhook_afresh_under_its_id() -> None:
    given_up = replace(webhook(), state="given_up", attempts=9, done_at=NOW)

    again = transitions.redelivered([given_up], 5, now=NOW + 9000, retention=RETENTION)

    assert (again.id, again.state, again.attempts, again.done_at) == (given_up.id, "pending", 0, None)
    assert (again.next_attempt_at, again.give_up_at) == (NOW + 9000, NOW + 9000 + 7200)
    with pytest.raises(InvalidRequest, match="Job 5 has not ended, or has no webhook"):
        transitions.redelivered([replace(given_up, kind="upload")], 5, now=NOW, retention=RETENTION)


def test_a_completion_counts_the_kernels_that_were_replaced() -> None:
    result = replace(SUCCESS, kernel_fallbacks=("radiance_field", "sparse_conv"))

    sums = transitions.completion_sums(completed(RUNNING, result, now=RUNNING.created_at + 7.0), result)

    assert [added for added in sums if added[0] == "kernel_fallbacks"] == [
        ("kernel_fallbacks", "radiance_field", 1),
        ("kernel_fallbacks", "sparse_conv", 1),
    ]


def test_sums_of_a_completion_and_of_an_attempt() -> None:
    end = completed(RUNNING, SUCCESS, now=RUNNING.created_at + 7.0)
    assert sorted(transitions.completion_sums(end, SUCCESS)) == [
        ("durations", "job success preview 6", 1.0),
        ("durations", "job success preview sum", 7.0),
        ("durations", "stage generate preview 5", 1.0),
        ("durations", "stage generate preview sum", 3.0),
        ("durations", "stage intake preview 3", 1.0),
        ("durations", "stage intake preview sum", 1.0),
        ("ended", "success", 1),
        ("gpu_seconds", "", 2.5),
        ("stage_runs", "generate", 1),
        ("stage_runs", "intake", 1),
        ("stage_seconds", "generate", 3.0),
        ("stage_seconds", "intake", 1.0),
    ]
    task, attempt = transitions.task_settled(
        webhook(), AttemptResult(None, "no", 1.0, None), attempts_before=0, now=NOW
    )
    assert transitions.attempt_sums(task, attempt) == [("task_attempts", "webhook error", 1)]


def test_usage_is_summed_by_day_and_key() -> None:
    rows = [completed(RUNNING, result).usage for result in (SUCCESS, FAILURE, SUCCESS)]
    rows.append(completed(RUNNING, replace(SUCCESS, state=JobState.CANCELLED), now=NOW + 86400).usage)

    assert transitions.usage_by_day(map(transitions.usage_group, rows)) == [
        UsageDay("key", "2026-06-01", calls=3, succeeded=2, failed=1, cancelled=0, seconds=8.0, gpu_seconds=5.0),
        UsageDay("key", "2026-06-02", calls=1, succeeded=0, failed=0, cancelled=1, seconds=4.0, gpu_seconds=2.5),
    ]
    assert transitions.usage_by_day([]) == []


def test_the_age_of_the_queue_is_that_of_its_head() -> None:
    assert transitions.oldest_queued_s([(2, NOW - 50), (1, NOW - 9)], now=NOW) == 9
    assert transitions.oldest_queued_s([(1, NOW + 9)], now=NOW) == transitions.oldest_queued_s([], now=NOW) == 0


def test_timings_average_a_stage_over_the_jobs_that_had_it() -> None:
    timings = transitions.mean_timings([{"intake": 1.0, "generate": 3.0}, {"generate": 5.0}])

    assert (timings.calls, timings.seconds) == (2, 4.5)
    assert timings.by_stage == {"intake": 1.0, "generate": 4.0}
    assert transitions.mean_timings([]).calls == 0


def test_requests_of_failed_jobs_are_kept_newest_first_while_their_sums_fit() -> None:
    bounds = Retention(failed_requests_bytes=30, failed_requests_bytes_per_key=20)

    def deleted(*kept: tuple[int, str, float, int]) -> list[int]:
        return transitions.requests_to_delete(
            [FailedRequest(job_id, key, NOW - age_s, size) for job_id, key, age_s, size in kept],
            now=NOW,
            retention=bounds,
        )

    assert deleted() == []
    assert deleted((1, "a", 0.0, 10), (2, "a", 1.0, 10), (3, "b", 2.0, 10)) == []
    assert deleted((1, "a", 2.0, 10), (2, "a", 1.0, 10), (3, "a", 0.0, 10)) == [1]
    assert deleted((1, "a", 0.0, 10), (2, "b", 1.0, 20), (3, "c", 2.0, 1)) == [3]
    # What the bound of a key deletes takes no place from the other keys.
    assert deleted((1, "a", 0.0, 21), (2, "b", 1.0, 20), (3, "c", 2.0, 10)) == [1]
    assert deleted((1, "a", REQUEST_LIFETIME_S - 1, 1), (2, "a", REQUEST_LIFETIME_S, 1)) == [2]
