"""The web process's connections against a real uvicorn: silent, half-sent, unread, kept alive, too many."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest
import uvicorn
from starlette.types import Receive, Scope, Send

from pipeline.local.http_protocol import bounded_protocol

HEAD_TIMEOUT_S = 0.5
WRITE_STALL_S = 1.0
LONG_BYTES = 64 << 20  # far more than the buffers of both ends hold
LIMIT = 8
WAIT_S = 30.0  # far longer than anything takes here
HEAD = b"GET / HTTP/1.1\r\nhost: x\r\n"


async def slow_app(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers after three head timeouts, or at length, where the path says so."""
    import anyio

    if scope["path"] == "/long":
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for _ in range(LONG_BYTES >> 16):
            await send({"type": "http.response.body", "body": bytes(1 << 16), "more_body": True})
        await send({"type": "http.response.body", "body": b""})
        return
    if scope["path"] == "/slow":
        await anyio.sleep(3 * HEAD_TIMEOUT_S)
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})


@pytest.fixture
def connect() -> Iterator[Callable[[], socket.socket]]:
    """Opens connections to a server with the bounded protocol."""
    protocol = bounded_protocol(limit=LIMIT, head_timeout_s=HEAD_TIMEOUT_S, write_stall_s=WRITE_STALL_S)
    config = uvicorn.Config(slow_app, port=0, http=protocol, lifespan="off", log_config=None, timeout_keep_alive=60)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    opened: list[socket.socket] = []

    def connect() -> socket.socket:
        opened.append(socket.create_connection(("127.0.0.1", port), timeout=WAIT_S))
        return opened[-1]

    yield connect
    for connection in opened:
        connection.close()
    server.should_exit = True
    thread.join(WAIT_S)


def is_closed_by_server(connection: socket.socket) -> bool:
    """Wait for the server to close; False where it sends bytes instead."""
    try:
        return connection.recv(1) == b""
    except ConnectionResetError:
        return True


def read_answer(connection: socket.socket) -> bytes:
    received = b""
    while not received.endswith(b"\r\n\r\nok"):
        piece = connection.recv(4096)
        assert piece, received
        received += piece
    return received


@pytest.mark.parametrize(
    "sent", [b"", b"G", HEAD, HEAD + b"x: " + b"y" * 1000], ids=["silent", "byte", "head", "header"]
)
def test_a_connection_without_a_complete_head_is_closed(connect: Callable[[], socket.socket], sent: bytes) -> None:
    connection = connect()
    connection.sendall(sent)
    assert is_closed_by_server(connection)


def test_a_head_that_trickles_does_not_extend_its_time(connect: Callable[[], socket.socket]) -> None:
    connection = connect()
    try:
        for _ in range(1000):
            connection.sendall(b"GET / HTTP/1.1\r\n" if _ == 0 else b"x: y\r\n")
            time.sleep(HEAD_TIMEOUT_S / 10)
    except OSError:
        return
    pytest.fail("the connection is still open")


def test_an_answer_may_take_longer_than_a_head(connect: Callable[[], socket.socket]) -> None:
    connection = connect()
    connection.sendall(HEAD.replace(b"/", b"/slow", 1) + b"\r\n")
    assert b"200 OK" in read_answer(connection)


def read_all(connection: socket.socket, *, pause_s: float) -> int:
    """The bytes that come until the server closes, read with pauses at first."""
    size_bytes = 0
    for number in range(1 << 30):
        try:
            piece = connection.recv(1 << 16)
        except ConnectionResetError:
            break
        if not piece:
            break
        size_bytes += len(piece)
        if number < 600:
            time.sleep(pause_s)
    return size_bytes


def test_a_client_that_does_not_read_its_answer_is_cut_off(connect: Callable[[], socket.socket]) -> None:
    connection = connect()
    connection.sendall(HEAD.replace(b"/", b"/long", 1) + b"connection: close\r\n\r\n")
    time.sleep(3 * WRITE_STALL_S)
    assert read_all(connection, pause_s=0.0) < LONG_BYTES


def test_a_client_that_reads_slowly_gets_its_answer(connect: Callable[[], socket.socket]) -> None:
    connection = connect()
    connection.sendall(HEAD.replace(b"/", b"/long", 1) + b"connection: close\r\n\r\n")
    assert read_all(connection, pause_s=WRITE_STALL_S / 300) > LONG_BYTES


def test_a_keep_alive_connection_waits_for_its_next_request(connect: Callable[[], socket.socket]) -> None:
    connection = connect()
    for _ in range(2):
        connection.sendall(HEAD + b"\r\n")
        assert b"200 OK" in read_answer(connection)
        time.sleep(1.5 * HEAD_TIMEOUT_S)  # idle between requests: bounded by the keep-alive timeout alone

    connection.sendall(b"GET / HT")
    assert is_closed_by_server(connection)


def test_pipelined_requests_are_answered(connect: Callable[[], socket.socket]) -> None:
    connection = connect()
    connection.sendall((HEAD + b"\r\n") * 3)
    received = b""
    while received.count(b"200 OK") < 3 or not received.endswith(b"ok"):
        received += connection.recv(4096)


def test_connections_beyond_the_limit_are_closed_at_once_and_the_others_continue(
    connect: Callable[[], socket.socket],
) -> None:
    held = [connect() for _ in range(LIMIT)]
    for connection in held:
        connection.sendall(HEAD.replace(b"/", b"/slow", 1) + b"\r\n")
    for connection in (connect(), connect()):
        assert is_closed_by_server(connection)
    assert all(b"200 OK" in read_answer(connection) for connection in held)
