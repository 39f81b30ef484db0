"""ProcessSlot processes that a parent keeps alive, and children that end with their parent. Knows nothing of what they do."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import structlog

SETTLED_S = 10.0
"""A child that lived this long has started well: its next start waits for nothing."""
FIRST_PAUSE_S = 0.1
MAX_PAUSE_S = 5.0
POLL_S = 0.05

log = structlog.get_logger()


@dataclass
class ProcessSlot:
    """One place for a process: when one ends, the next takes its place.

    Attributes:
        name: for the log.
        command: makes the command line for the n-th start, counted from 0.
        on_death: told the n of a process that has ended.
    """

    name: str
    command: Callable[[int], Sequence[str]]
    on_death: Callable[[int], None]
    starts: int = 0
    process: subprocess.Popen[bytes] | None = None
    started_s: float = 0.0
    start_at_s: float = field(default=0.0)
    pause_s: float = FIRST_PAUSE_S


class Supervisor:
    """Starts children, starts them again when they end, and ends them together.

    Args:
        children: all of them; their order is the order of the starts.
        stop_s: how long children may take to end after they were asked to; then they are killed.
    """

    def __init__(self, children: Sequence[ProcessSlot], *, stop_s: float) -> None:
        self._children = children
        self._stop_s = stop_s

    def run(self, stop: threading.Event) -> None:
        """Keep all children running until told to stop; none is left when this returns."""
        try:
            while not stop.is_set():
                for child in self._children:
                    self._ensure_running(child)
                stop.wait(POLL_S)
        finally:
            self._end()

    def _ensure_running(self, child: ProcessSlot) -> None:
        """Start a child that does not run, unless it is to wait."""
        now_s = time.monotonic()
        if child.process is not None:
            if child.process.poll() is None:
                return
            self._on_exit(child, now_s)
        if now_s >= child.start_at_s:
            # A session of its own: a Ctrl-C in the terminal reaches the parent alone, who ends the children in order.
            child.process = subprocess.Popen(list(child.command(child.starts)), start_new_session=True)
            child.started_s = now_s
            child.starts += 1

    def _on_exit(self, child: ProcessSlot, now_s: float) -> None:
        """Note a child's end, and when the next may start."""
        assert child.process is not None
        code, lived_s = child.process.returncode, now_s - child.started_s
        child.process = None
        is_well = code == 0 or lived_s >= SETTLED_S
        child.pause_s = FIRST_PAUSE_S if is_well else min(child.pause_s * 2, MAX_PAUSE_S)
        child.start_at_s = now_s if is_well else now_s + child.pause_s
        log.warning("process ended", process=child.name, code=code, lived_s=round(lived_s, 1))
        child.on_death(child.starts - 1)

    def _end(self) -> None:
        running = [child.process for child in self._children if child.process is not None]
        for process in running:
            process.terminate()
        deadline_s = time.monotonic() + self._stop_s
        for process in running:
            try:
                process.wait(max(0.0, deadline_s - time.monotonic()))
            except subprocess.TimeoutExpired:
                log.error("process killed, it did not end when asked to", pid=process.pid)
                process.kill()
                process.wait()


def stop_on_signals() -> threading.Event:
    """An event that SIGTERM and SIGINT set; to be called from the main thread."""
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    return stop


def call_when_orphaned(orphaned: Callable[[], None], *, parent_pid: int | None = None, poll_s: float = 0.5) -> None:
    """LeaseKeeper, in a thread of its own, for the parent's end, also a sudden one, and call back once.

    Args:
        parent_pid: the parent as it calls itself; it may have ended before this process came so far as to ask. None is
            whoever is the parent now.
    """
    expected = os.getppid() if parent_pid is None else parent_pid

    def watch() -> None:
        while os.getppid() == expected:
            time.sleep(poll_s)
        orphaned()

    threading.Thread(target=watch, name="parent-watch", daemon=True).start()
