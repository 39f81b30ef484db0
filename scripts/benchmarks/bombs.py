"""The peak memory and the longest stall of the web process for one request of every kind that costs much.

`python -m scripts.benchmarks bombs`: a web process is started for each request, so that each peak is its own.
"""

from __future__ import annotations

import base64
import http.client
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

KEY = "a-key-for-the-measurement"
SIZE = 30_000_000
PNG = b"\x89PNG\r\n\x1a\n"
SUBMIT = "/api/v6/3d/image_to_3d"


def with_key(fields: bytes) -> bytes:
    return b'{"key":"' + KEY.encode() + b'",' + fields + b"}"


def bodies() -> dict[str, bytes]:
    """JSON bodies of about 30 MB by what is in them."""
    image = base64.b64encode(PNG + bytes(19_000_000))
    return {
        "9 M empty lists": b'{"a":[' + b"[]," * 9_000_000 + b"[]]}",
        "lists nested 900 deep": b'{"a":[' + (b"[" * 900 + b"]" * 900 + b",") * 16_000 + b"[]]}",
        "nested objects": b'{"a":[' + (b'{"a":' * 200 + b"1" + b"}" * 200 + b",") * 24_000 + b"1]}",
        "2.7 M keys": b"{" + b",".join(b'"%d":1' % number for number in range(2_700_000)) + b"}",
        "floats": b'{"a":[' + b"1.25," * 6_000_000 + b"1]}",
        "one text": b'{"image":"' + b"A" * SIZE + b'"}',
        "key, image of %41": with_key(b'"image":"data:image/png,' + b"%41" * (SIZE // 3) + b'"'),
        "key, image of %": with_key(b'"image":"data:image/png,' + b"%" * SIZE + b'"'),
        "key, 30 MB of base64": with_key(b'"image":"' + b"A" * SIZE + b'"'),
        "key, 19 MB image": with_key(b'"image":"' + image + b'"'),
        "key, 19 MB image as a data URI": with_key(b'"image":"data:image/png;base64,' + image + b'"'),
        "key, unknown nested fields": with_key(
            b'"image":"http://127.0.0.1:9/a","x":[' + b'{"a":[]},' * 3_000_000 + b"1]"
        ),
        "key, 4,000 digits": with_key(b'"image":"http://127.0.0.1:9/a","seed":' + b"9" * 4000),
    }


@contextmanager
def web_process() -> Iterator[tuple[int, int]]:
    """A web process with one key; yields its pid and its port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        env = os.environ | {
            "IMAGE_TO_3D_API_KEY": KEY,
            "IMAGE_TO_3D_DATA_DIR": folder,
            "IMAGE_TO_3D_PORT": str(port),
            "IMAGE_TO_3D_ALLOW_PRIVATE_ADDRESSES": "1",
        }
        process = subprocess.Popen([sys.executable, "-m", "pipeline.local.web"], env=env, stderr=subprocess.DEVNULL)
        try:
            for _ in range(600):
                with suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1):
                    break
                time.sleep(0.05)
            warm_up(port)
            yield process.pid, port
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait()


def warm_up(port: int) -> None:
    """Load what the first submit loads."""
    post(port, with_key(b'"image":"' + base64.b64encode(PNG) + b'"'))


def post(port: int, body: bytes) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    try:
        connection.request("POST", SUBMIT, body, {"content-type": "application/json", "prefer": "wait=0"})
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def peak_mib(pid: int) -> float:
    """The most memory that the process ever had."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 1024


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
    print(f"{'body':32} status  peak +MiB  /health s")
    for name, body in bodies().items():
        with web_process() as (pid, port):
            before_mib = peak_mib(pid)
            try:
                status, longest_s = stall_while(port, body)
            except OSError:
                status, longest_s = 0, 0.0
            print(f"{name:32} {status:6} {peak_mib(pid) - before_mib:10.0f} {longest_s:10.2f}", flush=True)
    return 0
