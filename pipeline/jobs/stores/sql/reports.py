"""What the tables tell about all jobs together: the ledger, the timings, the metrics. Reads only."""

from __future__ import annotations

import json
from collections import defaultdict
from typing import Any

import sqlalchemy as sa

from pipeline.jobs.limits import TIMED_CALLS
from pipeline.jobs.model import JobState, StoreMetrics, Timings, UsageDay, UsageRow
from pipeline.jobs.stores.sql.schema import IS_PENDING, IS_QUEUED, jobs, key_months, tasks, totals, usage

_LAST_SUCCESSES = (
    sa.select(usage.c.seconds, usage.c.stage_seconds)
    .where(usage.c.state == "success")
    .order_by(usage.c.finished_at.desc())
    .limit(TIMED_CALLS)
)


def read_timings(connection: sa.Connection) -> Timings:
    """Means over the last few successful jobs."""
    rows = connection.execute(_LAST_SUCCESSES).all()
    if not rows:
        return Timings(0, 0.0)
    by_stage: defaultdict[str, list[float]] = defaultdict(list)
    for row in rows:
        for stage, seconds in json.loads(row.stage_seconds).items():
            by_stage[stage].append(seconds)
    means = {stage: sum(values) / len(values) for stage, values in by_stage.items()}
    return Timings(len(rows), sum(row.seconds for row in rows) / len(rows), means)


def read_metrics(connection: sa.Connection, *, now: float) -> StoreMetrics:
    """Counters and gauges."""
    sums: defaultdict[str, dict[str, float]] = defaultdict(dict)
    for row in connection.execute(sa.select(totals)):
        sums[row.name][row.label] = row.value
    states = connection.execute(sa.select(jobs.c.state, sa.func.count()).group_by(jobs.c.state)).all()
    pending = connection.execute(sa.select(tasks.c.kind, sa.func.count()).where(IS_PENDING).group_by(tasks.c.kind))
    # The oldest by queue order: after the clock stepped back it is not the one with the smallest time.
    oldest = connection.execute(sa.select(jobs.c.created_at).where(IS_QUEUED).order_by(jobs.c.seq).limit(1)).scalar()
    attempts = {tuple(label.split(" ")): int(count) for label, count in sums["task_attempts"].items()}
    return StoreMetrics(
        submitted=connection.execute(sa.select(sa.func.coalesce(sa.func.sum(key_months.c.accepted), 0))).scalar_one(),
        ended={state: int(count) for state, count in sums["ended"].items()},
        states={row[0]: row[1] for row in states},
        oldest_queued_s=0.0 if oldest is None else max(0.0, now - oldest),
        stage_seconds=sums["stage_seconds"],
        stage_runs={stage: int(count) for stage, count in sums["stage_runs"].items()},
        gpu_seconds=sums["gpu_seconds"].get("", 0.0),
        task_attempts={(kind, outcome): count for (kind, outcome), count in attempts.items()},
        tasks_pending={row[0]: row[1] for row in pending},
    )


def read_usage_rows(
    connection: sa.Connection, *, api_key_id: str | None, since: float | None, until: float | None, limit: int
) -> list[UsageRow]:
    """Ended calls, oldest first."""
    query = sa.select(usage).order_by(usage.c.finished_at, usage.c.job_seq).limit(limit)
    return [
        UsageRow(
            api_key_id=row._mapping[usage.c.api_key_id],
            job_id=row.job_id,
            state=_final(row.state),
            engine=row.engine,
            seconds=row.seconds,
            gpu_seconds=row.gpu_seconds,
            created_at=row.created_at,
            finished_at=row.finished_at,
            track_id=None if row.track_id is None else json.loads(row.track_id),
        )
        for row in connection.execute(_between(query, api_key_id, since, until))
    ]


def read_usage_days(
    connection: sa.Connection, *, api_key_id: str | None, since: float | None, until: float | None
) -> list[UsageDay]:
    """Ended calls by day and key, oldest first."""

    def ended(state: JobState) -> sa.ColumnElement[int]:
        return sa.func.sum(sa.case((usage.c.state == str(state), 1), else_=0))

    query = (
        sa.select(
            usage.c.api_key_id.label("api_key_id"),
            usage.c.day,
            sa.func.count().label("calls"),
            ended(JobState.SUCCESS).label("succeeded"),
            ended(JobState.FAILED).label("failed"),
            ended(JobState.CANCELLED).label("cancelled"),
            sa.func.sum(usage.c.seconds).label("seconds"),
            sa.func.sum(usage.c.gpu_seconds).label("gpu_seconds"),
        )
        .group_by(usage.c.day, usage.c.api_key_id)
        .order_by(usage.c.day, usage.c.api_key_id)
    )
    return [UsageDay(**row._mapping) for row in connection.execute(_between(query, api_key_id, since, until))]


def _between(
    query: Any, api_key_id: str | None, since: float | None, until: float | None
) -> sa.Select[*tuple[Any, ...]]:
    if api_key_id is not None:
        query = query.where(usage.c.api_key_id == api_key_id)
    if since is not None:
        query = query.where(usage.c.finished_at >= since)
    if until is not None:
        query = query.where(usage.c.finished_at < until)
    return query


def _final(state: str) -> Any:
    return JobState(state)
