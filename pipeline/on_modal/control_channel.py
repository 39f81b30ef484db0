"""What the two sides of a remote generation tell each other while it runs. Knows nothing of Modal.

The channel consists of a few entries in a shared dictionary: progress in one direction, a cancellation request in the
other, and the id of the remote call, so that a later attempt at the same job can find it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import structlog

from pipeline.errors import Cancelled, ImageTo3DError
from pipeline.on_modal.shared_dict import SharedDict

HEARTBEAT_INTERVAL_S = 1.0
"""Pause between two heartbeats of the channel: the delay of progress and of a cancellation request."""

log = structlog.get_logger()

Value = TypeVar("Value")


@dataclass(frozen=True)
class Failure:
    """A failed generation as a return value: if it were raised, Modal would run, and charge for, the input again.

    Attributes:
        error: what the client raises.
        retry_on_other_container: the container caused the failure; another one may succeed.
        gpu_seconds: seconds of GPU time, as in a `Generation`.
    """

    error: ImageTo3DError
    retry_on_other_container: bool = False
    gpu_seconds: float = 0.0


class ControlChannel:
    """The entries of one generation.

    Args:
        name: unique to the generation and the same for every attempt at it.
    """

    def __init__(self, entries: SharedDict, name: str) -> None:
        self._entries = entries
        self.name = name

    def report(self, progress: Any) -> None:
        """Publish the progress."""
        self._entries.put(f"{self.name}/progress", progress)

    def progress(self, default: Any) -> Any:
        """The progress that was published last, or `default`."""
        return self._entries.get(f"{self.name}/progress", default)

    def request_cancel(self) -> None:
        """Ask the container to stop."""
        self._entries.put(f"{self.name}/cancel", True)

    def is_cancel_requested(self) -> bool:
        """Whether the container is asked to stop."""
        return self._entries.get(f"{self.name}/cancel", False)

    def report_alive(self, engine: str) -> None:
        """Record that a container of an engine works: for all generations that wait for one."""
        self._entries.put(f"alive/{engine}", time.time())

    def seconds_since_alive(self, engine: str) -> float:
        """Seconds since a container of an engine was last seen at work; infinite if none was."""
        return time.time() - self._entries.get(f"alive/{engine}", float("-inf"))

    def save_call_id(self, call_id: str) -> None:
        """Save the id of the remote call."""
        self._entries.put(f"{self.name}/call", call_id)

    def saved_call_id(self) -> str | None:
        """The id of the remote call that was saved last."""
        return self._entries.get(f"{self.name}/call")

    def save_start_id(self, call_id: str) -> None:
        """Save the id of the call that starts a container."""
        self._entries.put(f"{self.name}/start", call_id)

    def take_start_id(self) -> str | None:
        """The id of the call that starts a container, once."""
        return self._entries.pop(f"{self.name}/start", None)

    def clear_messages(self) -> None:
        """Delete progress, cancellation request and the call that starts a container; the generation's call stays."""
        for entry in ("progress", "cancel", "start"):
            self._entries.pop(f"{self.name}/{entry}", None)

    def clear(self) -> None:
        """Delete all entries."""
        self.clear_messages()
        self._entries.pop(f"{self.name}/call", None)


def best_effort(operation: Callable[[], Value], default: Value) -> Value:
    """The result of an operation on a channel, or `default` if it fails: channel errors never fail a generation."""
    try:
        return operation()
    except Exception as error:  # noqa: BLE001  # its client raises many types of errors; the next heartbeat tries again
        log.warning("control channel failed", reason=f"{type(error).__name__}: {error}")
        return default


class ProgressReporter:
    """The container's end of a channel. A thread reads and writes it, so the engine's steps never wait for it."""

    def __init__(self, channel: ControlChannel, *, heartbeat_interval_s: float = HEARTBEAT_INTERVAL_S) -> None:
        self._channel = channel
        self._heartbeat_interval_s = heartbeat_interval_s
        self._progress: Any = None
        self._published: Any = None
        self._is_cancel_requested = False
        self._is_finished = threading.Event()
        self._thread = threading.Thread(target=self._run, name="control-channel", daemon=True)

    def report(self, progress: Any) -> None:
        """Set the progress; the next heartbeat publishes it."""
        self._progress = progress

    def on_step(self, share: float) -> None:
        """An `OnStep`.

        Raises:
            Cancelled: the client asked the container to stop.
        """
        self.report(share)
        if self._is_cancel_requested:
            raise Cancelled("The job was cancelled.")

    def __enter__(self) -> ProgressReporter:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._is_finished.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._is_finished.wait(self._heartbeat_interval_s):
            best_effort(self._publish, None)
            self._is_cancel_requested = best_effort(self._channel.is_cancel_requested, self._is_cancel_requested)

    def _publish(self) -> None:
        progress = self._progress
        if progress != self._published:
            self._channel.report(progress)
            self._published = progress
