"""Keeps child processes running, and ends them with their parent. Knows nothing of what they do."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import structlog

from pipeline.errors import CannotStart
from pipeline.settings import environment_with

FAILED_STARTS = 5
"""A process that fails so often before it ever ran for `SETTLED_S` cannot start, and ends the supervisor."""
SETTLED_S = 10.0
"""A process that ran this long started successfully: it is restarted without a pause."""
FIRST_PAUSE_S = 0.1
MAX_PAUSE_S = 5.0
POLL_S = 0.05

log = structlog.get_logger()


@dataclass
class ProcessSlot:
    """A process that is restarted when it exits.

    Attributes:
        name: for the log.
        command: the command line of the n-th start, counted from 0.
        on_exit: called with the n of a process that has exited.
        environment: variables in addition to those of this process.
        descriptors: open files that the process inherits.
    """

    name: str
    command: Callable[[int], Sequence[str]]
    on_exit: Callable[[int], None]
    environment: Mapping[str, str] = field(default_factory=dict[str, str])
    descriptors: tuple[int, ...] = ()
    starts: int = 0
    failed_starts: int = 0
    has_settled: bool = False
    process: subprocess.Popen[bytes] | None = None
    started_s: float = 0.0
    start_at_s: float = field(default=0.0)
    pause_s: float = FIRST_PAUSE_S


class Supervisor:
    """Starts processes, restarts them when they exit, and stops them together.

    Args:
        slots: all processes, in the order of their start.
        stop_s: how long they may take to exit after SIGTERM; then they are killed.
        on_stop: called before they are told to exit.
    """

    def __init__(
        self, slots: Sequence[ProcessSlot], *, stop_s: float, on_stop: Callable[[], None] = lambda: None
    ) -> None:
        self._slots = slots
        self._stop_s = stop_s
        self._on_stop = on_stop

    def run(self, stop: threading.Event) -> None:
        """Keep all processes running until told to stop; none is left when this returns.

        Raises:
            CannotStart: a process failed at each of its first starts; its own messages say why.
        """
        try:
            while not stop.is_set():
                for slot in self._slots:
                    self._ensure_running(slot)
                stop.wait(POLL_S)
        finally:
            self._stop_all()

    def _ensure_running(self, slot: ProcessSlot) -> None:
        """Start a process that is not running, unless its pause has not passed."""
        now_s = time.monotonic()
        if slot.process is not None:
            if slot.process.poll() is None:
                return
            self._on_exit(slot, now_s)
        if now_s >= slot.start_at_s:
            # In its own session: Ctrl-C in the terminal reaches only the parent, which stops the processes in order.
            slot.process = subprocess.Popen(
                list(slot.command(slot.starts)),
                start_new_session=True,
                env=environment_with(slot.environment),
                pass_fds=slot.descriptors,
            )
            slot.started_s = now_s
            slot.starts += 1

    def _on_exit(self, slot: ProcessSlot, now_s: float) -> None:
        """Record the exit of a process, and when to start the next one."""
        assert slot.process is not None
        code, uptime_s = slot.process.returncode, now_s - slot.started_s
        slot.process = None
        was_successful = code == 0 or uptime_s >= SETTLED_S
        slot.pause_s = FIRST_PAUSE_S if was_successful else min(slot.pause_s * 2, MAX_PAUSE_S)
        slot.start_at_s = now_s if was_successful else now_s + slot.pause_s
        log.warning("process exited", process=slot.name, code=code, uptime_s=round(uptime_s, 1))
        slot.on_exit(slot.starts - 1)
        slot.has_settled = slot.has_settled or was_successful
        slot.failed_starts += code > 0  # a signal is somebody else's decision
        if slot.failed_starts >= FAILED_STARTS and not slot.has_settled:
            raise CannotStart(
                f"The process {slot.name!r} cannot start: it failed {slot.failed_starts} times (exit code {code}). "
                "Its messages above say why."
            )

    def _stop_all(self) -> None:
        self._on_stop()
        running = [slot.process for slot in self._slots if slot.process is not None]
        for process in running:
            process.terminate()
        deadline_s = time.monotonic() + self._stop_s
        for process in running:
            try:
                process.wait(max(0.0, deadline_s - time.monotonic()))
            except subprocess.TimeoutExpired:
                log.error("process killed, it did not exit in time", pid=process.pid)
                process.kill()
                process.wait()


def stop_on_signals() -> threading.Event:
    """An event that SIGTERM and SIGINT set; call this from the main thread."""
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    return stop


def call_when_orphaned(orphaned: Callable[[], None], *, parent_pid: int | None = None, poll_s: float = 0.5) -> None:
    """Wait in a thread for the parent to exit, for any reason, then call back once.

    Args:
        parent_pid: the parent's own pid, since it may have exited before this process checks. None means the current
            parent.
    """
    expected = os.getppid() if parent_pid is None else parent_pid

    def wait_for_exit() -> None:
        while os.getppid() == expected:
            time.sleep(poll_s)
        orphaned()

    threading.Thread(target=wait_for_exit, name="parent-watch", daemon=True).start()
