"""What the tables say about all jobs together: the ledger, timings, metrics. Reads only."""

from __future__ import annotations

import json
from collections import defaultdict
from typing import Any, cast

import sqlalchemy as sa

from pipeline.jobs import histograms
from pipeline.jobs.histograms import histograms_of
from pipeline.jobs.model import FinalState, JobState, LedgerFilter, StoreMetrics, Timings, UsageDay, UsageRow
from pipeline.jobs.stores.sql.schema import IS_PENDING, IS_QUEUED, by_key, jobs, key_months, tasks, totals, usage
from pipeline.jobs.stores.sql.statements import failed_requests
from pipeline.jobs.transitions import (
    EXPORT_STAGE,
    TIMED_JOBS,
    UsageGroup,
    attempts_by_outcome,
    mean_timings,
    oldest_queued_s,
    usage_by_day,
)

_LAST_SUCCESSES = (
    sa.select(usage.c.stage_seconds)
    .where(usage.c.state == "success", usage.c.stage_seconds.not_like(f'%"{EXPORT_STAGE}"%'))
    .order_by(usage.c.finished_at.desc())
    .limit(TIMED_JOBS)
)


def read_timings(connection: sa.Connection) -> Timings:
    """Means over the last few successful jobs."""
    return mean_timings(json.loads(row.stage_seconds) for row in connection.execute(_LAST_SUCCESSES))


def read_metrics(connection: sa.Connection, *, now: float) -> StoreMetrics:
    """Counters and gauges."""
    sums: defaultdict[str, dict[str, float]] = defaultdict(dict)
    for row in connection.execute(sa.select(totals)):
        sums[row.name][row.label] = row.value
    states = connection.execute(sa.select(jobs.c.state, sa.func.count()).group_by(jobs.c.state)).all()
    pending = connection.execute(sa.select(tasks.c.kind, sa.func.count()).where(IS_PENDING).group_by(tasks.c.kind))
    queued = connection.execute(sa.select(jobs.c.seq, jobs.c.created_at).where(IS_QUEUED).order_by(jobs.c.seq).limit(1))
    oldest_s = oldest_queued_s(((row.seq, row.created_at) for row in queued), now=now)
    return StoreMetrics(
        submitted=connection.execute(sa.select(sa.func.coalesce(sa.func.sum(key_months.c.accepted), 0))).scalar_one(),
        ended={state: int(count) for state, count in sums["ended"].items()},
        states={row[0]: row[1] for row in states},
        oldest_queued_s=oldest_s,
        stage_seconds=sums["stage_seconds"],
        stage_runs={stage: int(count) for stage, count in sums["stage_runs"].items()},
        gpu_seconds=sums["gpu_seconds"].get("", 0.0),
        kernel_fallbacks={kernel: int(count) for kernel, count in sums["kernel_fallbacks"].items()},
        task_attempts=attempts_by_outcome(sums["task_attempts"]),
        durations=histograms_of(sums[histograms.COUNTER]),
        tasks_pending={row[0]: row[1] for row in pending},
        failed_requests_bytes=sum(kept.size_bytes for kept in failed_requests(connection)),
    )


def read_usage_rows(connection: sa.Connection, filters: LedgerFilter, *, limit: int) -> list[UsageRow]:
    """Ended jobs, oldest first."""
    query = sa.select(usage).order_by(usage.c.finished_at, usage.c.job_seq).limit(limit)
    return [_usage_row(row) for row in connection.execute(_matching(query, filters))]


def _usage_row(row: sa.Row[Any]) -> UsageRow:
    columns = by_key(row, usage)
    for name in ("job_seq", "stage_seconds", "day"):
        del columns[name]
    columns["state"] = cast(FinalState, JobState(columns["state"]))
    columns["track_id"] = None if columns["track_id"] is None else json.loads(columns["track_id"])
    return UsageRow(**columns)


def read_usage_days(connection: sa.Connection, filters: LedgerFilter) -> list[UsageDay]:
    """Ended jobs by day and key, oldest first."""
    by = (usage.c.api_key_id, usage.c.day, usage.c.state)
    query = sa.select(*by, sa.func.count(), sa.func.sum(usage.c.seconds), sa.func.sum(usage.c.gpu_seconds)).group_by(
        *by
    )
    groups = connection.execute(_matching(query, filters))
    return usage_by_day(UsageGroup(*group) for group in groups)


def _matching(query: sa.Select[*tuple[Any, ...]], filters: LedgerFilter) -> sa.Select[*tuple[Any, ...]]:
    if filters.api_key_id is not None:
        query = query.where(usage.c.api_key_id == filters.api_key_id)
    if filters.since is not None:
        query = query.where(usage.c.finished_at >= filters.since)
    return query if filters.until is None else query.where(usage.c.finished_at < filters.until)
