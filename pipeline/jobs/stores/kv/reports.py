"""What the head and its documents tell about many jobs together: lists, the ledger, timings, metrics. Reads only."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from pipeline.jobs.limits import day_of
from pipeline.jobs.model import Job, JobState, StoreMetrics, Timings, UsageRow
from pipeline.jobs.stores.kv.completion import read_page
from pipeline.jobs.stores.kv.leases import with_heartbeats
from pipeline.jobs.stores.kv.state import JOB, PAGE_JOBS, ROWS, ListedJob, job_key, page_key, rows_key
from pipeline.jobs.stores.kv.transaction import Snapshot

PAGES_AT_ONCE = 8


def read_jobs(snapshot: Snapshot, job_ids: Iterable[int]) -> list[Job]:
    """Those of the jobs that exist, in the order asked for."""
    ids = list(dict.fromkeys(job_ids))
    is_open = snapshot.head.open
    ended = [job_id for job_id in ids if job_id not in is_open]
    documents = snapshot.get_many(job_key(job_id) for job_id in ended)
    jobs = {document["job"]["id"]: JOB.from_plain(document).job for document in documents if document is not None}
    for job in with_heartbeats(snapshot, (is_open[job_id] for job_id in ids if job_id in is_open)):
        jobs[job.id] = job
    return [jobs[job_id] for job_id in ids if job_id in jobs]


@dataclass(frozen=True)
class Wanted:
    """What a list is filtered by; None is no filter. A number and its digits are one `track_id` here."""

    api_key_id: str | None
    state: JobState | None
    track_id: str | None

    def takes(self, job: Job | ListedJob) -> bool:
        """Whether a job passes."""
        return (
            self.api_key_id in (None, job.api_key_id)
            and self.state in (None, job.state)
            and (self.track_id is None or (job.track_id is not None and str(job.track_id) == self.track_id))
        )


def list_jobs(snapshot: Snapshot, wanted: Wanted, *, before_seq: int | None, limit: int) -> list[Job]:
    """Jobs, newest first; pages are read until there are enough."""
    end = snapshot.head.seq + 1 if before_seq is None else before_seq
    jobs = [kept.job for kept in snapshot.head.open.values()]
    found = [(job.seq, job.id) for job in jobs if job.seq < end and wanted.takes(job)]
    numbers = sorted((number for number in snapshot.head.pages if number * PAGE_JOBS < end), reverse=True)
    for start in range(0, len(numbers), PAGES_AT_ONCE):
        some = numbers[start : start + PAGES_AT_ONCE]
        for page in snapshot.get_many(map(page_key, some)):
            found += [(seq, job.id) for seq, job in read_page(page).items() if seq < end and wanted.takes(job)]
        if sum(seq >= some[-1] * PAGE_JOBS for seq, _ in found) >= limit:
            break
    return read_jobs(snapshot, [job_id for _, job_id in sorted(found, reverse=True)[:limit]])


def expired_jobs(snapshot: Snapshot, *, now: float, limit: int) -> list[Job]:
    """Ended jobs whose retention is over and whose tasks are settled, oldest first."""
    unsettled = {task.job_id for task in snapshot.head.tasks.values()}
    found: list[int] = []
    for number in sorted(number for number, soonest in snapshot.head.pages.items() if soonest <= now):
        page = read_page(snapshot.get(page_key(number)))
        found += [job.id for _, job in sorted(page.items()) if job.expires_at <= now and job.id not in unsettled]
        if len(found) >= limit:
            break
    return read_jobs(snapshot, found[:limit])


@dataclass(frozen=True)
class Span:
    """Which part of the ledger is asked for: `since <= finished_at < until`, None is no bound."""

    api_key_id: str | None
    since: float | None
    until: float | None

    def takes(self, row: UsageRow) -> bool:
        """Whether a row lies inside."""
        return (
            self.api_key_id in (None, row.api_key_id)
            and (self.since is None or row.finished_at >= self.since)
            and (self.until is None or row.finished_at < self.until)
        )


def read_usage_rows(snapshot: Snapshot, span: Span) -> list[UsageRow]:
    """Ended calls, oldest first."""
    first = "" if span.since is None else day_of(span.since)
    last = "9999" if span.until is None else day_of(span.until)
    days = sorted(day for day in snapshot.head.days if first <= day <= last)
    pages = snapshot.get_many(rows_key(day, number) for day in days for number in range(snapshot.head.days[day]))
    rows = [row for page in pages for row in ROWS.from_plain(page or []) if span.takes(row)]
    return sorted(rows, key=lambda row: row.finished_at)


def queue_position_of(snapshot: Snapshot, job: Job) -> int:
    """How many jobs are taken up before this one, itself included; 0 unless queued."""
    if job.state is not JobState.QUEUED:
        return 0
    return sum(kept.job.state is JobState.QUEUED and kept.job.seq <= job.seq for kept in snapshot.head.open.values())


def read_timings(snapshot: Snapshot) -> Timings:
    """Means over the last few successful jobs."""
    last = snapshot.head.successes
    if not last:
        return Timings(0, 0.0)
    by_stage: defaultdict[str, list[float]] = defaultdict(list)
    for success in last:
        for stage, seconds in success.stage_seconds.items():
            by_stage[stage].append(seconds)
    means = {stage: sum(values) / len(values) for stage, values in by_stage.items()}
    return Timings(len(last), sum(success.seconds for success in last) / len(last), means)


def read_metrics(snapshot: Snapshot, *, now: float) -> StoreMetrics:
    """Counters and gauges."""
    head, totals = snapshot.head, snapshot.head.totals
    open_jobs = [kept.job for kept in head.open.values()]
    states = Counter(head.states) + Counter(str(job.state) for job in open_jobs)
    return StoreMetrics(
        submitted=totals.submitted,
        ended=totals.ended,
        states=dict(states),
        oldest_queued_s=max([0.0, *(now - job.created_at for job in open_jobs if job.state is JobState.QUEUED)]),
        stage_seconds=totals.stage_seconds,
        stage_runs=totals.stage_runs,
        gpu_seconds=totals.gpu_seconds,
        task_attempts={_pair(label): count for label, count in totals.task_attempts.items()},
        tasks_pending=Counter(task.kind for task in head.tasks.values()),
    )


def _pair(label: str) -> tuple[str, str]:
    kind, _, outcome = label.partition(" ")
    return kind, outcome
