"""The web container: the same application as on one machine, with remote jobs and outputs. No numpy, no torch."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

from starlette.types import ASGIApp

from pipeline.api.app import create_app
from pipeline.deployment import ensure_key
from pipeline.jobs.model import Job
from pipeline.memory import return_large_blocks
from pipeline.on_modal.deployment import Deployment
from pipeline.on_modal.volume_files import Volume, VolumeGenerations, VolumeStorage
from pipeline.service import local_outputs, open_service
from pipeline.telemetry import start_telemetry

POLL_S = 0.5
"""Each look at the shared Dict is a call over the network, and Modal limits how many a workspace makes."""


def web_app(
    deployment: Deployment,
    *,
    outputs: Volume,
    state: Volume,
    missing: tuple[type[Exception], ...],
    start_early: Callable[[Job], None] = lambda job: None,
) -> ASGIApp:
    """The application of one web container; the API key of the settings exists afterwards.

    Args:
        outputs: the volume of temporary outputs, which is not mounted here.
        state: the volume of unfinished jobs and kept generations, which is not mounted here either.
        missing: as for `VolumeStorage`.
        start_early: called with each new job before it is dispatched, as `EarlyStart`.

    Raises:
        StoreUnavailable: the store cannot be reached.
    """
    return_large_blocks()
    settings, master_keys, store = deployment.settings, deployment.master_keys, deployment.store
    start_telemetry(settings.log_level, settings.log_format, is_traced=settings.is_traced)
    copies = Path(tempfile.mkdtemp(prefix="image-to-3d-"))
    copy_settings = settings.model_copy(update={"data_dir": copies})
    temporary = VolumeStorage(outputs, copies=local_outputs(copy_settings, master_keys), missing=missing)
    ensure_key(store, settings)

    def dispatch(job: Job) -> None:
        start_early(job)
        deployment.dispatch(job.id)

    service = open_service(
        settings,
        master_keys=master_keys,
        store=store,
        temporary=temporary,
        generations=VolumeGenerations(state, missing=missing),
        dispatch=dispatch,
        after_cancel=deployment.waiting.stop,
        with_progress=deployment.waiting.with_progress,
        poll_s=POLL_S,
    )
    return create_app(settings, service=service)
