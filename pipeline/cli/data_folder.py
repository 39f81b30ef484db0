"""What the commands on a deployment's data share: the option `--data`, and the store in that folder."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from pipeline.jobs.model import ApiKey
    from pipeline.jobs.store import Store
    from pipeline.jobs.stores.sql.store import SqlStore
    from pipeline.settings import Settings

DataOption = Annotated[
    Path | None,
    typer.Option("--data", help="Folder of the deployment's data (default: IMAGE_TO_3D_DATA_DIR, else data)"),
]
KeyOption = Annotated[str | None, typer.Option("--key", help="Only of the API key with this name")]


def settings_for(data: Path | None, **given: Any) -> Settings:
    """The environment's settings, overridden by the options of the command line; None means not given.

    Raises:
        typer.BadParameter: a setting is out of bounds.
    """
    from pydantic import ValidationError

    from pipeline.settings import Settings

    options = {name: value for name, value in {"data_dir": data, **given}.items() if value is not None}
    try:
        return Settings(**options)
    except ValidationError as error:
        first = error.errors()[0]
        raise typer.BadParameter(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from error


@contextmanager
def opened_store(data: Path | None) -> Iterator[SqlStore]:
    """The store of a deployment that exists. An `ImageTo3DError` is printed as one sentence, with exit code 1."""
    from pipeline.deployment import check_store_exists, open_store
    from pipeline.errors import ImageTo3DError

    try:
        settings = settings_for(data)
        check_store_exists(settings)
        store = open_store(settings)
        try:
            yield store
        finally:
            store.close()
    except ImageTo3DError as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(1) from error


def find_key(store: Store, name: str) -> ApiKey:
    """The API key with that name or id; an active one is preferred to a revoked one.

    Raises:
        NotFound: there is none.
    """
    from pipeline.errors import NotFound

    found = [key for key in store.list_keys() if name in (key.name, key.id)]
    if not found:
        raise NotFound(f"There is no key named {name!r}.")
    return min(found, key=lambda key: key.revoked_at is not None)


def key_id_of(store: Store, name: str | None) -> str | None:
    """The id of the API key with this name; None, which means all keys, stays None."""
    return None if name is None else find_key(store, name).id


def moment(seconds: float | None) -> str:
    """A time in UTC as commands print it, or "-"."""
    from datetime import UTC, datetime

    return "-" if seconds is None else f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M:%S}"


def print_table(columns: tuple[str, ...], rows: list[tuple[object, ...]]) -> None:
    """Print rows under headings, in columns that are as wide as their longest cell."""
    cells = [columns, *(tuple("-" if cell is None else str(cell) for cell in row) for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(columns))]
    for row in cells:
        typer.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
