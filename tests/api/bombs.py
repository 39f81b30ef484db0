"""Requests that cost a server much where it lets them, and a web process to send them to."""

from __future__ import annotations

import base64
import http.client
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
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
        "6 M names without values": b"{" + b'"key"' * (SIZE // 5) + b"}",
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


def start_peak(pid: int) -> float:
    """Forget the peak of a process so far; returns the memory that it has now, in MiB."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")
    return _status_mib(pid, "VmRSS")


def peak_mib(pid: int) -> float:
    """The most memory that the process had since `start_peak`."""
    return _status_mib(pid, "VmHWM")


def cpu_s(pid: int, *, thread: int | None = None) -> float:
    """The CPU time of a process so far, or of one of its threads; the main thread has the number of the process."""
    stat = Path(f"/proc/{pid}/stat" if thread is None else f"/proc/{pid}/task/{thread}/stat").read_text()
    user, system = stat.rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def _status_mib(pid: int, name: str) -> float:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1]) / 1024
