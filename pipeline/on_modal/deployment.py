"""A deployment as its containers use it, built once per container. No numpy, no torch: the web container imports it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import structlog

from pipeline.deployment import open_shared_store
from pipeline.jobs.store import Store
from pipeline.on_modal.dict_key_values import DictKeyValues
from pipeline.on_modal.dispatch import Dispatcher
from pipeline.on_modal.volume_files import Volume, backup_reader
from pipeline.on_modal.waiting_jobs import WaitingJobs
from pipeline.secrets import load_master_keys
from pipeline.service import Service, local_outputs, open_service
from pipeline.settings import Settings
from pipeline.storage.local import LocalStorage
from pipeline.telemetry import start_telemetry

PAUSES_S = (0.2, 1.0)
"""Pauses between the tries of a commit or a reload."""

log = structlog.get_logger()


@dataclass(frozen=True)
class Deployment:
    """What the containers of one deployment share.

    Attributes:
        settings: with the deployment's public address.
        master_keys: as `load_master_keys` returned them.
        dispatch: dispatches jobs.
        waiting: the jobs that wait for a generation.
        commit_work: commits what was written under `settings.work_dir`.
        commit_outputs: commits what was written under `settings.files_dir`.
        reload_work: shows what other containers committed under `settings.work_dir`.
        reload_outputs: shows what other containers committed under `settings.files_dir`.
    """

    settings: Settings
    master_keys: Sequence[bytes]
    store: Store
    dispatch: Dispatcher
    waiting: WaitingJobs
    commit_work: Callable[[], None]
    commit_outputs: Callable[[], None]
    reload_work: Callable[[], None] = lambda: None
    reload_outputs: Callable[[], None] = lambda: None

    def open_service(self) -> tuple[Service, LocalStorage]:
        """Start the log and tracing; build the objects for one input, and the temporary outputs."""
        start_telemetry(self.settings.log_level, self.settings.log_format, is_traced=self.settings.is_traced)
        outputs = local_outputs(self.settings, self.master_keys, commit=self.commit_outputs)
        service = open_service(self.settings, master_keys=self.master_keys, store=self.store, temporary=outputs)
        return service, outputs


def open_store(settings: Settings, jobs: Any, backups: Volume, *, missing: tuple[type[Exception], ...]) -> Store:
    """The deployment's store; for functions that need nothing else. The arguments are those of `open_deployment`.

    Raises:
        StoreUnavailable: the database cannot be reached, or its schema is newer than this version.
    """
    return open_shared_store(settings, DictKeyValues(jobs), backup=backup_reader(backups, missing=missing))


def open_deployment(
    settings: Settings,
    *,
    jobs: Any,
    backups: Volume,
    dispatch: Dispatcher,
    waiting: WaitingJobs,
    missing: tuple[type[Exception], ...],
    commit_work: Callable[[], None],
    commit_outputs: Callable[[], None],
    reload_work: Callable[[], None] = lambda: None,
    reload_outputs: Callable[[], None] = lambda: None,
) -> Deployment:
    """Build a deployment from its settings and Modal's objects.

    Args:
        settings: with the deployment's public address.
        jobs: the `modal.Dict` of jobs, for deployments without a database.
        backups: the volume of that Dict's backup, which need not be mounted here.
        dispatch, waiting: as in `Deployment`.
        missing: those of a file that does not exist.

    Raises:
        StoreUnavailable: the database cannot be reached, or its schema is newer than this version.
    """
    return Deployment(
        settings,
        load_master_keys(settings),
        open_store(settings, jobs, backups, missing=missing),
        dispatch,
        waiting,
        commit_work=partial(retry, commit_work),
        commit_outputs=partial(retry, commit_outputs),
        reload_work=partial(retry, reload_work),
        reload_outputs=partial(retry, reload_outputs),
    )


def retry(
    operation: Callable[[], None], *, pauses_s: Sequence[float] = PAUSES_S, sleep: Callable[[float], None] = time.sleep
) -> None:
    """Run an operation on a Volume, again after each pause while it fails: a finished job is worth a few tries.

    Raises:
        Exception: that of the last try.
    """
    for pause_s in pauses_s:
        try:
            operation()
        except Exception:
            log.warning("operation on a volume failed; it is tried again", exc_info=True)
            sleep(pause_s)
        else:
            return
    operation()
