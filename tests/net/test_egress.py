"""The guard of outgoing requests: which addresses are refused, however they are written or reached."""

from __future__ import annotations

import threading
import time

import httpcore
import httpx
import pytest

from pipeline.errors import BlockedAddress, DownloadFailed
from pipeline.net.download import fetch
from pipeline.net.egress import GuardedBackend, check_address, check_url, guarded_client
from tests.net.image_host import Answers, Server
from tests.net.policies import LAPTOP, STRICT


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "127.1",
        "2130706433",
        "0x7f000001",
        "0177.0.0.1",
        "localhost",
        "0.0.0.0",
        "10.1.2.3",
        "192.168.0.1",
        "172.31.255.255",
        "100.64.0.1",
        "169.254.169.254",
        "100.100.100.200",
        "224.0.0.1",
        "255.255.255.255",
        "[::]",
        "[::1]",
        "[::ffff:10.0.0.1]",
        "[::ffff:7f00:1]",
        "[2002:7f00:1::]",
        "[64:ff9b::a9fe:a9fe]",
        "[fe80::1]",
        "[fd00:ec2::254]",
        "[fc00::1]",
    ],
)
def test_an_address_that_is_not_public_is_refused_in_every_spelling(host: str) -> None:
    for url in (f"http://{host}/", f"https://{host}:8443/a?b"):
        with pytest.raises(BlockedAddress, match="leads to an address that is not public"):
            check_url(url, STRICT)
    with pytest.raises(BlockedAddress):
        fetch(f"http://{host}:9/", STRICT)


@pytest.mark.parametrize("address", ["169.254.169.254", "fe80::1%eth0", "100.100.100.200", "fd00:ec2::254", "0.0.0.0"])
def test_private_addresses_can_be_allowed_but_never_metadata_services(address: str) -> None:
    with pytest.raises(BlockedAddress):
        check_address(address, LAPTOP, host="host")
    for private in ("127.0.0.1", "10.0.0.1", "::1", "fd12::1", "8.8.8.8"):
        check_address(private, LAPTOP, host="host")


@pytest.mark.parametrize("address", ["8.8.8.8", "2606:4700:4700::1111", "::ffff:8.8.8.8", "2002:808:808::"])
def test_public_addresses_are_allowed(address: str) -> None:
    check_address(address, STRICT, host="host")


def test_only_http_and_https_are_allowed() -> None:
    for url in (
        "file:///etc/passwd",
        "ftp://example.com/",
        "gopher://example.com",
        "http:///nothing",
    ):
        for leave in (check_url, fetch):
            with pytest.raises(BlockedAddress, match="is not a usable http or https address"):
                leave(url, STRICT)


def test_a_name_that_resolves_to_a_private_address_is_refused_at_connect(server: Server) -> None:
    asked: list[str] = []

    def resolve(host: str, port: int) -> list[str]:
        asked.append(host)
        return ["8.8.8.8"] if len(asked) == 1 else ["127.0.0.1"]  # as in DNS rebinding

    check_url(f"http://rebinding.test:{server.server_port}/image", STRICT, resolve=resolve)
    with pytest.raises(BlockedAddress, match=r"^rebinding\.test leads"):
        fetch(f"http://rebinding.test:{server.server_port}/image", STRICT, resolve=resolve)
    assert server.asked == []


def test_one_private_address_among_public_ones_is_refused() -> None:
    with pytest.raises(BlockedAddress):
        check_url("http://mixed.test/", STRICT, resolve=lambda host, port: ["8.8.8.8", "10.0.0.1"])


def test_the_request_keeps_the_name_while_the_connection_uses_the_checked_address(server: Server) -> None:
    hosts: list[str] = []
    server.routes["/image"] = lambda handler: (hosts.append(handler.headers["host"]), handler.answer(b"x"))[1]
    fetch(f"http://named.test:{server.server_port}/image", LAPTOP, resolve=lambda host, port: ["127.0.0.1"])
    assert hosts == [f"named.test:{server.server_port}"]


def test_up_to_five_redirects_are_followed_and_each_is_checked(server: Server) -> None:
    assert fetch(f"{server.url}/to/5", LAPTOP) == b"an image"
    with pytest.raises(DownloadFailed, match="redirects more than 5 times"):
        fetch(f"{server.url}/to/6", LAPTOP)
    for inside in ("http://169.254.169.254/latest/meta-data", "http://[fe80::1]/", "file:///etc/passwd"):
        server.routes["/inside"] = lambda handler, to=inside: handler.redirect(to)
        with pytest.raises(BlockedAddress):
            fetch(f"{server.url}/inside", LAPTOP)


@pytest.mark.parametrize(
    "location",
    [
        "/im\tage",
        "\\image",
        "/to/../image",
        "  /image ",
        "?to=/image",
        "/image#top",
        "//{host}/image",
        "http:\\\\{host}/image",
    ],
)
def test_a_redirect_leads_where_browsers_go(server: Server, location: str) -> None:
    server.routes["/from"] = lambda handler: handler.redirect(location.replace("{host}", server.url[7:]))
    server.routes["/from?to=/image"] = server.routes["/"] = lambda handler: handler.answer(b"an image")
    assert fetch(f"{server.url}/from", LAPTOP) == b"an image"


@pytest.mark.parametrize("location", ["http://[::1/", "http://\x01/", "/" + "a" * 70_000])
def test_a_redirect_to_what_is_no_url_is_final_and_named(server: Server, location: str) -> None:
    server.routes["/from"] = lambda handler: handler.redirect(location)
    with pytest.raises(DownloadFailed, match="answered 302 instead of an image") as failed:
        fetch(f"{server.url}/from", LAPTOP)
    assert not failed.value.retryable
    assert server.asked == ["/from"]


def test_a_long_body_is_refused_with_and_without_content_length(server: Server) -> None:
    def unannounced(handler: Answers) -> None:
        handler.send_response(200)
        handler.end_headers()
        for _ in range(64):
            handler.wfile.write(b"x" * 1024)

    server.routes["/announced"] = lambda handler: handler.answer(b"x" * 65536)
    server.routes["/unannounced"] = unannounced
    for path in ("/announced", "/unannounced"):
        with pytest.raises(DownloadFailed, match=r"^127\.0\.0\.1 sends more than 0\.03125 MiB$"):
            fetch(server.url + path, LAPTOP, max_bytes=32768)


def test_a_slow_body_is_cut_at_the_deadline(server: Server) -> None:
    def trickle(handler: Answers) -> None:
        handler.send_response(200)
        handler.end_headers()
        while True:
            handler.wfile.write(b"x")
            time.sleep(0.05)

    server.routes["/trickle"] = trickle
    with pytest.raises(DownloadFailed, match=r"did not send the image within 0\.3 s"):
        fetch(f"{server.url}/trickle", LAPTOP, timeout_s=0.3)


@pytest.mark.parametrize(
    ("path", "words"), [("/nothing", "answered 404 instead of an image"), (":1/", "connection refused")]
)
def test_the_message_of_a_failed_download_says_why_and_contains_no_path(server: Server, path: str, words: str) -> None:
    url = server.url + path + "?token=hunter2" if path.startswith("/") else f"http://127.0.0.1{path}?token=hunter2"
    with pytest.raises(DownloadFailed, match=words) as failed:
        fetch(url, LAPTOP)
    assert "hunter2" not in str(failed.value)


def test_the_proxy_of_the_environment_is_ignored(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:1")
    with guarded_client(LAPTOP) as client:
        assert client.get(f"{server.url}/image").content == b"an image"


def test_each_request_of_a_client_is_checked(server: Server) -> None:
    with guarded_client(STRICT) as client, pytest.raises(BlockedAddress):
        client.post(f"{server.url}/image", content=b"x")
    with guarded_client(LAPTOP) as client, pytest.raises(httpx.ConnectError):
        client.get("http://nowhere.invalid/")


def test_no_cookie_is_kept_from_one_request_to_the_next(server: Server) -> None:
    cookies: list[str | None] = []

    def set_cookie(handler: Answers) -> None:
        cookies.append(handler.headers["cookie"])
        handler.send_response(200)
        handler.send_header("set-cookie", "session=of-another-customer; Path=/")
        handler.send_header("content-length", "0")
        handler.end_headers()

    server.routes["/hook"] = set_cookie
    with guarded_client(LAPTOP) as client:
        for _ in range(2):
            client.get(f"{server.url}/hook")
        assert not client.cookies
    assert cookies == [None, None]


class SilentNetwork(httpcore.NetworkBackend):
    """A network in which no address answers; records the timeout of each connection."""

    def __init__(self) -> None:
        self.timeouts_s: list[float] = []

    def connect_tcp(self, host: str, port: int, timeout: float | None = None, *_: object) -> httpcore.NetworkStream:
        assert timeout is not None
        self.timeouts_s.append(timeout)
        raise httpcore.ConnectTimeout(host)


def test_all_addresses_of_a_name_share_one_connect_timeout() -> None:
    addresses = [f"8.8.8.{number}" for number in range(1, 8)]
    backend = GuardedBackend(STRICT, lambda host, port: addresses)
    backend.system = network = SilentNetwork()

    with pytest.raises(httpcore.ConnectTimeout):
        backend.connect_tcp("black.hole", 443, timeout=7.0)

    # This network gives up at once, so the shares grow; one that uses each share up gets seven of one second.
    assert len(network.timeouts_s) == 7
    assert network.timeouts_s[0] <= 1.0 and max(network.timeouts_s) <= 7.0


def test_a_hanging_resolver_fails_within_the_connect_timeout() -> None:
    has_ended = threading.Event()

    def hang(host: str, port: int) -> list[str]:
        has_ended.wait(60)
        return ["8.8.8.8"]

    with pytest.raises(DownloadFailed, match="did not send the image within"):
        fetch("http://slow.test/", STRICT, resolve=hang, timeout_s=0.2)
    has_ended.set()
