"""The peak memory, CPU time and longest stall of the web process for one request of every kind that costs much.

`python -m scripts.benchmarks bombs`: a web process is started for each request, so that each peak is its own. CPU times
are those of the whole process and of its main thread, which runs the event loop; they do not depend on what else the
machine does. The stall is the longest answer of `/health` during a second request of the kind, in wall seconds.
"""

from __future__ import annotations

import threading
import time
import urllib.request
from contextlib import suppress

from tests.api.bombs import bodies, cpu_s, peak_mib, post, start_peak, web_process


def stall_while(port: int, body: bytes) -> tuple[int, float]:
    """Send a body; returns the status, and the longest time that `/health` took meanwhile in seconds."""
    longest_s, has_ended = 0.0, threading.Event()

    def ask() -> None:
        nonlocal longest_s
        while not has_ended.wait(0.005):
            started_s = time.monotonic()
            with suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=60) as answer:
                answer.read()
            longest_s = max(longest_s, time.monotonic() - started_s)

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        status, _ = post(port, body)
    finally:
        has_ended.set()
        thread.join()
    return status, longest_s


def main(argv: list[str]) -> int:
    """Print one row per request."""
    assert not argv, "this benchmark has no options"
    print(f"{'body':32} status  peak +MiB  CPU s  loop CPU s  /health s")
    for name, body in bodies().items():
        with web_process() as (pid, port):
            before_mib, before_s, before_loop_s = start_peak(pid), cpu_s(pid), cpu_s(pid, thread=pid)
            status = 0
            with suppress(OSError):
                status, _ = post(port, body)
            spent_s, loop_s = cpu_s(pid) - before_s, cpu_s(pid, thread=pid) - before_loop_s
            peak = peak_mib(pid) - before_mib
            longest_s = 0.0
            with suppress(OSError):
                _, longest_s = stall_while(port, body)
        print(f"{name:32} {status:6} {peak:10.0f} {spent_s:6.2f} {loop_s:11.2f} {longest_s:10.2f}", flush=True)
    return 0
