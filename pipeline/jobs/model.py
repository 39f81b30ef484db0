"""The records that the service stores: jobs, API keys, the outbox, usage. Frozen, plain data.

Knows nothing of HTTP, databases or what the stages of a job do. Times are seconds since 1970, as the store's clock
reads; durations come from monotonic clocks and never from subtracting two of these, except for one metric, the time
from the submit of a job to its end.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import Field, PlainSerializer, PlainValidator, TypeAdapter

from pipeline.jobs.histograms import Histogram, Series
from pipeline.storage.base import Artifact

ApiKeyId = Annotated[str, Field(alias="key_id")]
"""The `id` of an `ApiKey`. Stored records call it `key_id`, as version 0.1.0 did."""

MAX_JOB_ID = 2**31 - 1


class JobState(StrEnum):
    """The state of a job. The HTTP API reports the first two as processing and the others by name."""

    QUEUED = "queued"
    RUNNING = "running"
    SUCCESS = "success"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def is_final(self) -> bool:
        """Whether a job in this state never changes its state again."""
        return self in FINAL_STATES


FinalState = Literal[JobState.SUCCESS, JobState.FAILED, JobState.CANCELLED]
FINAL_STATES = frozenset({JobState.SUCCESS, JobState.FAILED, JobState.CANCELLED})

TRANSITIONS: Mapping[JobState, frozenset[JobState]] = {
    JobState.QUEUED: frozenset({JobState.RUNNING, JobState.CANCELLED}),
    # Running to running: claimed again after its lease expired. Running to queued: requeued by its worker.
    JobState.RUNNING: frozenset({JobState.RUNNING, JobState.QUEUED, *FINAL_STATES}),
    JobState.SUCCESS: frozenset(),
    JobState.FAILED: frozenset(),
    JobState.CANCELLED: frozenset(),
}


def may_follow(before: JobState, after: JobState) -> bool:
    """Whether the state diagram has an arrow from one state to the other."""
    return after in TRANSITIONS[before]


@dataclass(frozen=True)
class ExportSource:
    """The finished job whose files an export makes anew.

    Attributes:
        job_id: the job that the caller named.
        file_prefix: of the job that generated: the name of the kept generation.
    """

    job_id: int
    file_prefix: str


@dataclass(frozen=True)
class JobMeta:
    """What a submit records for the answers and for the worker. Stored as one flat JSON object.

    Attributes:
        parameters: every effective parameter, by name.
        notes: sentences for the caller about the request.
        traceparent: the trace that the submit belongs to (W3C Trace Context), None where traces are off.
        export_of: what an export is made from, None for a job that generates.
    """

    parameters: Mapping[str, Any] = field(default_factory=dict[str, Any])
    notes: tuple[str, ...] = ()
    traceparent: str | None = None
    export_of: ExportSource | None = None

    def to_stored(self) -> dict[str, Any]:
        """The parameters with the other fields beside them, as version 0.1.0 wrote them."""
        trace = {} if self.traceparent is None else {"traceparent": self.traceparent}
        source = {} if self.export_of is None else {"export_source": asdict(self.export_of)}
        return {**self.parameters, "notes": list(self.notes), **trace, **source}

    @staticmethod
    def from_stored(stored: Mapping[str, Any] | JobMeta) -> JobMeta:
        """The record that `to_stored` wrote."""
        if isinstance(stored, JobMeta):
            return stored
        beside = ("notes", "traceparent", "export_source")
        parameters = {name: value for name, value in stored.items() if name not in beside}
        source = stored.get("export_source")
        return JobMeta(
            parameters,
            tuple(stored.get("notes", ())),
            stored.get("traceparent"),
            None if source is None else ExportSource(**source),
        )


StoredMeta = Annotated[JobMeta, PlainValidator(JobMeta.from_stored), PlainSerializer(JobMeta.to_stored)]


@dataclass(frozen=True)
class Progress:
    """How far a running job is: the name of the stage, and the percent of the whole job."""

    stage: str = ""
    percent: int = 0


@dataclass(frozen=True)
class JobResult:
    """The result of a job: written by `run_job`, stored with the job, read by fetch and the webhook.

    Attributes:
        state: success, failed or cancelled.
        message: one sentence when the job did not succeed, else "".
        error_code: `ImageTo3DError.code` of the error that ended the job, else "".
        retryable: whether the same request may succeed when sent again.
        warnings: sentences for the caller about what was ignored, assumed or done differently.
        upload_warning: why the files are in temporary storage instead of the caller's bucket; "" unless an upload is
            pending. Delivery retries the upload until the temporary copy expires.
        artifacts: the delivered files, the model first; empty unless `state` is success.
        stage_seconds: wall seconds by stage, from a monotonic clock; only stages that ran.
        gpu_seconds: accelerator seconds, including those of a generation that failed.
        kernel_fallbacks: names of the GPU kernels that a slower implementation replaced.
        engine: the engine that ran, "" where none did.
        meta: every effective parameter, by name.
    """

    state: FinalState
    message: str = ""
    error_code: str = ""
    retryable: bool = False
    warnings: tuple[str, ...] = ()
    upload_warning: str = ""
    artifacts: tuple[Artifact, ...] = ()
    stage_seconds: Mapping[str, float] = field(default_factory=dict[str, float])
    gpu_seconds: float = 0.0
    kernel_fallbacks: tuple[str, ...] = ()
    engine: str = ""
    meta: Mapping[str, Any] = field(default_factory=dict[str, Any])

    @property
    def seconds(self) -> float:
        """Seconds of work, without the wait in the queue."""
        return sum(self.stage_seconds.values())

    @property
    def all_warnings(self) -> tuple[str, ...]:
        """The warnings as the caller reads them, including the one about a pending upload."""
        return (*self.warnings, self.upload_warning) if self.upload_warning else self.warnings


@dataclass(frozen=True)
class NewJob:
    """A job as it is submitted.

    Attributes:
        api_key_id: whose job it is.
        file_prefix: the names of all its files begin with it.
        request: the validated request as JSON, without the key; deleted with its images when the job ends,
            unless it failed through no fault of its caller.
        request_sha256: hex digest of the body as sent, to tell a repeated request from another one.
        meta: effective parameters, and what the answers need before the job has ended.
        track_id: the caller's own identifier, echoed in the type that it was sent in.
        webhook_url: receives the result, None without a webhook.
        idempotency_key: the caller's header, None without one.
        engine: only workers that have this engine claim it; "" is any worker.
    """

    api_key_id: ApiKeyId
    file_prefix: str
    request: bytes
    request_sha256: str
    meta: StoredMeta = JobMeta()
    track_id: str | int | None = None
    webhook_url: str | None = None
    idempotency_key: str | None = None
    engine: str = ""


@dataclass(frozen=True)
class Lease:
    """A worker's right to write to one job: void as soon as the job ends or is claimed again."""

    job_id: int
    worker_id: str
    attempt: int


@dataclass(frozen=True)
class Job:
    """A job as the store has it.

    Attributes:
        id: 1 to 2^31-1, unique, not guessable.
        seq: grows with every submit; the order of the queue and of lists.
        state: final exactly if `result` is there.
        attempts: how often it was claimed, without the attempts that do not count.
        worker_id: the worker that holds it, or held it last.
        lease_expires_at: when another worker may claim it; None unless running.
        is_cancel_requested: the caller asked for it to stop.
        started_at: when it was first claimed.
        expires_at: when the record and its files may be deleted; None unless final.
        engine: as for `NewJob`; "" in records of version 0.1.0 too.
    """

    id: int
    seq: int
    api_key_id: ApiKeyId
    file_prefix: str
    state: JobState
    created_at: float
    request_sha256: str
    meta: StoredMeta = JobMeta()
    track_id: str | int | None = None
    webhook_url: str | None = None
    idempotency_key: str | None = None
    progress: Progress = Progress()
    attempts: int = 0
    worker_id: str | None = None
    lease_expires_at: float | None = None
    is_cancel_requested: bool = False
    started_at: float | None = None
    finished_at: float | None = None
    expires_at: float | None = None
    result: Annotated[JobResult | None, Field(alias="ending")] = None
    engine: str = ""

    @property
    def lease(self) -> Lease:
        """The lease that the last claim of this job granted.

        Raises:
            ValueError: the job was never claimed.
        """
        if self.worker_id is None:
            raise ValueError(f"job {self.id} was never claimed")
        return Lease(self.id, self.worker_id, self.attempts)


@dataclass(frozen=True)
class JobFilter:
    """The jobs of a list; None is no filter. A `track_id` that is a number matches its digits."""

    api_key_id: str | None
    state: JobState | None = None
    track_id: str | int | None = None


@dataclass(frozen=True)
class RateWindow:
    """One key's submits in the current minute, for the rate limit headers."""

    limit: int
    remaining: int
    reset_at: float


@dataclass(frozen=True)
class Submitted:
    """The store's answer to a submit.

    Attributes:
        job: the job; with an idempotency key seen before, the first one.
        is_new: whether this submit created it.
        queue_position: 1 is next, 0 is not queued.
        rate: the key's current minute; None where the key has no such limit or the job is not new.
    """

    job: Job
    is_new: bool
    queue_position: int
    rate: RateWindow | None = None


@dataclass(frozen=True)
class KeyLimits:
    """The limits of one key; None is no limit.

    Attributes:
        queued: jobs queued at once.
        running: jobs running at once; more of them wait.
        per_minute: submits in one minute of the clock.
        per_month: jobs in one month (UTC) that succeeded or may still do so.
    """

    queued: int | None = None
    running: int | None = None
    per_minute: int | None = None
    per_month: int | None = None


@dataclass(frozen=True)
class ApiKey:
    """A caller. The key itself is stored nowhere: only its SHA-256, and its first characters to tell keys apart.

    Attributes:
        secret_number: how often its webhook secret was rotated; the secret is derived from it.
        secret_rotated_at: when that was last; webhooks carry the signature of the secret before for a while.
    """

    id: str
    name: str
    sha256: str
    shown: str
    created_at: float
    limits: KeyLimits = KeyLimits()
    revoked_at: float | None = None
    secret_number: int = 0
    secret_rotated_at: float | None = None


@dataclass(frozen=True)
class KeyUse:
    """What a key has in use of its limits."""

    queued: int
    running: int
    this_minute: int
    this_month: int


TaskKind = Literal["webhook", "upload"]
TaskState = Literal["pending", "done", "given_up"]


@dataclass(frozen=True)
class OutboxTask:
    """Work that is retried after a job's end until it succeeds; written in the same transaction as the final state.

    Attributes:
        id: the same over all attempts and redeliveries; a webhook's `webhook-id`.
        kind: `webhook` sends the result to the caller; `upload` moves files from temporary storage to their bucket.
        target: the webhook's URL; "" for an upload.
        attempts: how often it was tried since it was created or redelivered.
        next_attempt_at: when it is due; also the end of a sender's claim on it.
        give_up_at: when retries end.
        last_status: the receiver's HTTP status, None where there was no answer.
        last_error: one sentence, "" after success.
        scheduled_at: when `next_attempt_at` was written; 0 where version 0.1.0 did not record it. The stores persist
            it by other means, so it is part neither of the JSON nor of the task's identity.
    """

    id: str
    kind: TaskKind
    job_id: int
    api_key_id: ApiKeyId
    target: str
    state: TaskState
    attempts: int
    created_at: float
    next_attempt_at: float
    give_up_at: float
    last_status: int | None = None
    last_error: str = ""
    done_at: float | None = None
    scheduled_at: Annotated[float, Field(exclude=True)] = field(default=0.0, compare=False)


@dataclass(frozen=True)
class AttemptResult:
    """The result of one attempt at an `OutboxTask`.

    Attributes:
        status: the receiver's HTTP status, None without an answer.
        error: "" after success, which ends the task.
        seconds: how long the attempt took.
        retry_in_s: pause before the next attempt after an error; None gives the task up.
    """

    status: int | None
    error: str
    seconds: float
    retry_in_s: float | None


@dataclass(frozen=True)
class TaskAttempt:
    """One attempt at an `OutboxTask`; numbered over all redeliveries."""

    task_id: str
    number: int
    at: float
    status: int | None
    error: str
    seconds: float


@dataclass(frozen=True)
class UsageRow:
    """One ended job in the ledger; it outlives the job's own record.

    Attributes:
        seconds: seconds of work, without the wait in the queue.
        gpu_seconds: accelerator seconds.
    """

    api_key_id: ApiKeyId
    job_id: int
    state: FinalState
    engine: str
    seconds: float
    gpu_seconds: float
    created_at: float
    finished_at: float
    track_id: str | int | None = None


@dataclass(frozen=True)
class LedgerFilter:
    """The part of the ledger with `since <= finished_at < until`; None is no bound."""

    api_key_id: str | None
    since: float | None = None
    until: float | None = None

    def matches(self, row: UsageRow) -> bool:
        """Whether a row belongs to this part."""
        return (
            self.api_key_id in (None, row.api_key_id)
            and (self.since is None or row.finished_at >= self.since)
            and (self.until is None or row.finished_at < self.until)
        )


@dataclass(frozen=True)
class UsageDay:
    """One key's ended jobs of one day (UTC, `2026-01-31`)."""

    api_key_id: ApiKeyId
    day: str
    calls: int
    succeeded: int
    failed: int
    cancelled: int
    seconds: float
    gpu_seconds: float


@dataclass(frozen=True)
class WorkerRecord:
    """A worker process as of its last heartbeat.

    Attributes:
        engine: its engines, separated by commas.
    """

    worker_id: str
    engine: str
    seen_at: float
    is_ready: bool
    job_id: int | None = None

    @property
    def engines(self) -> tuple[str, ...]:
        """Names of the engines that it has."""
        return tuple(self.engine.split(",")) if self.engine else ()


@dataclass(frozen=True)
class Timings:
    """Mean seconds of the last few successful jobs.

    Attributes:
        calls: how many jobs there were; with 0 nothing is known.
        seconds: of all stages of a job together.
        by_stage: of each stage.
    """

    calls: int
    seconds: float
    by_stage: Mapping[str, float] = field(default_factory=dict[str, float])


@dataclass(frozen=True)
class StoreMetrics:
    """The values of `/metrics`. Counters only grow, and outlive the records.

    Attributes:
        submitted: jobs ever accepted.
        ended: jobs ever ended, by state.
        states: jobs on record now, by state.
        oldest_queued_s: age of the job at the head of the queue, 0 with none.
        stage_seconds: by stage, the sum over all jobs.
        stage_runs: by stage, how many jobs had it.
        gpu_seconds: the sum over all jobs.
        kernel_fallbacks: by GPU kernel, how many jobs ran without it.
        task_attempts: by (kind, `ok` or `error`).
        tasks_pending: by kind.
        failed_requests_bytes: what failed jobs keep, so that the operator can submit them again.
        durations: histograms of jobs, from submit to end, and of stages.
    """

    submitted: int
    ended: Mapping[str, int]
    states: Mapping[str, int]
    oldest_queued_s: float
    stage_seconds: Mapping[str, float]
    stage_runs: Mapping[str, int]
    gpu_seconds: float
    kernel_fallbacks: Mapping[str, int]
    task_attempts: Mapping[tuple[str, str], int]
    tasks_pending: Mapping[str, int]
    failed_requests_bytes: int
    durations: Mapping[Series, Histogram]


def as_stored(record: object) -> dict[str, Any]:
    """A record of this module as plain JSON data, under the stored field names."""
    return TypeAdapter(type(record)).dump_python(record, mode="json", by_alias=True)
