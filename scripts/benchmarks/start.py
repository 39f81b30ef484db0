"""The start of the web process: seconds until the first 200 of /health, and what the imports cost.

The database exists already, as on every start but the first. Prints the median of several starts, and the imports by
package; `main` returns 0 when the median meets the target.
"""

from __future__ import annotations

import argparse
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
MAX_START_S = 1.2
GIVE_UP_S = 60.0
SHOWN_PACKAGES = 10
REQUEST = b"GET /health HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n"


def start_once(data: Path) -> float:
    """Seconds until a new web process answers."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "pipeline.local.web", "--data", str(data), "--port", str(port)]
    started_s = time.perf_counter()
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)
    try:
        while not is_healthy(port):
            if process.poll() is not None or time.perf_counter() - started_s > GIVE_UP_S:
                raise SystemExit("the web process does not start")
            time.sleep(0.005)
        return time.perf_counter() - started_s
    finally:
        process.terminate()
        process.wait()


def is_healthy(port: int) -> bool:
    """Whether /health answers 200."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
            connection.sendall(REQUEST)
            return connection.recv(64).startswith(b"HTTP/1.1 200")
    except OSError:
        return False


def import_microseconds() -> Counter[str]:
    """Microseconds that importing the web process spends in each package itself."""
    command = [sys.executable, "-X", "importtime", "-c", "import pipeline.local.web"]
    log = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stderr
    found: Counter[str] = Counter()
    for own_us, name in re.findall(r"import time:\s+(\d+) \|\s+\d+ \|\s+([\w.]+)", log):
        found[name.partition(".")[0]] += int(own_us)
    return found


def main(argv: list[str]) -> int:
    """Measure and print; return 0 when the target is met."""
    parser = argparse.ArgumentParser(prog="python -m scripts.benchmarks start", description=__doc__)
    parser.add_argument("--runs", type=int, default=9)
    runs = parser.parse_args(argv).runs
    with tempfile.TemporaryDirectory() as folder:
        start_once(Path(folder))  # makes the database
        seconds = sorted(start_once(Path(folder)) for _ in range(runs))
    median_s = statistics.median(seconds)
    spread = f"{seconds[0]:.2f} to {seconds[-1]:.2f}"
    print(f"process start to first 200 of /health: median {median_s:.2f} s of {runs}, {spread}")
    packages = import_microseconds()
    print(f"imports: {sum(packages.values()) / 1e6:.2f} s under measurement, of which")
    for name, cost_us in packages.most_common(SHOWN_PACKAGES):
        print(f"  {name:20} {cost_us / 1000:5.0f} ms")
    print(f"target {MAX_START_S} s: {'met' if median_s < MAX_START_S else 'MISSED'}")
    return 0 if median_s < MAX_START_S else 1
