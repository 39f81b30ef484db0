"""Opens the store of a deployment and creates the API key that its settings name.

Separate from `pipeline.service`, so that operator commands and the supervisor start without an HTTP client.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from pipeline.errors import CannotStart, NotFound
from pipeline.jobs.api_keys import hash_key, key_record, make_key
from pipeline.jobs.store import KeyStore, Store
from pipeline.jobs.stores.kv.map import KeyValues
from pipeline.jobs.transitions import Retention
from pipeline.private_files import close_to_others
from pipeline.secrets import SECRET_NAME, derive_keys
from pipeline.settings import DATABASE_NAME, Settings

if TYPE_CHECKING:
    from pipeline.jobs.stores.sql.store import SqlStore


def open_store(settings: Settings) -> SqlStore:
    """The deployment's store, its schema migrated to the current version.

    Raises:
        StoreUnavailable: the database cannot be reached, or its schema is newer than this version.
    """
    from pipeline.jobs.stores.sql.store import SqlStore  # SQLAlchemy takes a third of the start; not all need it

    _close_data_to_others(settings)
    return SqlStore(
        settings.sql_url,
        retention=_retention_of(settings),
        pool_size=settings.database_pool_size,
        pool_overflow=settings.database_pool_overflow,
    )


def check_store_exists(settings: Settings) -> None:
    """Refuse to go on where `open_store` would create a database: an operator's command runs in the wrong folder.

    Raises:
        NotFound: there is no SQLite file, or the database holds no tables of this service.
        StoreUnavailable: the database cannot be reached.
    """
    if settings.database_url is None:
        if not (settings.data_dir / DATABASE_NAME).is_file():
            raise NotFound(
                f"There is no service's data in {settings.data_dir.absolute()}. Run this in the folder where the"
                " service was started, or name its data folder by --data."
            )
        return
    from pipeline.jobs.stores.sql.connection import schema_revision

    if schema_revision(settings.sql_url) is None:
        raise NotFound("The database holds no service's data yet. Start the service once, or check DATABASE_URL.")


def _close_data_to_others(settings: Settings) -> None:
    """Take the permissions of others from what earlier versions made with the umask's.

    The folder of data itself is closed only if it is recognizably one: `DATA_DIR` may be any folder of the machine.
    """
    folder, database = settings.data_dir, settings.data_dir / DATABASE_NAME
    files = [database, database.with_name(f"{DATABASE_NAME}-wal"), database.with_name(f"{DATABASE_NAME}-shm")]
    own = [folder] if database.exists() or (folder / SECRET_NAME).exists() else []
    close_to_others([*own, *files, settings.files_dir, settings.work_dir])


def check_secret(store: SqlStore, settings: Settings, master_keys: Sequence[bytes]) -> None:
    """Check that this machine has the master keys of the deployment's other machines.

    The first process that opens a shared database leaves a value there that is derived from its master keys; a process
    with other ones would sign links and webhooks that the rest of the deployment does not recognize. One SQLite file
    belongs to one machine, and is not checked.

    Raises:
        CannotStart: none of the keys is one that the deployment uses.
    """
    if settings.database_url is None:
        return
    if not store.knows_secret(secret_ids(master_keys)):
        raise CannotStart(
            "This machine's secret is not that of the deployment's other machines: set IMAGE_TO_3D_SECRET_KEYS to the "
            "same value everywhere. If the old secret is lost, run: image-to-3d secrets adopt"
        )


def secret_ids(master_keys: Sequence[bytes]) -> list[str]:
    """What the database may know of the master keys: it tells them apart and reveals nothing else."""
    return [key.hex() for key in derive_keys(master_keys, purpose="check of the deployment")]


def open_shared_store(settings: Settings, entries: KeyValues, *, backup: Callable[[str], bytes | None]) -> Store:
    """The store of a deployment whose containers share no disk: its database or, without one, a shared map.

    Args:
        backup: reads a file of the backup that is restored into a map that was lost; None where there is no such file.

    Raises:
        StoreUnavailable: the database cannot be reached, or its schema is newer than this version.
    """
    if settings.database_url is not None:
        return open_store(settings)
    from pipeline.jobs.stores.kv.store import KvStore

    return KvStore(entries, retention=_retention_of(settings), backup=backup)


def _retention_of(settings: Settings) -> Retention:
    return Retention(
        record_lifetime_s=settings.record_lifetime_s,
        webhook_window_s=settings.webhook_window_s,
        upload_window_s=settings.output_lifetime_s,
        failed_requests_bytes=settings.max_failed_requests_bytes,
        failed_requests_bytes_per_key=settings.max_failed_requests_bytes_per_key,
    )


def ensure_key(store: KeyStore, settings: Settings) -> str | None:
    """Make sure that at least one API key exists: the one of the settings or, without it, any.

    Returns:
        The key that was created because the store had none, to be shown once; None otherwise.
    """
    if settings.api_key is not None:
        # The name contains a part of the hash, so that the environment's next key may exist beside this one.
        plain = settings.api_key.get_secret_value()
        name = f"environment {hash_key(plain)[:6]}"
        store.add_key(key_record(plain, name=name, limits=settings.default_limits))
        return None
    if store.list_keys():
        return None
    plain, record = make_key("development", limits=settings.default_limits)
    store.add_key(record)
    return plain
