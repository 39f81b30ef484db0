"""The web container: the same application as on one machine, over parts that are kept elsewhere. No numpy, no torch."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

from starlette.types import ASGIApp

from pipeline.api.app import create_app
from pipeline.deployment import ensure_key
from pipeline.jobs.store import Store
from pipeline.on_modal.observability import start_observing
from pipeline.on_modal.volume_files import Volume, VolumeStorage
from pipeline.service import local_outputs, open_service
from pipeline.settings import Settings


def web_app(
    settings: Settings,
    *,
    store: Store,
    outputs: Volume,
    missing: tuple[type[Exception], ...],
    dispatch: Callable[[int], None],
) -> ASGIApp:
    """The application of one web container; the key of the settings can call it.

    Args:
        outputs: where calls put temporary outputs; not mounted here.
        missing: as for `VolumeStorage`.
        dispatch: hands a new job over; never raises.

    Raises:
        StoreUnavailable: the store is away.
    """
    start_observing(settings.log_level, is_traced=settings.is_traced)
    copies = Path(tempfile.mkdtemp(prefix="image-to-3d-"))
    temporary = VolumeStorage(
        outputs, copies=local_outputs(settings.model_copy(update={"data_dir": copies})), missing=missing
    )
    ensure_key(store, settings)
    return create_app(settings, service=open_service(settings, store=store, temporary=temporary, dispatch=dispatch))
