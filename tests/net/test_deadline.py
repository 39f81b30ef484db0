"""A limit for an HTTP request as a whole, against servers that answer a byte at a time."""

from __future__ import annotations

import datetime
import ipaddress
import socket
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from pipeline.net.deadline import deadline


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate for 127.0.0.1 and its key, in one file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.datetime.now(datetime.UTC)
    signed = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    path = tmp_path_factory.mktemp("tls") / "server.pem"
    plain = serialization.NoEncryption()
    encoding = serialization.Encoding.PEM
    path.write_bytes(
        key.private_bytes(encoding, serialization.PrivateFormat.PKCS8, plain) + signed.public_bytes(encoding)
    )
    return path


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
def client(certificate: Path) -> Iterator[httpx.Client]:
    with httpx.Client(timeout=30, verify=ssl.create_default_context(cafile=str(certificate))) as client:
        yield client


def test_a_slow_response_is_cut_at_the_deadline(client: httpx.Client, slow_url: str):
    with deadline(0.3) as limit, pytest.raises(httpx.TransportError):
        client.get(slow_url, headers={"connection": "close"}, extensions=limit.extensions)

    assert limit.has_passed


def test_no_connection_is_made_after_the_deadline(client: httpx.Client):
    with socket.create_server(("127.0.0.1", 0)) as listener, deadline(60) as limit:
        limit.cut()
        with pytest.raises(httpx.ConnectTimeout, match="the deadline of this request has passed"):
            client.get(f"http://127.0.0.1:{listener.getsockname()[1]}/", extensions=limit.extensions)

        listener.setblocking(False)
        with pytest.raises(BlockingIOError):
            listener.accept()


def test_a_request_before_the_deadline_succeeds(client: httpx.Client):
    with socket.create_server(("127.0.0.1", 0)) as listener, deadline(60) as limit:

        def answer() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")

        thread = threading.Thread(target=answer)
        thread.start()
        response = client.get(
            f"http://127.0.0.1:{listener.getsockname()[1]}/",
            headers={"connection": "close"},
            extensions=limit.extensions,
        )
        thread.join()

    assert (response.text, limit.has_passed) == ("ok", False)
