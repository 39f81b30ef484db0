"""The ledger added up, for stores that keep its rows but have no database to add. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from pipeline.jobs.limits import day_of
from pipeline.jobs.model import JobState, UsageDay, UsageRow


def sum_by_day(rows: Iterable[UsageRow]) -> list[UsageDay]:
    """Ended calls by day and key, oldest first."""
    days: defaultdict[tuple[str, str], list[UsageRow]] = defaultdict(list)
    for row in rows:
        days[day_of(row.finished_at), row.api_key_id].append(row)
    return [
        UsageDay(
            api_key_id=owner,
            day=day,
            calls=len(rows),
            succeeded=sum(row.state is JobState.SUCCESS for row in rows),
            failed=sum(row.state is JobState.FAILED for row in rows),
            cancelled=sum(row.state is JobState.CANCELLED for row in rows),
            seconds=sum(row.seconds for row in rows),
            gpu_seconds=sum(row.gpu_seconds for row in rows),
        )
        for (day, owner), rows in sorted(days.items())
    ]
