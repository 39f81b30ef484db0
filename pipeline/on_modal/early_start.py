"""Starts an engine's container when a job is submitted, while the container that reads its image still starts.

No numpy, no torch: the web container imports it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import structlog

from pipeline.jobs.model import Job
from pipeline.on_modal.control_channel import ControlChannel
from pipeline.on_modal.shared_dict import SharedDict

log = structlog.get_logger()


def mark_startable(entries: SharedDict, engine: str) -> None:
    """Record that an engine's weights were found, so that its containers do not start in vain."""
    entries.put(f"startable/{engine}", True)


class EarlyStart:
    """Asks for a container of a job's engine, and saves the call for the process that runs the job.

    Args:
        containers: by engine name, a factory of `engine_pool.EngineContainer`.
        default: the engine of jobs that name none.
        entries: the shared dictionary in which jobs have their channels.
    """

    def __init__(self, containers: Mapping[str, Callable[[], Any]], *, default: str, entries: SharedDict) -> None:
        self._containers = containers
        self._default = default
        self._entries = entries

    def __call__(self, job: Job) -> None:
        """Start a container, unless the job needs none or nobody has found the weights yet. A failure is only logged:
        the job starts one itself.
        """
        engine = job.engine or self._default
        if job.meta.export_of is not None or engine not in self._containers:
            return
        try:
            if self._entries.get(f"startable/{engine}", False):
                call = self._containers[engine]().wake.spawn()
                ControlChannel(self._entries, job.file_prefix).save_start_id(call.object_id)
        except Exception:
            log.warning("engine container not started early", job_id=job.id, engine=engine, exc_info=True)
