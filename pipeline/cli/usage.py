"""`image-to-3d usage`: jobs and GPU seconds by API key and day, from the usage table."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

import typer

from pipeline.cli.data_folder import DataOption, KeyOption, key_id_of, opened_store, print_table

DAY = ["%Y-%m-%d"]
COLUMNS = ("key", "day", "calls", "succeeded", "failed", "cancelled", "seconds", "gpu_seconds")


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(usage)


def usage(
    data: DataOption = None,
    key: KeyOption = None,
    since: Annotated[datetime | None, typer.Option(formats=DAY, help="First day (UTC)")] = None,
    until: Annotated[datetime | None, typer.Option(formats=DAY, help="First day that is not included (UTC)")] = None,
    csv: Annotated[bool, typer.Option("--csv", help="Print comma-separated values")] = False,
) -> None:
    """Print finished jobs and GPU seconds by API key and day (UTC)."""
    from pipeline.jobs.model import LedgerFilter

    with opened_store(data) as store:
        names = {known.id: known.name for known in store.list_keys()}
        days = store.usage_days(LedgerFilter(key_id_of(store, key), since=_seconds(since), until=_seconds(until)))
    rows: list[tuple[object, ...]] = [
        (
            names.get(day.api_key_id, day.api_key_id),
            day.day,
            day.calls,
            day.succeeded,
            day.failed,
            day.cancelled,
            f"{day.seconds:.3f}",
            f"{day.gpu_seconds:.3f}",
        )
        for day in days
    ]
    if not csv:
        print_table(tuple(name.upper().replace("_", " ") for name in COLUMNS), rows)
        return
    import csv as csv_format
    import sys

    csv_format.writer(sys.stdout, lineterminator="\n").writerows([COLUMNS, *rows])


def _seconds(day: datetime | None) -> float | None:
    from datetime import UTC

    return None if day is None else day.replace(tzinfo=UTC).timestamp()
