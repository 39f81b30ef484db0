"""When `serve` tells that the service is ready."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from pipeline.local import serve
from pipeline.settings import Settings


class Healthy(BaseHTTPRequestHandler):
    """Answers every request with 200, as a proxy's own page may."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *arguments: object) -> None:
        """Log nothing."""


@contextmanager
def healthy_server() -> Iterator[int]:
    """A server on this machine; yields its port."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Healthy)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server.server_port
    server.shutdown()
    server.server_close()
    thread.join()


def announced(port: int) -> list[str]:
    lines: list[str] = []
    serve.announce_when_ready(Settings(port=port), lines.append, False, threading.Event())
    return lines


def test_a_service_that_answers_is_announced() -> None:
    with healthy_server() as port:
        assert announced(port) == [f"Ready at http://127.0.0.1:{port}/"]


def test_a_proxy_of_the_environment_does_not_answer_for_the_service(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve, "READY_WAIT_S", 0.2)
    with healthy_server() as proxy:
        for name in ("HTTP_PROXY", "http_proxy"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy}")
        for name in ("NO_PROXY", "no_proxy"):
            monkeypatch.delenv(name, raising=False)

        (line,) = announced(1)

    assert line == "http://127.0.0.1:1 does not answer after 0.2 s; see the log"
