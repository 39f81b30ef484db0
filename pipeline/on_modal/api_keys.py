"""Callers' keys of a deployment, changed from the operator's machine: the key itself never leaves it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from datetime import UTC, datetime

from pipeline.errors import ImageTo3DError, NotFound
from pipeline.jobs.api_keys import make_key
from pipeline.jobs.model import ApiKey
from pipeline.jobs.store import Store
from pipeline.settings import Settings, load_master_keys
from pipeline.webhooks.signing import WebhookSigner

Change = tuple[str, list[tuple[str, ...]]]
COLUMNS = ("NAME", "KEY", "CREATED (UTC)", "STATE")


def change(settings: Settings, store: Store, *, record: ApiKey | None, revoke: str) -> Change:
    """Add a key, or revoke the one of a name; in a container.

    Returns:
        The secret of the new key's webhooks or "", and a row for each key. A refusal is a row of one sentence alone:
        an error would come with a traceback.
    """
    try:
        secret = ""
        if record is not None:
            store.add_key(record)
            secret = WebhookSigner(load_master_keys(settings)).secret_of(record.id)
        if revoke:
            found = [key for key in store.list_keys() if revoke in (key.name, key.id) and key.revoked_at is None]
            if not found:
                raise NotFound(f"There is no key in use named {revoke!r}.")
            store.revoke_key(found[0].id)
        return secret, [_row(key) for key in store.list_keys()]
    except ImageTo3DError as error:
        return "", [(str(error),)]


def change_from_terminal(create: str, revoke: str, *, change: Callable[[ApiKey | None, str], Change]) -> None:
    """The whole command: change, then print what there is.

    Args:
        change: does it in a container.
    """
    plain, record = make_key(create, limits=Settings().default_limits) if create else ("", None)
    secret, rows = change(record, revoke)
    if len(rows) == 1 and len(rows[0]) == 1:
        sys.stderr.write(f"error: {rows[0][0]}\n")
        raise SystemExit(1)
    if record is not None:
        sys.stdout.write(f"{plain}\n")
        sys.stderr.write(f"Keep it: it is not shown again. Its webhooks are signed with {secret}\n")
        return
    table = [COLUMNS, *rows]
    widths = [max(len(row[column]) for row in table) for column in range(len(COLUMNS))]
    for row in table:
        line = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        sys.stdout.write(f"{line.rstrip()}\n")


def _row(key: ApiKey) -> tuple[str, ...]:
    created = f"{datetime.fromtimestamp(key.created_at, UTC):%Y-%m-%d %H:%M:%S}"
    return (key.name, key.shown, created, "in use" if key.revoked_at is None else "revoked")
