"""What `pipeline.jobs.stores.kv.store` keeps: the one value that is changed in atomic steps, and the documents beside it.

The head holds all that steps decide by: keys with their counters, jobs that have not ended, tasks that are due, the
totals. What ended is in documents: a job with its result, its tasks and their attempts; pages that list ended jobs by
their `seq`; pages of the ledger by day. A document that was just written stands in the head (`written`), so that one
transaction changes both, and moves to an entry of its own later; see `pipeline.jobs.stores.kv.transaction`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Annotated, Any, Generic, TypeVar

from pydantic import Field, TypeAdapter

from pipeline.jobs.model import (
    ApiKey,
    ApiKeyId,
    Job,
    JobState,
    OutboxTask,
    Progress,
    TaskAttempt,
    TaskKind,
    UsageRow,
    WorkerRecord,
)

PAGE_JOBS = 256
"""Jobs by `seq` on one page of the list of ended jobs."""
PAGE_ROWS = 128
"""Rows on one page of the ledger."""


@dataclass
class Account:
    """A key and what it has in use; `months` counts calls less those that ended without success."""

    key: ApiKey
    queued: int = 0
    running: int = 0
    minute: int = 0
    minute_calls: int = 0
    months: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class RequestPlace:
    """Where a job's request is: `chunks` entries under one token."""

    token: str
    chunks: int


@dataclass
class OpenJob:
    """A job that has not ended.

    Attributes:
        lease_epoch: grows whenever the head sets the lease; heartbeats of another lease_epoch are void.
    """

    job: Job
    request: RequestPlace
    lease_epoch: Annotated[int, Field(alias="term")] = 0


@dataclass(frozen=True)
class Heartbeat:
    """A running job's lease and progress as its worker wrote them last, beside the head."""

    lease_expires_at: float
    progress: Progress


@dataclass(frozen=True)
class PendingTask:
    """A task that is not settled: it is here and nowhere else that it is due.

    Attributes:
        number: the order in which tasks were made.
        scheduled_at: when `next_attempt_at` was written; 0 in heads of versions that did not note it.
    """

    kind: TaskKind
    job_id: int
    number: int
    next_attempt_at: float
    scheduled_at: Annotated[float, Field(alias="planned_at")] = 0.0


@dataclass
class Totals:
    """Counters that outlive the records; `task_attempts` by kind and outcome with a space between."""

    submitted: int = 0
    ended: dict[str, int] = field(default_factory=dict)
    stage_seconds: dict[str, float] = field(default_factory=dict)
    stage_runs: dict[str, int] = field(default_factory=dict)
    gpu_seconds: float = 0.0
    task_attempts: dict[str, int] = field(default_factory=dict)
    restarts: int = 0


@dataclass(frozen=True)
class Success:
    """What the estimate of a wait needs of a successful job."""

    seconds: float
    stage_seconds: dict[str, float]


@dataclass(frozen=True)
class Written:
    """A document that was written lately; None was deleted. `at` is wall time."""

    at: float
    document: Any


@dataclass
class Head:
    """The value of the cell.

    Attributes:
        seq: of the newest job.
        states: ended jobs on record, by state.
        pages: pages of ended jobs, and the earliest time at which a record on them expires.
        days: pages of the ledger by day.
    """

    seq: int = 0
    accounts: dict[str, Account] = field(default_factory=dict)
    open: dict[int, OpenJob] = field(default_factory=dict)
    tasks: dict[str, PendingTask] = field(default_factory=dict)
    totals: Totals = field(default_factory=Totals)
    successes: list[Success] = field(default_factory=list)
    states: dict[str, int] = field(default_factory=dict)
    pages: dict[int, float] = field(default_factory=dict)
    days: dict[str, int] = field(default_factory=dict)
    written: dict[str, Written] = field(default_factory=dict)


@dataclass
class JobDocument:
    """An ended job and what follows its end. `number` is that of its first task."""

    job: Job
    number: int
    tasks: list[OutboxTask] = field(default_factory=list)
    attempts: list[TaskAttempt] = field(default_factory=list)


@dataclass(frozen=True)
class ListedJob:
    """What lists and the cleaner ask of an ended job before they read it."""

    id: int
    api_key_id: ApiKeyId
    state: JobState
    track_id: str | int | None
    expires_at: float


T = TypeVar("T")


class Codec(Generic[T]):
    """Converts values of one type to JSON and back, under the stored field names (the aliases)."""

    def __init__(self, kind: Any) -> None:
        self._adapter: TypeAdapter[T] = TypeAdapter(kind)

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
    """A document, plain data, as an entry's value."""
    return json.dumps(document, separators=(",", ":")).encode()


def unpack(value: bytes) -> Any:
    """The document that `pack` made an entry's value of."""
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


def idempotency_key(api_key_id: str, word: str) -> str:
    """The id of the job that a key submitted under a word of its own."""
    return f"idempotency/{api_key_id}/{word}"


def heartbeat_key(job_id: int, lease_epoch: int) -> str:
    """The heartbeat of a running job."""
    return f"beat/{job_id}/{lease_epoch}"


def chunk_key(token: str, number: int) -> str:
    """A piece of a request."""
    return f"request/{token}/{number}"
