"""Logs and traces of a container, whose process does many pieces of work one after the other."""

from __future__ import annotations

import atexit
from functools import cache

from pipeline.telemetry import configure_logging, start_tracing


@cache
def start_observing(log_level: str, *, is_traced: bool) -> None:
    """Write the log as it is kept and, where they are wanted, traces; a process does so once.

    Traces leave every few seconds, and what is left of them when the container ends.
    """
    configure_logging(log_level)
    if is_traced:
        atexit.register(start_tracing())
