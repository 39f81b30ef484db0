"""What `pipeline.jobs.stores.kv.store` stores: the head, which is the value of the commit log, and documents.

The head holds all that transactions decide by: keys with their counters, jobs that have not ended, pending tasks, the
totals. Documents hold the rest: ended jobs with their results, tasks and attempts; pages that list ended jobs by `seq`;
pages of the ledger by day. A document that was just written is in the head (`written`), so that one commit changes
both, and moves to an entry of its own later; see `pipeline.jobs.stores.kv.transaction`.

Names of entries and of stored fields are those of version 0.1.0: a field with an alias is stored under the alias.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import cached_property
from typing import Annotated, Any, Generic, TypeVar

from pydantic import Field, TypeAdapter

from pipeline.jobs.limits import month_of, submits_this_minute
from pipeline.jobs.model import (
    ApiKey,
    ApiKeyId,
    Job,
    JobState,
    KeyUse,
    OutboxTask,
    Progress,
    TaskAttempt,
    TaskKind,
    UsageRow,
    WorkerRecord,
)
from pipeline.jobs.transitions import UsageChange

PAGE_JOBS = 256
"""Jobs by `seq` on one page of the list of ended jobs."""
PAGE_ROWS = 128
"""Rows on one page of the ledger."""


@dataclass
class Account:
    """A key and its counters; `months` counts submits without the jobs that ended unsuccessfully."""

    key: ApiKey
    queued: int = 0
    running: int = 0
    minute: int = 0
    minute_calls: int = 0
    months: dict[str, int] = field(default_factory=dict[str, int])

    def use(self, *, now: float) -> KeyUse:
        """What the key has in use now."""
        this_minute = submits_this_minute(self.minute, self.minute_calls, now=now)
        return KeyUse(self.queued, self.running, this_minute, this_month=self.months.get(month_of(now), 0))

    def count(self, change: UsageChange) -> None:
        """Apply a transition's change of the counters."""
        self.queued += change.queued
        self.running += change.running
        if change.month_calls:
            self.months[change.month] = self.months.get(change.month, 0) + change.month_calls


@dataclass(frozen=True)
class RequestPlace:
    """Where a job's request is stored: `chunks` entries under one token; `size_bytes` is 0 in heads without it."""

    token: str
    chunks: int
    size_bytes: int = 0


@dataclass(frozen=True)
class KeptRequest:
    """The request of a failed job, which the operator may submit again; `api_key_id` is "" in heads without it."""

    request: RequestPlace
    finished_at: float
    api_key_id: Annotated[str, Field(alias="key_id")] = ""


@dataclass
class OpenJob:
    """A job that has not ended.

    Attributes:
        lease_epoch: grows whenever a commit sets the lease; heartbeats of another epoch are void.
    """

    job: Job
    request: RequestPlace
    lease_epoch: Annotated[int, Field(alias="term")] = 0


@dataclass(frozen=True)
class Heartbeat:
    """A running job's lease and progress as its worker last wrote them, to an entry of their own."""

    lease_expires_at: float
    progress: Progress


@dataclass(frozen=True)
class PendingTask:
    """A pending task's schedule, which only the head has; its other fields are in the job's document.

    Attributes:
        number: the order in which tasks were created.
        scheduled_at: when `next_attempt_at` was written; 0 in heads that do not record it.
    """

    kind: TaskKind
    job_id: int
    number: int
    next_attempt_at: float
    scheduled_at: Annotated[float, Field(alias="planned_at")] = 0.0


@dataclass
class Totals:
    """Counters that outlive the records; `task_attempts` by kind and outcome, separated by a space, `durations` as in
    `pipeline.jobs.histograms`."""

    submitted: int = 0
    ended: dict[str, int] = field(default_factory=dict[str, int])
    stage_seconds: dict[str, float] = field(default_factory=dict[str, float])
    stage_runs: dict[str, int] = field(default_factory=dict[str, int])
    gpu_seconds: float = 0.0
    kernel_fallbacks: dict[str, int] = field(default_factory=dict[str, int])
    task_attempts: dict[str, int] = field(default_factory=dict[str, int])
    durations: dict[str, float] = field(default_factory=dict[str, float])
    restarts: int = 0


@dataclass(frozen=True)
class Success:
    """The durations of a successful job, for the estimate of a wait."""

    seconds: float
    stage_seconds: dict[str, float]


@dataclass(frozen=True)
class Written:
    """A document that was written recently; None if it was deleted. `at` is wall time."""

    at: float
    document: Any


@dataclass
class Head:
    """The value of the commit log.

    Attributes:
        seq: of the newest job.
        states: ended jobs on record, by state.
        pages: pages of ended jobs, and the earliest time at which a record on them expires.
        days: pages of the ledger by day.
        kept: requests of failed jobs, by the job's id.
    """

    seq: int = 0
    accounts: dict[str, Account] = field(default_factory=dict[str, Account])
    open: dict[int, OpenJob] = field(default_factory=dict[int, OpenJob])
    tasks: dict[str, PendingTask] = field(default_factory=dict[str, PendingTask])
    totals: Totals = field(default_factory=Totals)
    successes: list[Success] = field(default_factory=list[Success])
    states: dict[str, int] = field(default_factory=dict[str, int])
    pages: dict[int, float] = field(default_factory=dict[int, float])
    days: dict[str, int] = field(default_factory=dict[str, int])
    written: dict[str, Written] = field(default_factory=dict[str, Written])
    kept: dict[int, KeptRequest] = field(default_factory=dict[int, KeptRequest])


@dataclass
class JobDocument:
    """An ended job with its tasks and their attempts. `number` is that of its first task."""

    job: Job
    number: int
    tasks: list[OutboxTask] = field(default_factory=list[OutboxTask])
    attempts: list[TaskAttempt] = field(default_factory=list[TaskAttempt])


@dataclass(frozen=True)
class ListedJob:
    """What lists and the cleaner filter ended jobs by."""

    id: int
    api_key_id: ApiKeyId
    state: JobState
    track_id: str | int | None
    expires_at: float


T = TypeVar("T")


class Codec(Generic[T]):
    """Converts values of one type to JSON and back, under the stored field names (the aliases).

    The converter is built at its first use: a starting web container answers before it needs any.
    """

    def __init__(self, kind: Any) -> None:
        self._kind = kind

    @cached_property
    def _adapter(self) -> TypeAdapter[T]:
        return TypeAdapter(self._kind)

    def to_json(self, value: T) -> bytes:
        """The value as JSON bytes."""
        return self._adapter.dump_json(value, by_alias=True)

    def from_json(self, content: bytes) -> T:
        """The value that `to_json` wrote."""
        return self._adapter.validate_json(content)

    def to_plain(self, value: T) -> Any:
        """The value as plain JSON data."""
        return self._adapter.dump_python(value, mode="json", by_alias=True)

    def from_plain(self, data: Any) -> T:
        """The value that `to_plain` wrote."""
        return self._adapter.validate_python(data)


HEAD: Codec[Head] = Codec(Head)
HEARTBEAT: Codec[Heartbeat] = Codec(Heartbeat)
JOB: Codec[JobDocument] = Codec(JobDocument)
LISTED: Codec[dict[int, ListedJob]] = Codec(dict[int, ListedJob])  # by seq
ROWS: Codec[list[UsageRow]] = Codec(list[UsageRow])
WORKERS: Codec[dict[str, WorkerRecord]] = Codec(dict[str, WorkerRecord])


def pack(document: Any) -> bytes:
    """A document, plain data, as the value of an entry."""
    return json.dumps(document, separators=(",", ":")).encode()


def unpack(value: bytes) -> Any:
    """The document that `pack` wrote."""
    return json.loads(value)


def job_key(job_id: int) -> str:
    """The document of an ended job."""
    return f"job/{job_id}"


def page_key(number: int) -> str:
    """A page of the list of ended jobs."""
    return f"page/{number}"


def rows_key(day: str, number: int) -> str:
    """A page of the ledger."""
    return f"usage/{day}/{number}"


def bucket_key(api_key_id: str) -> str:
    """A key's encrypted bucket."""
    return f"s3/{api_key_id}"


def idempotency_key(api_key_id: str, key: str) -> str:
    """The id of the job that was submitted with an idempotency key."""
    return f"idempotency/{api_key_id}/{key}"


def heartbeat_key(job_id: int, lease_epoch: int) -> str:
    """The heartbeat of a running job."""
    return f"beat/{job_id}/{lease_epoch}"


def chunk_key(token: str, number: int) -> str:
    """A piece of a request."""
    return f"request/{token}/{number}"
