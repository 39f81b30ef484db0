"""Changes a deployment's API keys, and re-encrypts its secrets, from the operator's machine.

A new key itself never leaves that machine: a container gets its hash.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from pipeline.errors import ImageTo3DError, NotFound
from pipeline.jobs.api_keys import make_key
from pipeline.jobs.model import ApiKey
from pipeline.jobs.store import Store
from pipeline.service import Rotation, reencrypt_buckets, unreadable_bucket
from pipeline.settings import Settings
from pipeline.webhooks.signing import WebhookSigner

Change = tuple[str, list[tuple[str, ...]]]
COLUMNS = ("NAME", "KEY", "CREATED (UTC)", "STATE")


@dataclass(frozen=True)
class KeyCommand:
    """What the operator wants of the keys; the others are names or ids of keys, "" for none.

    Attributes:
        record: of a key to add.
    """

    record: ApiKey | None = None
    revoke: str = ""
    show: str = ""
    rotate_secret: str = ""


def change(store: Store, master_keys: Sequence[bytes], command: KeyCommand) -> Change:
    """Carry out a command; runs in a container.

    Returns:
        The webhook secret of the key that was added, shown or got a new one, else "", and a row for each key. A refusal
        is a single row of one sentence, because Modal would print an exception with its traceback.
    """
    try:
        secret_of, secret = WebhookSigner(master_keys).secret_of, ""
        if command.record is not None:
            secret = secret_of(store.add_key(command.record))
        if command.revoke:
            store.revoke_key(_active_key(store, command.revoke).id)
        if command.rotate_secret:
            secret = secret_of(store.rotate_secret(_active_key(store, command.rotate_secret).id))
        if command.show:
            shown = _active_key(store, command.show)
            return secret_of(shown), [_row(shown)]
        return secret, [_row(key) for key in store.list_keys()]
    except ImageTo3DError as error:
        return "", [(str(error),)]


def _active_key(store: Store, name: str) -> ApiKey:
    """The key in use with a name or id.

    Raises:
        NotFound: there is none.
    """
    for key in store.list_keys():
        if name in (key.name, key.id) and key.revoked_at is None:
            return key
    raise NotFound(f"There is no active key named {name!r}.")


def change_from_terminal(
    create: str = "",
    revoke: str = "",
    show: str = "",
    rotate_secret: str = "",
    *,
    settings: Settings,
    change: Callable[[KeyCommand], Change],
) -> None:
    """Run the whole command: change the keys, then print the key, the secret, or all keys.

    Args:
        create: the name of a new key; the others are names or ids of keys.
        settings: their default limits become those of the new key.
        change: runs `change` in a container.
    """
    plain, record = make_key(create, limits=settings.default_limits) if create else ("", None)
    secret, rows = change(KeyCommand(record, revoke, show, rotate_secret))
    if len(rows) == 1 and len(rows[0]) == 1:
        sys.stderr.write(f"error: {rows[0][0]}\n")
        raise SystemExit(1)
    if record is not None:
        sys.stdout.write(f"{plain}\n")
        sys.stderr.write(f"Save it: it is not shown again. Its webhooks are signed with {secret}\n")
        return
    if rotate_secret:
        sys.stdout.write(f"{secret}\n")
        sys.stderr.write("For a day its webhooks carry the signatures of both secrets.\n")
        return
    table = [COLUMNS, *rows]
    widths = [max(len(row[column]) for row in table) for column in range(len(COLUMNS))]
    for row in table:
        line = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        sys.stdout.write(f"{line.rstrip()}\n")
    if show:
        sys.stdout.write(f"webhook secret  {secret}\n")


def rotate(store: Store, master_keys: Sequence[bytes]) -> str | Rotation:
    """Re-encrypt the saved buckets; runs in a container. A refusal is returned as a sentence, as `change` does."""
    try:
        return reencrypt_buckets(store, master_keys)
    except ImageTo3DError as error:
        return str(error)


def rotate_from_terminal(rotate: Callable[[], str | Rotation]) -> None:
    """Run the whole command: re-encrypt, then print how many buckets there were.

    Args:
        rotate: runs `rotate` in a container.
    """
    rotation = rotate()
    if isinstance(rotation, str):
        sys.stderr.write(f"error: {rotation}\n")
        raise SystemExit(1)
    sys.stdout.write(f"{rotation}\n")
    for name in rotation.unreadable:
        sys.stderr.write(f"error: {unreadable_bucket(name)}\n")
    if rotation.unreadable:
        raise SystemExit(1)


def _row(key: ApiKey) -> tuple[str, ...]:
    created = f"{datetime.fromtimestamp(key.created_at, UTC):%Y-%m-%d %H:%M:%S}"
    return (key.name, key.shown, created, "in use" if key.revoked_at is None else "revoked")
