"""What a deployment's settings say about its store: where it is, and who may call from the start."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.jobs.api_keys import hash_key, key_record, make_key
from pipeline.jobs.store import KeyStore, Store
from pipeline.jobs.stores.kv.map import KeyValues
from pipeline.jobs.transitions import Retention
from pipeline.settings import Settings

if TYPE_CHECKING:
    from pipeline.jobs.stores.sql.store import SqlStore


def open_store(settings: Settings) -> SqlStore:
    """The deployment's store, its schema brought up to date.

    Raises:
        StoreUnavailable: the database is away, or of a newer version.
    """
    from pipeline.jobs.stores.sql.store import SqlStore  # SQLAlchemy is a third of a start that may do without it

    return SqlStore(settings.sql_url, retention=_retention_of(settings))


def open_shared_store(settings: Settings, entries: KeyValues) -> Store:
    """The store of a deployment whose containers share no disk: its database, or else a shared map.

    Raises:
        StoreUnavailable: the database is away, or of a newer version.
    """
    if settings.database_url is not None:
        return open_store(settings)
    from pipeline.jobs.stores.kv.store import KvStore

    return KvStore(entries, retention=_retention_of(settings))


def _retention_of(settings: Settings) -> Retention:
    return Retention(
        record_lifetime_s=settings.record_lifetime_s,
        webhook_window_s=settings.webhook_window_s,
        upload_window_s=settings.output_lifetime_s,
    )


def ensure_key(store: KeyStore, settings: Settings) -> str | None:
    """See to it that somebody can call: the key of the settings exists, or else any key does.

    Returns:
        The key that was made because there was none at all, to be shown once; None otherwise.
    """
    if settings.api_key is not None:
        # Its name holds a piece of its hash: the environment's next key may exist beside this one.
        plain = settings.api_key.get_secret_value()
        name = f"environment {hash_key(plain)[:6]}"
        store.add_key(key_record(plain, name=name, limits=settings.default_limits))
        return None
    if store.list_keys():
        return None
    plain, record = make_key("development", limits=settings.default_limits)
    store.add_key(record)
    return plain
