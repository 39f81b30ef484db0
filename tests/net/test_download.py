"""Downloads of images: what a host may send, which failures pass, and what the caller is told."""

from __future__ import annotations

import gzip
import io
import random
import socket
import struct
import threading
import tracemalloc
import zlib
from collections.abc import Callable

import brotli
import pytest
import zstandard
from PIL import Image

from pipeline.errors import Cancelled, DownloadFailed, DownloadInterrupted
from pipeline.net.download import ATTEMPTS, fetch
from pipeline.version import __version__, user_agent
from tests.net.image_host import Answers, Server
from tests.net.policies import LAPTOP


def _png() -> bytes:
    buffer = io.BytesIO()
    Image.frombytes("RGB", (64, 64), random.Random(1).randbytes(3 * 64 * 64)).save(buffer, "PNG")
    return buffer.getvalue()


IMAGE = _png()


def sending(status: int, content: bytes, **headers: str) -> Callable[[Answers], None]:
    def answer(handler: Answers) -> None:
        handler.send_response(status)
        for name, value in {"content-length": str(len(content)), **headers}.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        handler.wfile.write(content)

    return answer


def reset(handler: Answers) -> None:
    """Close the connection with a reset instead of an answer."""
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    handler.close_connection = True
    handler.connection.close()


def close(handler: Answers) -> None:
    """Close the connection without an answer."""
    handler.close_connection = True


def cut_short(handler: Answers) -> None:
    """Announce more than is sent."""
    handler.send_response(200)
    handler.send_header("content-length", str(len(IMAGE)))
    handler.end_headers()
    handler.wfile.write(IMAGE[:1000])
    handler.close_connection = True


def cut_short_in_a_chunk(handler: Answers) -> None:
    handler.send_response(200)
    handler.send_header("transfer-encoding", "chunked")
    handler.end_headers()
    handler.wfile.write(b"1000\r\n" + IMAGE[:1000])
    handler.close_connection = True


def deflate(content: bytes, *, is_bare: bool = False) -> bytes:
    compressor = zlib.compressobj(9, zlib.DEFLATED, -15 if is_bare else 15)
    return compressor.compress(content) + compressor.flush()


ENCODED = {
    "gzip": gzip.compress(IMAGE),
    "x-gzip": gzip.compress(IMAGE[:500]) + gzip.compress(IMAGE[500:]),
    "GZIP": gzip.compress(IMAGE),
    "deflate": deflate(IMAGE),
    "Deflate": deflate(IMAGE, is_bare=True),
    "br": brotli.compress(IMAGE),
    "zstd": zstandard.compress(IMAGE),
    "deflate, gzip": gzip.compress(deflate(IMAGE)),
    "br,identity": brotli.compress(IMAGE),
    "identity": IMAGE,
    "aws-chunked": IMAGE,
    "aws-chunked, gzip": gzip.compress(IMAGE),
    "": IMAGE,
    "gzip,": IMAGE,  # a stored header that is wrong
    "deflate,": IMAGE,
    "br,": IMAGE,
    "zstd,": IMAGE,
    **dict.fromkeys(("base64", "UTF-8", "image/png", "null", "*", "8bit", "none", "x\u00e9"), IMAGE),
    "base64, gzip": gzip.compress(IMAGE),
}


@pytest.mark.parametrize("encoding", ENCODED)
def test_content_encodings_are_undone(server: Server, encoding: str) -> None:
    server.routes["/image"] = sending(200, ENCODED[encoding], content_encoding=encoding)

    assert fetch(f"{server.url}/image", LAPTOP) == IMAGE


ZEROS = bytes(64 << 20)
BOMBS = {
    "gzip": gzip.compress(ZEROS),
    "deflate": deflate(ZEROS),
    "br": brotli.compress(ZEROS, quality=4),
    "zstd": zstandard.compress(ZEROS),
    "gzip, gzip": gzip.compress(gzip.compress(ZEROS)),
    "br, zstd": zstandard.compress(brotli.compress(ZEROS, quality=4)),
}


@pytest.mark.parametrize("encoding", BOMBS)
def test_a_bomb_is_refused_without_being_unpacked(server: Server, encoding: str) -> None:
    server.routes["/bomb"] = sending(200, BOMBS[encoding], content_encoding=encoding)

    tracemalloc.start()
    with pytest.raises(DownloadFailed, match=r"^127\.0\.0\.1 sends more than 1 MiB$"):
        fetch(f"{server.url}/bomb", LAPTOP, max_bytes=1 << 20)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert peak_bytes < 6 << 20


@pytest.mark.parametrize(
    ("encoding", "content", "words"),
    [
        ("compress", IMAGE, "sends the image with the content encoding compress, which is not read"),
        (", ".join(["gzip"] * 5), IMAGE, "content encoding 5 encodings on top of each other"),
        ("gzip", gzip.compress(IMAGE)[:-20], r"^the download from 127\.0\.0\.1 is damaged$"),
        ("br", brotli.compress(IMAGE)[:-20], "is damaged"),
        ("deflate", b"\x78\x9cnonsense", "is damaged"),
        ("zstd", zstandard.compress(IMAGE)[:6] + b"nonsense" * 9, "is damaged"),
    ],
    ids=["compress", "five", "gzip", "br", "deflate", "zstd"],
)
def test_an_encoding_that_cannot_be_undone_is_named(server: Server, encoding: str, content: bytes, words: str) -> None:
    server.routes["/image"] = sending(200, content, content_encoding=encoding)

    with pytest.raises(DownloadFailed, match=words):
        fetch(f"{server.url}/image", LAPTOP, pause=lambda seconds: None)


PASSING: dict[str, tuple[Callable[[Answers], None], str]] = {
    **{
        str(status): (sending(status, b""), rf"^127\.0\.0\.1 answered {status} instead of an image$")
        for status in (408, 425, 429, 500, 502, 503, 504, 522)
    },
    "429 with Retry-After": (sending(429, b"", retry_after="1"), "answered 429"),
    "503 with a date": (sending(503, b"", retry_after="Wed, 21 Oct 2015 07:28:00 GMT"), "answered 503"),
    "503 with nonsense": (sending(503, b"", retry_after="soon"), "answered 503"),
    "reset": (reset, r"^the download from 127\.0\.0\.1 broke off$"),
    "closed without an answer": (close, "broke off"),
    "cut short": (cut_short, "broke off"),
    "cut short in a chunk": (cut_short_in_a_chunk, "broke off"),
}


@pytest.mark.parametrize("failure", PASSING)
def test_a_failure_that_passes_is_not_seen_by_the_caller(server: Server, failure: str) -> None:
    pauses_s: list[float] = []

    def once(handler: Answers) -> None:
        server.routes["/image"] = sending(200, IMAGE)
        PASSING[failure][0](handler)

    server.routes["/image"] = once

    assert fetch(f"{server.url}/image", LAPTOP, pause=pauses_s.append) == IMAGE
    assert len(pauses_s) == 1
    if failure == "429 with Retry-After":
        assert pauses_s == [1.0]


@pytest.mark.parametrize("failure", PASSING)
def test_a_failure_that_stays_is_retryable_and_named(server: Server, failure: str) -> None:
    answer, words = PASSING[failure]
    server.routes["/image"] = answer

    with pytest.raises(DownloadInterrupted, match=words) as failed:
        fetch(f"{server.url}/image", LAPTOP, pause=lambda seconds: None)

    assert failed.value.retryable and failed.value.code == "download_failed"
    assert len(server.asked) == ATTEMPTS


def test_a_host_that_asks_for_a_long_pause_is_not_waited_for(server: Server) -> None:
    server.routes["/image"] = sending(503, b"", retry_after="3600")

    with pytest.raises(DownloadInterrupted):
        fetch(f"{server.url}/image", LAPTOP)

    assert len(server.asked) == 1


@pytest.mark.parametrize("status", [204, 206, 304, 400, 401, 403, 404, 410, 451, 501])
def test_a_status_that_stays_is_final_at_once(server: Server, status: int) -> None:
    server.routes["/image"] = sending(status, b"")

    with pytest.raises(DownloadFailed, match=rf"answered {status} instead of an image") as failed:
        fetch(f"{server.url}/image", LAPTOP)

    assert not failed.value.retryable and len(server.asked) == 1


def test_an_answer_that_a_proxy_has_changed_is_an_image_too(server: Server) -> None:
    server.routes["/image"] = sending(203, IMAGE)

    assert fetch(f"{server.url}/image", LAPTOP) == IMAGE


@pytest.mark.parametrize(
    ("number", "is_retryable", "words"),
    [
        (socket.EAI_AGAIN, True, "its name does not resolve"),
        (socket.EAI_NONAME, False, "its name does not resolve"),
    ],
)
def test_a_name_server_that_is_unavailable_is_asked_again(number: int, is_retryable: bool, words: str) -> None:
    asked: list[str] = []

    def resolve(host: str, port: int) -> list[str]:
        asked.append(host)
        raise socket.gaierror(number, "failed")

    with pytest.raises(DownloadFailed, match=rf"^images\.test cannot be reached: {words}$") as failed:
        fetch("http://images.test/", LAPTOP, resolve=resolve, pause=lambda seconds: None)

    assert failed.value.retryable is is_retryable
    assert len(asked) == (ATTEMPTS if is_retryable else 1)


@pytest.mark.parametrize(
    ("content", "content_type", "words"),
    [
        (b"<!DOCTYPE html><html><body>Sign in</body></html>", "text/html; charset=utf-8", "a web page (text/html)"),
        (b"\xef\xbb\xbf\n <HTML>\n", "application/octet-stream", "a web page (text/html)"),
        ("<p>Grüße</p>".encode() * 100, "text/html", "a web page (text/html)"),
        (b"<!doctype html><title>moved</title>", "image/png", "a web page (text/html)"),
        (b'{"error": "expired"}', "application/json", "a text (application/json)"),
        (b"<Error><Code>AccessDenied</Code></Error>", "application/xml", "a text (application/xml)"),
        (b"not found", "text/plain", "a text (text/plain)"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "image/svg+xml", "an SVG drawing (image/svg+xml)"),
    ],
)
def test_a_text_instead_of_an_image_is_named(server: Server, content: bytes, content_type: str, words: str) -> None:
    server.routes["/shared"] = sending(200, content, content_type=content_type)

    with pytest.raises(DownloadFailed) as failed:
        fetch(f"{server.url}/shared", LAPTOP)

    assert str(failed.value) == f"127.0.0.1 sends {words} instead of an image; use the direct link to the image"
    assert not failed.value.retryable


@pytest.mark.parametrize("content_type", ["text/html", "text/plain", "application/json", "nonsense", ""])
def test_the_content_decides_over_a_wrong_content_type(server: Server, content_type: str) -> None:
    server.routes["/image"] = sending(200, IMAGE, content_type=content_type)

    assert fetch(f"{server.url}/image", LAPTOP) == IMAGE


def test_the_host_learns_who_asks_and_whom_to_contact(server: Server) -> None:
    agents: list[str | None] = []
    server.routes["/image"] = lambda handler: (agents.append(handler.headers["user-agent"]), handler.answer(IMAGE))[1]

    fetch(f"{server.url}/image", LAPTOP)

    assert agents == [LAPTOP.user_agent]
    assert user_agent() == f"image-to-3d/{__version__}"
    assert user_agent("https://example.com/3d") == f"image-to-3d/{__version__} (+https://example.com/3d)"


def test_a_cancellation_reaches_a_download(server: Server) -> None:
    has_begun, is_cancelled = threading.Event(), threading.Event()

    def hang(handler: Answers) -> None:
        has_begun.set()
        is_cancelled.wait(30)
        threading.Event().wait(2)

    server.routes["/image"] = hang
    threading.Thread(target=lambda: (has_begun.wait(30), is_cancelled.set()), daemon=True).start()

    with pytest.raises(Cancelled):
        fetch(f"{server.url}/image", LAPTOP, is_cancelled=is_cancelled.is_set)
