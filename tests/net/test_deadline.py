"""A limit for an HTTP request as a whole, against servers that answer a byte at a time."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import pytest

from pipeline.errors import Cancelled
from pipeline.net.deadline import DeadlinePassed, deadline
from pipeline.net.egress import guarded_client
from tests.net.policies import LAPTOP
from tests.servers.tls import self_signed_certificate


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate for 127.0.0.1 and its key, in one file."""
    return self_signed_certificate(tmp_path_factory.mktemp("tls") / "server.pem")


@pytest.fixture(params=["http", "https"])
def slow_url(request: pytest.FixtureRequest, certificate: Path) -> Iterator[str]:
    """A server whose answer's head takes half an hour, well within any limit between two bytes."""
    over = threading.Event()
    listener = socket.create_server(("127.0.0.1", 0))
    tls = None
    if request.param == "https":
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.load_cert_chain(certificate)

    def drip() -> None:
        plain, _ = listener.accept()
        try:
            with tls.wrap_socket(plain, server_side=True) if tls else plain as connection:
                connection.recv(65536)
                for byte in b"HTTP/1.1 200 OK\r\nx-slow: " + b"a" * 60_000:
                    if over.wait(0.03):
                        return
                    connection.sendall(bytes([byte]))
        except OSError:
            return  # the client disconnected

    thread = threading.Thread(target=drip, daemon=True)
    thread.start()
    yield f"{request.param}://127.0.0.1:{listener.getsockname()[1]}/"
    over.set()
    thread.join()
    listener.close()


@pytest.fixture
def client(certificate: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[httpx.Client]:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    with guarded_client(LAPTOP) as client:
        client.timeout = 30
        yield client


def test_a_slow_response_is_cut_at_the_deadline(client: httpx.Client, slow_url: str):
    with deadline(0.3), pytest.raises(DeadlinePassed):
        client.get(slow_url)


def test_a_slow_response_is_cut_soon_after_a_cancellation(client: httpx.Client, slow_url: str):
    is_cancelled = threading.Event()
    timer = threading.Timer(0.2, is_cancelled.set)
    timer.start()

    with deadline(60, is_cancelled=is_cancelled.is_set), pytest.raises(Cancelled):
        client.get(slow_url)

    timer.join()


def test_no_connection_is_made_after_the_deadline(client: httpx.Client):
    with socket.create_server(("127.0.0.1", 0)) as listener, deadline(0):
        with pytest.raises(DeadlinePassed):
            client.get(f"http://127.0.0.1:{listener.getsockname()[1]}/")

        listener.setblocking(False)
        with pytest.raises(BlockingIOError):
            listener.accept()


@contextmanager
def answering(*answers: bytes) -> Iterator[str]:
    """A server that answers the requests of one kept connection in turn, and those after them with nothing."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            connection, _ = listener.accept()
            left = list(answers)
            with connection, suppress(OSError):
                while connection.recv(65536):
                    if left:
                        connection.sendall(left.pop(0))

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/"
        thread.join(10)


OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"


def test_requests_before_the_deadline_succeed_on_one_connection(client: httpx.Client):
    with answering(OK, OK, OK) as url:
        with deadline(60):
            assert [client.get(url).text for _ in range(3)] == ["ok"] * 3
        client.close()


def test_a_kept_connection_keeps_to_the_deadline_of_the_block_that_uses_it(client: httpx.Client):
    with answering(OK, OK) as url:
        with deadline(60):
            client.get(url)
        client.get(url)  # outside of any block
        with deadline(0.3), pytest.raises(DeadlinePassed):
            client.get(url)


def test_a_body_without_a_length_that_was_cut_is_not_taken_for_whole(client: httpx.Client):
    with (
        answering(b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\nbeginning") as url,
        deadline(0.3),
        pytest.raises(DeadlinePassed),
    ):
        client.get(url)


def test_a_body_that_is_not_taken_is_cut_at_the_deadline(client: httpx.Client):
    with socket.create_server(("127.0.0.1", 0)) as listener, deadline(0.3), pytest.raises(DeadlinePassed):
        client.put(f"http://127.0.0.1:{listener.getsockname()[1]}/", content=b"x" * (64 << 20))
