"""Processes that a test interrupts as a user does, by SIGINT."""

from __future__ import annotations

import signal


def heed_interrupts() -> None:
    """For `preexec_fn` of a process that SIGINT shall reach.

    A shell starts its background jobs with SIGINT ignored, which their children inherit: the tests may run in one.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)
