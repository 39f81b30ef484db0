"""What the two sides of a remote generation tell each other while it runs. Knows no vendor.

The line is a few entries of a shared map: progress goes one way, the wish to stop the other, and the name of the
running call stands there for a caller who has to take it up again.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import structlog

from pipeline.errors import Cancelled, ImageTo3DError
from pipeline.on_modal.shared_dict import SharedDict

HEARTBEAT_INTERVAL_S = 1.0
"""Pause between two looks at the line: how late progress is seen and a cancel is heard."""

log = structlog.get_logger()

Heard = TypeVar("Heard")


@dataclass(frozen=True)
class Failure:
    """A generation that failed, as a value: raised, it would be run again and paid for again.

    Attributes:
        error: what the caller raises.
        retry_on_other_container: the container is to blame; another one may do it.
        gpu_seconds: seconds of accelerator time, as a `Generation` has them.
    """

    error: ImageTo3DError
    retry_on_other_container: bool = False
    gpu_seconds: float = 0.0


class ControlChannel:
    """One generation's entries.

    Args:
        name: unique to the generation, the same for every attempt at it.
    """

    def __init__(self, notes: SharedDict, name: str) -> None:
        self._notes = notes
        self.name = name

    def say(self, progress: Any) -> None:
        """Tell how far the work is."""
        self._notes.put(f"{self.name}/progress", progress)

    def progress(self, at_first: Any) -> Any:
        """How far the work is; `at_first` until the other side has said anything."""
        return self._notes.get(f"{self.name}/progress", at_first)

    def cancel(self) -> None:
        """Ask the other side to stop."""
        self._notes.put(f"{self.name}/cancel", True)

    def is_cancelled(self) -> bool:
        """Whether the caller wants it to stop."""
        return self._notes.get(f"{self.name}/cancel", False)

    def note_call(self, call_id: str) -> None:
        """Keep the name of the remote call."""
        self._notes.put(f"{self.name}/call", call_id)

    def noted_call(self) -> str | None:
        """The name of the remote call that was kept last."""
        return self._notes.get(f"{self.name}/call")

    def clear_messages(self) -> None:
        """Drop what the sides told each other; the name of the remote call stays."""
        for entry in ("progress", "cancel"):
            self._notes.pop(f"{self.name}/{entry}", None)

    def clear(self) -> None:
        """Leave no entry behind."""
        self.clear_messages()
        self._notes.pop(f"{self.name}/call", None)


def best_effort(look: Callable[[], Heard], otherwise: Heard) -> Heard:
    """What a look at a line brings, or `otherwise`: a line that is down costs progress, never the generation."""
    try:
        return look()
    except Exception as error:  # noqa: BLE001  # whatever the map's client raises, at every look again
        log.warning("line is down", reason=f"{type(error).__name__}: {error}")
        return otherwise


class ProgressReporter:
    """The container's end of a line: the engine's steps never wait for it."""

    def __init__(self, line: ControlChannel, *, heartbeat_interval_s: float = HEARTBEAT_INTERVAL_S) -> None:
        self._line = line
        self._beat_s = heartbeat_interval_s
        self._progress: Any = None
        self._said: Any = None
        self._is_cancelled = False
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="line", daemon=True)

    def report(self, progress: Any) -> None:
        """Say how far the work is; costs nothing, the beat writes it."""
        self._progress = progress

    def on_step(self, share: float) -> None:
        """An `OnStep`.

        Raises:
            Cancelled: the caller wants it to stop.
        """
        self.report(share)
        if self._is_cancelled:
            raise Cancelled("The call was cancelled.")

    def __enter__(self) -> ProgressReporter:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._is_over.set()
        self._thread.join()

    def _keep(self) -> None:
        while not self._is_over.wait(self._beat_s):
            best_effort(self._say, None)
            self._is_cancelled = best_effort(self._line.is_cancelled, self._is_cancelled)

    def _say(self) -> None:
        progress = self._progress
        if progress != self._said:
            self._line.say(progress)
            self._said = progress
