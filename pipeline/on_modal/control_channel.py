"""What the containers of one job tell each other while its generation waits and runs. Knows nothing of Modal.

The channel consists of a few entries in a shared dictionary: progress in one direction, a cancellation request in the
other, and the record of the remote call, by which every later container of the job finds its answer.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any, TypeVar

import structlog

from pipeline.errors import Cancelled, ImageTo3DError
from pipeline.on_modal.shared_dict import SharedDict

HEARTBEAT_INTERVAL_S = 1.0
"""Pause between two heartbeats of the channel: the delay of progress."""
CANCEL_CHECK_HEARTBEATS = 3
"""At every third heartbeat a container asks whether it should stop."""

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


@dataclass(frozen=True)
class SavedCall:
    """The remote call of a generation.

    Attributes:
        call_id: of the last try; "" before the first.
        tries: how many calls were started.
        gpu_seconds: those of the tries that failed.
        started_at: when the last try was started, seconds since 1970.
        failure: why the call was given up from outside; "" where it was not.
    """

    call_id: str = ""
    tries: int = 0
    gpu_seconds: float = 0.0
    started_at: float = 0.0
    failure: str = ""


class ControlChannel:
    """The entries of one generation.

    Args:
        name: unique to the generation and the same for every attempt at it.
    """

    def __init__(self, entries: SharedDict, name: str) -> None:
        self.entries = entries
        self.name = name

    def report(self, progress: Any) -> None:
        """Publish the progress."""
        self.entries.put(f"{self.name}/progress", progress)

    def progress(self, default: Any) -> Any:
        """The progress that was published last, or `default`."""
        return self.entries.get(f"{self.name}/progress", default)

    def request_cancel(self) -> None:
        """Ask the container to stop."""
        self.entries.put(f"{self.name}/cancel", True)

    def is_cancel_requested(self) -> bool:
        """Whether the container is asked to stop."""
        return self.entries.get(f"{self.name}/cancel", False)

    def report_alive(self, engine: str) -> None:
        """Record that a container of an engine works: for all generations that wait for one."""
        self.entries.put(f"alive/{engine}", time.time())

    def seconds_since_alive(self, engine: str) -> float:
        """Seconds since a container of an engine was last seen at work; infinite if none was."""
        return time.time() - self.entries.get(f"alive/{engine}", float("-inf"))

    def save_call(self, call: SavedCall) -> None:
        """Save the record of the remote call."""
        self.entries.put(f"{self.name}/call", asdict(call))

    def saved_call(self) -> SavedCall:
        """The record of the remote call that was saved last; one without an id where none was."""
        found = self.entries.get(f"{self.name}/call")
        if isinstance(found, str):  # as the version before saved it
            return SavedCall(found, tries=1)
        return SavedCall() if found is None else SavedCall(**found)

    def claim_call(self, call_id: str) -> None:
        """Save the id of the remote call that runs here, where whoever started it has not done so."""
        saved = self.saved_call()
        if saved.call_id != call_id:
            tries = max(1, saved.tries)
            self.save_call(replace(saved, call_id=call_id, tries=tries, started_at=time.time(), failure=""))

    def save_start_id(self, call_id: str) -> None:
        """Save the id of the call that starts a container."""
        self.entries.put(f"{self.name}/start", call_id)

    def take_start_id(self) -> str | None:
        """The id of the call that starts a container, once."""
        return self.entries.pop(f"{self.name}/start", None)

    def clear_messages(self, *, has_request: bool = True) -> None:
        """Delete progress and cancellation request, which are of a call that has ended.

        Args:
            has_request: whether there may be a cancellation request.
        """
        for entry in ("progress", "cancel") if has_request else ("progress",):
            self.entries.pop(f"{self.name}/{entry}", None)

    def clear(self, *, has_request: bool = True) -> None:
        """Delete all entries but the call that starts a container, which `take_start_id` takes."""
        self.clear_messages(has_request=has_request)
        self.entries.pop(f"{self.name}/call", None)


def best_effort(operation: Callable[[], Value], default: Value) -> Value:
    """The result of an operation on a channel, or `default` if it fails: channel errors never fail a generation."""
    try:
        return operation()
    except Exception as error:  # noqa: BLE001  # its client raises many types of errors; the next heartbeat tries again
        log.warning("control channel failed", reason=f"{type(error).__name__}: {error}")
        return default


class ProgressReporter:
    """The container's end of a channel. A thread reads and writes it, so the engine's steps never wait for it.

    Args:
        at_start: called first, in that thread.
    """

    def __init__(
        self,
        channel: ControlChannel,
        *,
        heartbeat_interval_s: float = HEARTBEAT_INTERVAL_S,
        at_start: Callable[[], None] = lambda: None,
    ) -> None:
        self._channel = channel
        self._heartbeat_interval_s = heartbeat_interval_s
        self._at_start = at_start
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
        best_effort(self._at_start, None)
        for beat in itertools.count():
            if self._is_finished.wait(self._heartbeat_interval_s):
                return
            best_effort(self._publish, None)
            if beat % CANCEL_CHECK_HEARTBEATS == CANCEL_CHECK_HEARTBEATS - 1:
                self._is_cancel_requested = best_effort(self._channel.is_cancel_requested, self._is_cancel_requested)

    def _publish(self) -> None:
        progress = self._progress
        if progress != self._published:
            self._channel.report(progress)
            self._published = progress
