"""Real child processes: restarted, stopped together, and ended with their parent."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pipeline.errors import CannotStart
from pipeline.local import supervisor as module
from pipeline.local.listener import open_listener
from pipeline.local.supervisor import ProcessSlot, Supervisor

WAIT_S = 20.0  # far longer than anything takes here; only a failing test waits this long
SLEEPER = "import time; time.sleep(60)"
STUBBORN = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); time.sleep(60)"


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline, "timed out"
        time.sleep(0.01)


def is_alive(pid: int) -> bool:
    """Whether a process runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def slot(code: str, exits: list[int] | None = None) -> ProcessSlot:
    on_exit = (exits if exits is not None else []).append
    return ProcessSlot("test", command=lambda start: [sys.executable, "-c", code, str(start)], on_exit=on_exit)


@contextmanager
def supervised(*slots: ProcessSlot, stop_s: float = WAIT_S) -> Iterator[None]:
    stop = threading.Event()
    thread = threading.Thread(target=Supervisor(slots, stop_s=stop_s).run, args=(stop,))
    thread.start()
    try:
        wait_until(lambda: all(one.process is not None for one in slots))
        yield
    finally:
        stop.set()
        thread.join(WAIT_S)
        assert not thread.is_alive()


def pid_of(one: ProcessSlot) -> int:
    wait_until(lambda: one.process is not None)
    assert one.process is not None
    return one.process.pid


def test_a_killed_process_is_restarted_and_its_exit_is_reported() -> None:
    exits: list[int] = []
    one = slot(SLEEPER, exits)

    with supervised(one):
        first = pid_of(one)
        os.kill(first, signal.SIGKILL)
        wait_until(lambda: one.starts == 2 and one.process is not None)

        assert exits == [0]
        assert pid_of(one) != first and is_alive(pid_of(one))


def test_a_process_that_fails_at_once_is_restarted_with_growing_pauses() -> None:
    exits: list[int] = []
    one = slot("raise SystemExit(1)", exits)

    with supervised(one):
        wait_until(lambda: len(exits) == 3)

    assert exits[:3] == [0, 1, 2]
    assert one.pause_s >= 0.8


def test_a_process_that_never_starts_ends_the_supervisor_and_the_other_processes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "FIRST_PAUSE_S", 0.01)
    failing, other = slot("raise SystemExit(3)"), slot(SLEEPER)
    failing.pause_s = 0.01

    with pytest.raises(CannotStart, match=r"'test' cannot start: it failed 5 times \(exit code 3\)"):
        Supervisor([other, failing], stop_s=WAIT_S).run(threading.Event())

    assert other.process is not None and other.process.returncode is not None


def test_a_process_that_is_killed_again_and_again_is_restarted() -> None:
    one = slot("import os; os.kill(os.getpid(), 9)")
    one.pause_s = 0.01

    with supervised(one):
        wait_until(lambda: one.starts > module.FAILED_STARTS)


def test_a_process_has_its_own_variables_and_inherits_the_socket(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    code = (
        "import os, socket, sys; listener = socket.socket(fileno=int(sys.argv[1]));"
        "connection, _ = listener.accept(); connection.sendall(os.environ['CUDA_VISIBLE_DEVICES'].encode())"
    )
    with open_listener("127.0.0.1", 0) as listener:
        number = listener.fileno()
        slots = [
            ProcessSlot(
                f"worker on GPU {gpu}",
                command=lambda _: [sys.executable, "-c", code, str(number)],
                on_exit=lambda _: None,
                environment={"CUDA_VISIBLE_DEVICES": gpu},
                descriptors=(number,),
            )
            for gpu in ("0", "1")
        ]
        with supervised(*slots):
            said = set()
            while said != {"0", "1"}:
                with socket.create_connection(listener.getsockname(), WAIT_S) as connection:
                    said.add(connection.recv(10).decode())


def test_a_process_that_exits_successfully_is_restarted_at_once() -> None:
    one = slot("raise SystemExit(0)")

    with supervised(one):
        wait_until(lambda: one.starts >= 3)

    assert one.pause_s == 0.1


def test_all_processes_end_when_the_supervisor_stops() -> None:
    slots = [slot(SLEEPER), slot(SLEEPER)]

    with supervised(*slots):
        pids = [pid_of(one) for one in slots]
        assert all(is_alive(pid) for pid in pids)

    assert not any(is_alive(pid) for pid in pids)


def test_a_process_that_ignores_sigterm_is_killed() -> None:
    one = slot(STUBBORN)

    with supervised(one, stop_s=0.2):
        pid = pid_of(one)
        time.sleep(0.5)  # until it ignores SIGTERM; without this the test would pass for the wrong reason

    assert not is_alive(pid)


def test_a_process_notices_that_its_parent_was_killed() -> None:
    watcher = (
        "import os, threading, time; from pipeline.local.supervisor import call_when_orphaned;"
        "call_when_orphaned(lambda: os._exit(0), poll_s=0.05); print(os.getpid(), flush=True); time.sleep(60)"
    )
    code = f"import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', {watcher!r}]); time.sleep(60)"
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    assert is_alive(pid)

    parent.kill()
    parent.wait()

    wait_until(lambda: not is_alive(pid))
    parent.stdout.close()
