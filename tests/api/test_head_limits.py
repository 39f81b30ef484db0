"""Heads that are ambiguous or too large, against a real server: refused, with the connection closed."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress

import pytest
import uvicorn
from starlette.types import Receive, Scope, Send

from pipeline.api.head_limits import with_head_limits

WAIT_S = 30.0


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    server = uvicorn.Server(uvicorn.Config(with_head_limits(app), port=0, lifespan="off", log_config=None))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield server.servers[0].sockets[0].getsockname()[1]
    server.should_exit = True
    thread.join(WAIT_S)


def answer_to(port: int, head: bytes) -> bytes:
    """All that the server sends until it closes. A server that closes before it has read all resets the connection."""
    received = b""
    with (
        socket.create_connection(("127.0.0.1", port), timeout=WAIT_S) as connection,
        suppress(ConnectionResetError, BrokenPipeError),
    ):
        connection.sendall(head)
        while piece := connection.recv(65536):
            received += piece
    return received


@pytest.mark.parametrize("order", [0, 1])
def test_a_request_with_both_framing_headers_is_refused(port: int, order: int) -> None:
    framing = [b"content-length: 5", b"transfer-encoding: chunked"][:: 1 - 2 * order]
    head = b"\r\n".join([b"POST / HTTP/1.1", b"host: x", *framing, b"", b""])

    answer = answer_to(port, head + b"0\r\n\r\nGET /smuggled HTTP/1.1\r\nhost: x\r\n\r\n")

    assert answer.startswith(b"HTTP/1.1 400 ") and b"invalid_request" in answer
    assert b"connection: close" in answer.lower() and answer.count(b"HTTP/1.1") == 1


@pytest.mark.parametrize(
    "headers",
    [[b"x: y"] * 150, [b"x: " + b"y" * 20_000] * 2, [b"x: " + b"y" * 100_000]],
    ids=["many", "together", "long"],
)
def test_a_head_that_is_too_large_is_refused(port: int, headers: list[bytes]) -> None:
    answer = answer_to(port, b"\r\n".join([b"GET / HTTP/1.1", b"host: x", *headers, b"", b""]))

    # uvicorn's own limit meets some first; a reset may overtake an answer.
    assert answer == b"" or answer.startswith((b"HTTP/1.1 431 ", b"HTTP/1.1 400 "))
    assert answer[-2:] != b"ok"


def test_an_ordinary_head_passes(port: int) -> None:
    headers = [b"x%d: %s" % (number, b"y" * 100) for number in range(80)]
    head = [b"GET /a?b=c HTTP/1.1", b"host: x", b"connection: close", *headers, b"", b""]
    assert answer_to(port, b"\r\n".join(head)).endswith(b"\r\n\r\nok")
