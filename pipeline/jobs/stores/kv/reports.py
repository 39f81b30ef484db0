"""What head and documents say about many jobs together: lists, the ledger, metrics. Reads only."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from pipeline.jobs.histograms import histograms_of
from pipeline.jobs.limits import day_of
from pipeline.jobs.model import Job, JobFilter, JobState, LedgerFilter, StoreMetrics, UsageRow
from pipeline.jobs.stores.kv.documents import failed_requests, read_page
from pipeline.jobs.stores.kv.leases import with_heartbeats
from pipeline.jobs.stores.kv.state import JOB, PAGE_JOBS, ROWS, ListedJob, job_key, page_key, rows_key
from pipeline.jobs.stores.kv.transaction import Snapshot
from pipeline.jobs.transitions import attempts_by_outcome, is_expired, oldest_queued_s

PAGES_AT_ONCE = 8


def read_jobs(snapshot: Snapshot, job_ids: Iterable[int]) -> list[Job]:
    """Those of the jobs that exist, in the order asked for."""
    ids = list(dict.fromkeys(job_ids))
    open_jobs = snapshot.head.open
    ended = [job_id for job_id in ids if job_id not in open_jobs]
    documents = snapshot.get_many(job_key(job_id) for job_id in ended)
    jobs = {document["job"]["id"]: JOB.from_plain(document).job for document in documents if document is not None}
    for job in with_heartbeats(snapshot, (open_jobs[job_id] for job_id in ids if job_id in open_jobs)):
        jobs[job.id] = job
    return [jobs[job_id] for job_id in ids if job_id in jobs]


def list_jobs(snapshot: Snapshot, filters: JobFilter, *, before_seq: int | None, limit: int) -> list[Job]:
    """Jobs, newest first. Reads pages until there are enough jobs."""
    end = snapshot.head.seq + 1 if before_seq is None else before_seq
    jobs = [open_job.job for open_job in snapshot.head.open.values()]
    found = [(job.seq, job.id) for job in jobs if job.seq < end and _matches(job, filters)]
    numbers = sorted((number for number in snapshot.head.pages if number * PAGE_JOBS < end), reverse=True)
    for start in range(0, len(numbers), PAGES_AT_ONCE):
        some = numbers[start : start + PAGES_AT_ONCE]
        for page in snapshot.get_many(map(page_key, some)):
            found += [(seq, job.id) for seq, job in read_page(page).items() if seq < end and _matches(job, filters)]
        if sum(seq >= some[-1] * PAGE_JOBS for seq, _ in found) >= limit:
            break
    return read_jobs(snapshot, [job_id for _, job_id in sorted(found, reverse=True)[:limit]])


def _matches(job: Job | ListedJob, filters: JobFilter) -> bool:
    return (
        filters.api_key_id in (None, job.api_key_id)
        and filters.state in (None, job.state)
        and (filters.track_id is None or (job.track_id is not None and str(job.track_id) == str(filters.track_id)))
    )


def expired_jobs(snapshot: Snapshot, *, now: float, limit: int) -> list[Job]:
    """Ended jobs whose retention has ended and whose tasks are settled, oldest first."""
    unsettled = {task.job_id for task in snapshot.head.tasks.values()}
    found: list[int] = []
    for number in sorted(number for number, soonest in snapshot.head.pages.items() if is_expired(soonest, now=now)):
        page = read_page(snapshot.get(page_key(number)))
        found += [
            job.id for _, job in sorted(page.items()) if is_expired(job.expires_at, now=now) and job.id not in unsettled
        ]
        if len(found) >= limit:
            break
    return read_jobs(snapshot, found[:limit])


def read_usage_rows(snapshot: Snapshot, filters: LedgerFilter) -> list[UsageRow]:
    """Ended jobs, oldest first."""
    first = "" if filters.since is None else day_of(filters.since)
    last = "9999" if filters.until is None else day_of(filters.until)
    days = sorted(day for day in snapshot.head.days if first <= day <= last)
    pages = snapshot.get_many(rows_key(day, number) for day in days for number in range(snapshot.head.days[day]))
    rows = [row for page in pages for row in ROWS.from_plain(page or []) if filters.matches(row)]
    return sorted(rows, key=lambda row: row.finished_at)


def queue_position_of(snapshot: Snapshot, job: Job) -> int:
    """How many jobs are claimed before this one, itself included; 0 unless queued."""
    if job.state is not JobState.QUEUED:
        return 0
    jobs = (open_job.job for open_job in snapshot.head.open.values())
    return sum(other.state is JobState.QUEUED and other.seq <= job.seq for other in jobs)


def read_metrics(snapshot: Snapshot, *, now: float) -> StoreMetrics:
    """Counters and gauges."""
    head, totals = snapshot.head, snapshot.head.totals
    open_jobs = [open_job.job for open_job in head.open.values()]
    queued = ((job.seq, job.created_at) for job in open_jobs if job.state is JobState.QUEUED)
    states = Counter(head.states) + Counter(str(job.state) for job in open_jobs)
    return StoreMetrics(
        submitted=totals.submitted,
        ended=totals.ended,
        states=dict(states),
        oldest_queued_s=oldest_queued_s(queued, now=now),
        stage_seconds=totals.stage_seconds,
        stage_runs=totals.stage_runs,
        gpu_seconds=totals.gpu_seconds,
        kernel_fallbacks=totals.kernel_fallbacks,
        task_attempts=attempts_by_outcome(totals.task_attempts),
        durations=histograms_of(totals.durations),
        tasks_pending=Counter(task.kind for task in head.tasks.values()),
        failed_requests_bytes=sum(kept.size_bytes for kept in failed_requests(head)),
    )
