"""S3 servers in processes of their own, and a proxy in front of them that injects the failures of real services."""

from __future__ import annotations

import http.client
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

NPM_TIMEOUT_S = 240.0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def server_process(command: list[str], port: int, *, cwd: Path, env: dict[str, str] | None = None) -> Iterator[str]:
    """Run a server until its port answers; yields its URL and ends it afterwards."""
    with (cwd / "server.log").open("wb") as log_file:
        process = subprocess.Popen(command, cwd=cwd, env=env, stdout=log_file, stderr=subprocess.STDOUT)
        try:
            for _ in range(600):
                with socket.socket() as probe:
                    if probe.connect_ex(("127.0.0.1", port)) == 0:
                        break
                if process.poll() is not None:
                    raise RuntimeError(f"{command[0]} ended: {(cwd / 'server.log').read_text()[-2000:]}")
                time.sleep(0.05)
            else:
                raise RuntimeError(f"{command[0]} does not listen: {(cwd / 'server.log').read_text()[-2000:]}")
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            try:
                process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@contextmanager
def moto_server(folder: Path, *, port: int | None = None) -> Iterator[str]:
    """moto's server in a process of its own, which keeps its objects in memory."""
    port = port or free_port()
    command = [sys.executable, "-W", "ignore", "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with server_process(command, port, cwd=folder) as url:
        yield url


def installed_s3rver(folder: Path) -> Path | str:
    """The s3rver program of a private install, or why there is none."""
    installed = folder / "whole"  # an install that npm did not finish does not have this name
    program = installed / "node_modules" / "s3rver" / "bin" / "s3rver.js"
    if program.exists():
        return program
    npm = shutil.which("npm")
    if npm is None:
        return "npm is not installed"
    with tempfile.TemporaryDirectory(dir=folder) as begun:
        command = [npm, "install", "--silent", "--no-audit", "--no-fund", "--prefix", begun, "s3rver@3.7.1"]
        try:
            finished = subprocess.run(command, capture_output=True, text=True, timeout=NPM_TIMEOUT_S, check=False)
        except subprocess.TimeoutExpired:
            return f"npm did not install s3rver within {NPM_TIMEOUT_S:g} s"
        if finished.returncode != 0:
            return f"npm cannot install s3rver: {finished.stderr[-300:]}"
        with suppress(OSError):  # another test process was faster
            Path(begun).rename(installed)
    return program if program.exists() else "npm installed no s3rver"


@contextmanager
def s3rver_server(program: Path, folder: Path, *, bucket: str) -> Iterator[str]:
    """s3rver, an S3 server of other authors, which checks signatures (key id and secret are both `S3RVER`)."""
    port = free_port()
    command = [shutil.which("node") or "node", str(program), "-d", str(folder), "-a", "127.0.0.1", "-p", str(port)]
    with server_process([*command, "--configure-bucket", bucket], port, cwd=folder) as url:
        yield url


@dataclass
class Seen:
    """A request that reached the proxy."""

    method: str
    path: str
    query: str
    headers: dict[str, str]
    size: int


Fault = Callable[["ProxyHandler", bytes], bool]
"""Handles a request instead of the server; False forwards it."""


@dataclass
class FaultProxy:
    """The proxy's faults: the first that matches is used, as many times as it says; other requests are forwarded."""

    url: str = ""
    faults: list[tuple[Callable[[Seen], bool], Fault, list[int]]] = field(default_factory=list)
    seen: list[Seen] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, when: Callable[[Seen], bool], fault: Fault, *, times: int = 10**9) -> None:
        self.faults.append((when, fault, [times]))

    def fault_for(self, seen: Seen) -> Fault | None:
        with self.lock:
            self.seen.append(seen)
            for when, fault, left in self.faults:
                if left[0] > 0 and when(seen):
                    left[0] -= 1
                    return fault
        return None

    def count(self, method: str) -> int:
        return sum(seen.method == method for seen in self.seen)


def answer(status: int, code: str, *, extra: str = "", headers: dict[str, str] | None = None) -> Fault:
    """An error in the form of S3; its message repeats the credentials, as that of a careless service may."""

    def fault(handler: ProxyHandler, body: bytes) -> bool:
        credentials = handler.headers.get("authorization", "")
        content = (
            f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>you sent {credentials}</Message>{extra}</Error>"
        )
        handler.reply(status, content.encode(), {"content-type": "application/xml", **(headers or {})})
        return True

    return fault


def cut_in_the_middle(handler: ProxyHandler, body: bytes) -> bool:
    """Reset the connection; only half of the body was read, see `ProxyHandler.read_body`."""
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    handler.close_connection = True
    handler.connection.close()
    return True


def damage(handler: ProxyHandler, body: bytes) -> bool:
    """Forward the body with one bit flipped."""
    handler.forward(bytes([body[0] ^ 1]) + body[1:])
    return True


class ProxyHandler(BaseHTTPRequestHandler):
    """Forwards a request with Host and signature unchanged, unless a fault handles it."""

    protocol_version = "HTTP/1.1"
    server: Any

    def handle_any(self) -> None:
        parts = urlsplit(self.path)
        length = int(self.headers.get("content-length") or 0)
        headers = {name.lower(): value for name, value in self.headers.items()}
        fault = self.server.proxy.fault_for(Seen(self.command, parts.path, parts.query, headers, length))
        body = self.rfile.read(length // 2 if fault is cut_in_the_middle else length)
        if fault is None or not fault(self, body):
            self.forward(body)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = handle_any  # noqa: N815

    def forward(self, body: bytes) -> None:
        upstream = http.client.HTTPConnection(self.server.upstream, timeout=60)
        upstream.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
        for name, value in self.headers.items():
            upstream.putheader(name, value)
        upstream.endheaders(body)
        response = upstream.getresponse()
        content = response.read()
        dropped = {"transfer-encoding", "connection", "content-length"}
        headers = {name: value for name, value in response.getheaders() if name.lower() not in dropped}
        if self.command == "HEAD" and (length := response.getheader("content-length")):
            headers["content-length"] = length
        self.reply(response.status, content, headers)
        upstream.close()

    def reply(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if "content-length" not in headers:
            self.send_header("content-length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        """The tests look at `seen` instead."""


class QuietServer(ThreadingHTTPServer):
    """Prints nothing when a connection is cut: that is what this server is for."""

    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        if not isinstance(sys.exc_info()[1], OSError | ValueError):
            super().handle_error(request, client_address)  # pyright: ignore[reportArgumentType]


@contextmanager
def fault_proxy(upstream_url: str, *, port: int = 0) -> Iterator[FaultProxy]:
    """A proxy in front of an S3 server, on a loopback port; 0 is one that is free."""
    server = QuietServer(("127.0.0.1", port), ProxyHandler)
    proxy = FaultProxy(url=f"http://127.0.0.1:{server.server_address[1]}")
    server.proxy, server.upstream = proxy, urlsplit(upstream_url).netloc  # pyright: ignore[reportAttributeAccessIssue]
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield proxy
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
