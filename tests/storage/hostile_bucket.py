"""Endpoints that a customer may name, and that answer in the worst ways: too slowly, too much, nested too deeply."""

from __future__ import annotations

import re
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

Answer = Callable[[socket.socket, threading.Event], None]


@dataclass
class HostileBucket:
    url: str
    requests: list[bytes] = field(default_factory=list)
    ended: threading.Event = field(default_factory=threading.Event)


@contextmanager
def hostile_bucket(answer: Answer) -> Iterator[HostileBucket]:
    """A server that reads one request per connection, and then answers like this."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as listener:
        bucket = HostileBucket(f"http://127.0.0.1:{listener.getsockname()[1]}")

        def serve(connection: socket.socket) -> None:
            with connection, suppress(OSError), connection.makefile("rb") as reader:
                head = b"".join(iter(reader.readline, b"\r\n"))
                length = re.search(rb"content-length: (\d+)", head, re.IGNORECASE)
                reader.read(int(length[1]) if length else 0)
                bucket.requests.append(head)
                answer(connection, bucket.ended)

        def accept() -> None:
            with suppress(OSError):
                while True:
                    connection, _ = listener.accept()
                    threading.Thread(target=serve, args=(connection,), daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        try:
            yield bucket
        finally:
            bucket.ended.set()


def hang(connection: socket.socket, ended: threading.Event) -> None:
    ended.wait(60)


def drip_head(connection: socket.socket, ended: threading.Event) -> None:
    for byte in b"HTTP/1.1 200 OK\r\nx-slow: " + b"a" * 60_000:
        connection.sendall(bytes([byte]))
        if ended.wait(0.05):
            return


def drip_body(connection: socket.socket, ended: threading.Event) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 60000\r\n\r\n")
    while not ended.wait(0.05):
        connection.sendall(b"a")


def sending(status: int, content: bytes) -> Answer:
    def answer(connection: socket.socket, ended: threading.Event) -> None:
        head = f"HTTP/1.1 {status} X\r\ncontent-type: application/xml\r\ncontent-length: {len(content)}\r\n"
        connection.sendall(head.encode() + b"connection: close\r\n\r\n")
        connection.sendall(content)

    return answer


NESTED = b"<Error>" + b"<a>" * 30_000 + b"</a>" * 30_000 + b"</Error>"
LONG = b"<Error>" + b"<a/>" * 4_000_000 + b"</Error>"
ENTITIES = (
    b'<!DOCTYPE x [<!ENTITY a "aaaaaaaaaa">'
    + b"".join(b'<!ENTITY %c "%s">' % (98 + n, b"&%c;" % (97 + n) * 10) for n in range(8))
    + b"]><Error><Code>&i;</Code></Error>"
)
